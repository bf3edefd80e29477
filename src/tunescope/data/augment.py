"""Prompts of training that vary a little from epoch to epoch, so that few examples teach the task and not one wording of it.

What varies is the instruction: its wording, the case of a word or a space in it, and which finished examples stand before it. The
input, earlier turns and the answer never do. Everything is drawn from the seed, the epoch and the example's own name: the order of the
examples, and how many there are, change nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunescope.data.example import Example
from tunescope.errors import DataError

_OWN = "{instruction}"
_WORD = re.compile(r"(?<!\S)[^\W\d_]+(?!\S)")  # between spaces: in `<END>` a change of case could make a control token


@dataclass(frozen=True)
class Augmentation:
    """How prompts vary.

    Attributes:
        seed: of everything that is drawn.
        templates: task -> other wordings of its instruction; ``{instruction}`` in one stands for the example's own.
        demonstrations: a prompt gets from 0 to this many finished examples before it, as many and in an order as drawn.
        noise_fraction: share of the prompts whose instruction gets noise of case or white space.
    """

    seed: int
    templates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    demonstrations: int = 0
    noise_fraction: float = 0.0

    @property
    def varies(self) -> bool:
        """Whether anything varies at all."""
        return bool(any(self.templates.values()) or self.demonstrations or self.noise_fraction)


@dataclass(frozen=True)
class Varied:
    """An example as one epoch reads it.

    Attributes:
        example: with another instruction, perhaps; id, input, history and targets are those it had.
        demonstrations: the finished examples to stand before it.
    """

    example: Example
    demonstrations: tuple[Example, ...] = ()


def vary(example: Example, how: Augmentation, *, epoch: int, pool: Sequence[Example] = ()) -> Varied:
    """Returns the example as an epoch reads it.

    Args:
        example: a training example.
        how: what varies.
        epoch: from 0; the first varies too.
        pool: from where demonstrations are drawn, training examples of the same task; those with the example's id or prompt are passed
            over, since they would give its answer away.

    Returns:
        The varied example; the same for the same seed, epoch, task and id.

    Example:
        >>> example = Example("7", "desk", "Which desk?", "The door is stuck.", ("facility",))
        >>> how = Augmentation(seed=1, templates={"desk": ["Name the desk.", "Task: {instruction}"]})
        >>> [vary(example, how, epoch=epoch).example.instruction for epoch in (1, 2)]
        ['Which desk?', 'Task: Which desk?']
    """
    rng = _generator(how.seed, epoch, example)
    wordings = [_OWN, *how.templates.get(example.task, ())]
    instruction = wordings[rng.integers(len(wordings))].replace(_OWN, example.instruction)
    if rng.random() < how.noise_fraction:
        instruction = noisy(instruction, rng, keep=example.targets)
    shown: tuple[Example, ...] = ()
    if how.demonstrations:
        others = [e for e in pool if e.id != example.id and e.prompt_text != example.prompt_text]
        count = int(rng.integers(how.demonstrations + 1))
        shown = tuple(others[i] for i in rng.permutation(len(others))[:count])
    return Varied(dataclasses.replace(example, instruction=instruction), shown)


def noisy(text: str, rng: np.random.Generator, *, keep: Sequence[str] = ()) -> str:
    r"""Returns a text with the case of one word changed, or with one white space more.

    Args:
        text: an instruction.
        rng: draws what changes.
        keep: texts whose words keep their case, such as the answers that the instruction lists.

    Returns:
        Another text; an empty one stays as it is.

    Example:
        >>> [noisy("Which desk?", np.random.default_rng(seed)) for seed in (0, 1, 2)]
        ['Which desk?\n', 'Which  desk?', 'which desk?']
    """
    if not text.strip():
        return text
    kept = {word.casefold() for other in keep for word in re.findall(r"\w+", other)}
    recased = [
        text[: match.start()] + changed + text[match.end() :]
        for match in _WORD.finditer(text)
        if match.group().casefold() not in kept
        for changed in dict.fromkeys((match.group().lower(), match.group().upper(), match.group().capitalize()))
        if changed != match.group() and changed.casefold() == match.group().casefold()
    ]
    spaces = [text[: match.start()] + " " + text[match.start() :] for match in re.finditer(r"(?<=\S) (?=\S)", text)]
    spaced = [f" {text}", f"{text} ", f"{text}\n", *spaces]
    choices = recased if recased and rng.random() < 0.5 else spaced
    return choices[rng.integers(len(choices))]


def check_templates(examples: Sequence[Example], templates: Sequence[str]) -> None:
    """Refuses a wording that would drop something an example needs.

    A wording without ``{instruction}`` replaces the instruction as a whole. That is right where all examples share one and the input
    holds the case; else it would ask all of them the same.

    Args:
        examples: training examples of one task.
        templates: other wordings of its instruction.

    Raises:
        DataError: one line per wording.

    Example:
        >>> rows = [Example(str(i), "sum", text, "", ("4",)) for i, text in enumerate(["2+2?", "1+3?"])]
        >>> check_templates(rows, ["Add up."])
        Traceback (most recent call last):
        ...
        tunescope.errors.DataError: task 'sum': template 'Add up.' has no {instruction}, but instructions differ ...
    """
    problems = []
    instructions = {e.instruction for e in examples}
    lone = next((e for e in examples if not e.input.strip()), None)
    for template in templates:
        if _OWN in template or not examples:
            continue
        if len(instructions) > 1:
            why = f"instructions differ within the task ({len(instructions)} of them)"
        elif lone is not None:
            why = f"{lone.file}:{lone.line} has no input beside its instruction"
        else:
            continue
        problems.append(
            f"task {examples[0].task!r}: template {template!r} has no {_OWN}, but {why}, so it would be lost; write {_OWN} where it belongs"
        )
    if problems:
        raise DataError(problems)


def _generator(seed: int, epoch: int, example: Example) -> np.random.Generator:
    name = json.dumps([seed, epoch, example.task, example.id])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16]))
