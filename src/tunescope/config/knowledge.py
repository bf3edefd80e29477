"""The settings of `tunescope knowledge`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from tunescope.config.settings import FilePath, PathList, Settings


class QuestionFileSettings(Settings):
    """One file of questions: multiple choice, or free-form with the right answer."""

    file: FilePath = Field(description="Questions as JSON, JSONL, CSV, TSV or Parquet, one a row.")
    role: Literal["homo", "in_domain", "out_of_domain", "demonstrations"] = Field(
        "homo",
        description="homo: what the intervention study also tunes on; in_domain: same field, another source; out_of_domain: other fields; "
        "demonstrations: shown with their answers, never asked.",
    )
    domain: str | None = Field(
        None,
        min_length=1,
        description="Domain of all its rows, whatever they say; default: the row's own, or the file's name.",
    )
    columns: (
        dict[
            Literal["question", "choices", "answer", "alternatives", "domain", "context", "id"],
            Annotated[str, Field(min_length=1)],
        ]
        | None
    ) = Field(None, description="Which column holds what, where the usual names do not fit.")


class InterventionSettings(Settings):
    """What `tunescope knowledge --intervene` tunes and tests; each set is tuned once per seed."""

    group_size: int | None = Field(
        None,
        ge=1,
        description="Questions in each group at most; default: as many as the smaller group has. As many general examples are added, which bound "
        "it too.",
    )
    shares: tuple[float, ...] = Field(
        (0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
        description="Mixed sets: share of the incompatible questions that have the model's own answer. 0 and 1 are the groups themselves.",
    )
    seeds: tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...] = Field(
        (), description="Seeds of tuning; empty: the seed of the config."
    )
    test_fraction: float = Field(
        0.3, gt=0, lt=1, description="Share of the homo questions that is only tested on, and in no group."
    )
    max_test_questions: int | None = Field(None, ge=2, description="Test on at most this many questions per role.")
    explanations: Literal["auto", "never"] = Field(
        "auto",
        description="auto: the model explains each answer in its own words, if it proves able to; otherwise, and with never, the target is the "
        "answer alone.",
    )
    explanation_tokens: int = Field(64, ge=8, le=1024, description="Longest explanation, in tokens.")

    @field_validator("shares")
    @classmethod
    def _shares_between(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [share for share in shares if not 0 < share < 1]:
            raise ValueError(f"got {wrong[0]:g}; a share lies between 0 and 1, and 0 and 1 themselves are always tuned")
        if len(set(shares)) < len(shares):
            raise ValueError("a share is listed twice")
        return tuple(sorted(shares))

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds


class KnowledgeSettings(Settings):
    """What the model is asked before and after tuning; see the page on the knowledge study."""

    questions: tuple[QuestionFileSettings, ...] = Field(
        (), description="The files of questions; see the table of a file."
    )
    demonstrations: int = Field(
        5,
        ge=0,
        le=64,
        description="Questions of the same domain shown with their answers before each question of the probe.",
    )
    ask: Literal["letters", "text", "text_per_byte"] = Field(
        "letters",
        description="How questions are asked: letters: the choices are shown, and the model names a letter; text: they are not shown, and each "
        "has the probability of being the whole answer; text_per_byte: the same, per byte of its length.",
    )
    header: str | None = Field(
        None,
        min_length=1,
        description="First line of every prompt; {domain} stands for the question's domain. Default: one that fits how questions are asked.",
    )
    threshold: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="An answer of the base model counts as sure above this probability; groups hold sure ones only.",
    )
    distractors: int = Field(3, ge=1, le=25, description="Wrong answers offered with a free-form question.")
    max_questions: int | None = Field(None, ge=2, description="Ask at most this many questions per domain and role.")
    behaviour_examples: int = Field(
        100, ge=1, description="Examples of the wanted form of answer that you can collect; only the advice reads it."
    )
    style_prompts: int = Field(
        32,
        ge=0,
        le=10_000,
        description="Greedy answers of the tuned model whose words are compared with the base; 0 = none.",
    )
    style_tokens: int = Field(64, ge=1, le=4096, description="Longest of these answers, in tokens.")
    general: PathList = Field(
        (),
        description="General instruction data: mixed into the tuning sets of the intervention study, and prompts for the style.",
    )
    intervention: InterventionSettings = InterventionSettings()

    @property
    def first_line(self) -> str:
        """The header, or the default that fits how questions are asked; with ``{domain}`` in it."""
        if self.header is not None:
            return self.header
        if self.ask == "letters":
            return "The following are multiple choice questions about {domain}. Please choose the correct answer."
        return "The following are questions about {domain}. Please give the correct answer."

    @field_validator("header")
    @classmethod
    def _header_can_be_filled(cls, header: str | None) -> str | None:
        if header is None:
            return None
        try:
            filled = header.format(domain="x")
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError(f"got {header!r}; the only name in braces that can be filled in is {{domain}}") from None
        if not filled.strip():
            raise ValueError("the header is empty")
        return header

    @field_validator("questions")
    @classmethod
    def _names_differ(cls, files: tuple[QuestionFileSettings, ...]) -> tuple[QuestionFileSettings, ...]:
        stems = [one.file.stem for one in files]
        if twice := [one.file for one in files if stems.count(one.file.stem) > 1]:
            raise ValueError(
                f"{len(twice)} files are named {twice[0].stem!r}; their names tell them apart in the results: rename one"
            )
        return files
