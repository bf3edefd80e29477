"""From settings to what is asked: read the files of questions, offer choices, set demonstrations aside, refuse leakage."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunescope import knowledge
from tunescope.config import Config, QuestionFileSettings
from tunescope.data import (
    ChatFormat,
    DataReport,
    Example,
    FileSummary,
    QuestionRow,
    QuestionsRead,
    normalise,
    read_file,
    read_questions,
)
from tunescope.errors import ConfigError, DataError
from tunescope.evaluate import FewShot
from tunescope.knowledge import FreeForm, Question
from tunescope.knowledge.questions import overlaps, shuffled
from tunescope.runs.records import Finding

ROLES = ("homo", "in_domain", "out_of_domain")
DEMONSTRATIONS = "demonstrations"
GENERAL = "general"
_ASK_SEED = 0  # the same questions for every seed of a study, so that its runs can be compared


@dataclass(frozen=True)
class Asked:
    """Everything that was read.

    Attributes:
        questions: role -> what is asked, in a fixed order; roles without questions are left out.
        shown: domain -> demonstrations.
        general: general instruction data.
        report: what was found in the files.
        files: path as shown -> sha256.
        lettered: choices are shown with letters; False where answers are judged by their text.
        other_type: ids of free-form questions that got a wrong answer of another type than the right one.
    """

    questions: Mapping[str, tuple[Question, ...]]
    shown: Mapping[str, tuple[Question, ...]]
    general: tuple[Example, ...]
    report: DataReport
    files: Mapping[str, str]
    lettered: bool = True
    other_type: tuple[str, ...] = ()

    @property
    def everything(self) -> list[Question]:
        """Questions of all roles."""
        return [question for questions in self.questions.values() for question in questions]

    @property
    def domains(self) -> list[str]:
        """Names of the domains that are asked, sorted."""
        return sorted({question.domain for question in self.everything})


def header_of(config: Config, domain: str) -> str:
    """Returns the first line of a domain's prompts; an underscore in its name is read as a space."""
    return config.knowledge.first_line.format(domain=domain.replace("_", " "))


def form_of(config: Config, asked: Asked, domain: str) -> FewShot:
    """Returns what all questions of a domain share in the probe."""
    return FewShot(header_of(config, domain), tuple(asked.shown.get(domain, ())), lettered=asked.lettered)


def read_asked(config: Config) -> Asked:
    """Reads and checks all files of questions and of general data; needs no model.

    Raises:
        ConfigError: there are no questions.
        DataError: a file cannot be used, demonstrations are also asked, a domain has too few questions, or a role repeats another one.
    """
    settings = config.knowledge
    if not any(one.role in ROLES for one in settings.questions):
        raise ConfigError(
            "knowledge.questions names no file with questions to ask; add at least one, for example  knowledge: {questions: [{file: "
            "questions.jsonl}]}"
        )
    read = [(one, _read(one)) for one in settings.questions]
    _refuse(finding for _, found in read for finding in found.errors)
    made, other_type = _questions(config, read)
    by_role = {role: _of_role(made, read, role) for role in (*ROLES, DEMONSTRATIONS)}
    kept, findings = _without_repeats(by_role)
    shown = _demonstrations(config, by_role[DEMONSTRATIONS], kept)
    apart = {question.id for questions in shown.values() for question in questions}
    questions = {
        role: _some(config, [q for q in kept[role] if q.id not in apart], role) for role in ROLES if kept[role]
    }
    if empty := [role for role, left in questions.items() if not left]:
        raise DataError(
            f"role {empty[0]}: every question is shown as a demonstration, so nothing is left to ask; add questions, name a file with role "
            "demonstrations, or lower knowledge.demonstrations"
        )
    general, summaries, files = _general(config)
    report = DataReport(
        files=(*(_summary(one, found, questions, shown) for one, found in read), *summaries),
        label_counts={},
        findings=(*(finding for _, found in read for finding in found.findings), *findings),
    )
    return Asked(
        questions,
        shown,
        tuple(general),
        report,
        {found.path: found.sha256 for _, found in read} | files,
        settings.ask == "letters",
        other_type,
    )


def check_texts(asked: Asked, chat: ChatFormat) -> None:
    """Refuses questions that hold a control token of the model.

    Raises:
        DataError: one line per question.
    """
    problems = []
    for question in [*asked.everything, *(q for shown in asked.shown.values() for q in shown)]:
        marker = next(
            (m for text in (question.text, question.context, *question.choices) if (m := chat.control_token_in(text))),
            None,
        )
        if marker:
            problems.append(
                f"question {question.id!r} contains {marker!r}, a control token of this model; it would end the turn inside the question: "
                "remove or rewrite it"
            )
    if problems:
        raise DataError(problems)


def _read(one: QuestionFileSettings) -> QuestionsRead:
    columns = {str(field): column for field, column in one.columns.items()} if one.columns else None
    return read_questions(one.file, domain=one.domain, columns=columns, shown_as=shown_path(one.file))


def _questions(
    config: Config, read: Sequence[tuple[QuestionFileSettings, QuestionsRead]]
) -> tuple[dict[str, Question], tuple[str, ...]]:
    """All questions by their id in the study, the free-form ones with choices."""
    settings = config.knowledge
    made: dict[str, Question] = {}
    free: list[FreeForm] = []
    order: list[str] = []
    for one, found in read:
        for row in found.questions:
            name = _identifier(one, row)
            order.append(name)
            if row.choices:
                made[name] = Question(name, row.domain, row.question, row.choices, row.gold, row.context, one.file.stem)
            else:
                free.append(
                    FreeForm(
                        name,
                        row.domain,
                        row.question,
                        row.answers,
                        row.context,
                        one.file.stem,
                        distractors=row.alternatives,
                    )
                )
    other_type: tuple[str, ...] = ()
    if free:
        offered = knowledge.to_choices(free, n_choices=settings.distractors + 1, seed=_ASK_SEED)
        made |= {question.id: question for question in offered.questions}
        other_type = offered.other_type
    return {name: made[name] for name in order}, other_type


def _identifier(one: QuestionFileSettings, row: QuestionRow) -> str:
    """Id in the study: ids are unique in a file, names of files in the settings."""
    return f"{one.file.stem}/{row.id}"


def _of_role(
    made: Mapping[str, Question], read: Sequence[tuple[QuestionFileSettings, QuestionsRead]], role: str
) -> list[Question]:
    return [made[_identifier(one, row)] for one, found in read if one.role == role for row in found.questions]


def _without_repeats(by_role: Mapping[str, Sequence[Question]]) -> tuple[dict[str, list[Question]], list[Finding]]:
    """Leaves questions out that stand in an earlier role too: a test of what was tuned on is none."""
    kept: dict[str, list[Question]] = {}
    findings: list[Finding] = []
    seen: list[Question] = []
    for role in ROLES:
        questions = by_role[role]
        again = {first.id: other.id for first, other in overlaps(questions, seen)} if seen and questions else {}
        if questions and len(again) == len(questions):
            raise DataError(
                f"role {role}: all {len(questions)} questions also stand in another role, so it tests nothing of its own; give it other questions"
            )
        findings += [
            Finding(
                "leakage",
                "warning",
                name.partition("/")[0],
                None,
                f"question {name!r} is also {other!r}; it is left out of {role}",
            )
            for name, other in again.items()
        ]
        kept[role] = [question for question in questions if question.id not in again]
        seen += kept[role]
    return kept, findings


def _demonstrations(
    config: Config, pool: Sequence[Question], asked: Mapping[str, Sequence[Question]]
) -> dict[str, tuple[Question, ...]]:
    """Demonstrations per domain: from their own files, or from the questions, which are then not asked."""
    count, every = config.knowledge.demonstrations, [q for questions in asked.values() for q in questions]
    if count == 0:
        return {}
    if not pool:
        return knowledge.draw_demonstrations(every, count=count, seed=_ASK_SEED)
    knowledge.check_demonstrations(pool, every)
    domains = {question.domain for question in every}
    usable = [question for question in pool if question.domain in domains]
    if lacking := sorted(domains - {question.domain for question in usable}):
        raise DataError(
            f"domain {domain!r}: no file of role demonstrations has a question of it, {count} are wanted; add some, or set knowledge.demonstrations=0"
            for domain in lacking
        )
    return knowledge.draw_demonstrations(usable, count=count, seed=_ASK_SEED)


def _some(config: Config, questions: Sequence[Question], role: str) -> tuple[Question, ...]:
    """A random order that depends on the ids alone, cut to the limit per domain."""
    ordered = shuffled(questions, _ASK_SEED, f"asked in {role}")
    limit = config.knowledge.max_questions
    kept = []
    for domain in sorted({question.domain for question in ordered}):
        kept += [question for question in ordered if question.domain == domain][:limit]
    return tuple(kept)


def _general(config: Config) -> tuple[list[Example], list[FileSummary], dict[str, str]]:
    """General examples that fit, each text once."""
    reads = [read_file(path, task=GENERAL, shown_as=shown_path(path)) for path in config.knowledge.general]
    _refuse(finding for found in reads for finding in found.errors)
    examples: dict[tuple[str, str], Example] = {}
    for place, found in enumerate(reads):
        for example in found.examples:
            key = normalise(example.prompt_text), normalise(example.targets[0])
            examples.setdefault(key, dataclasses.replace(example, id=f"{place}/{example.id}"))
    summaries = [FileSummary(f.path, GENERAL, "train", f.format, f.n_rows, len(f.examples), f.sha256) for f in reads]
    return list(examples.values()), summaries, {found.path: found.sha256 for found in reads}


def _summary(
    one: QuestionFileSettings,
    found: QuestionsRead,
    questions: Mapping[str, Sequence[Question]],
    shown: Mapping[str, Sequence[Question]],
) -> FileSummary:
    ids = {_identifier(one, row) for row in found.questions}
    groups = shown if one.role == DEMONSTRATIONS else questions
    used = sum(question.id in ids for group in groups.values() for question in group)
    role = "out_of_domain" if one.role == "out_of_domain" else "test"
    return FileSummary(found.path, "knowledge", role, "questions", found.n_rows, used, found.sha256)  # type: ignore[arg-type]


def _refuse(errors: Iterable[Finding]) -> None:
    problems = [f"{f.file}{f':{f.line}' if f.line else ''}: {f.message} [{f.code}]" for f in errors]
    if problems:
        raise DataError(problems)


def shown_path(path: Path) -> str:
    """Returns a path as a person would write it: relative to the working directory where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) and not relative.startswith("../../..") else str(path)
