"""The nouns of data: `Example`, `Task`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    r"""One instruction with its right answer(s).

    Attributes:
        id: unique within its file.
        task: name of its task.
        instruction: what is to be done; may be empty if `input` says it all.
        input: the material to work on; may be empty.
        targets: the right answers; training uses the first, scoring the best match.
        system: system message, or None for the template's own.
        history: earlier turns as (role, text), role being ``user`` or ``assistant``; no loss on them.
        attributes: extra columns the user named (site, language ...).
        file: the file as the user wrote it.
        line: 1-based line, or row number.

    Example:
        >>> Example("1", "routing", "Which desk?", "The door is stuck.", ("facility",)).prompt_text
        'Which desk?\n\nThe door is stuck.'
    """

    id: str
    task: str
    instruction: str
    input: str
    targets: tuple[str, ...]
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    line: int | None = None

    @property
    def prompt_text(self) -> str:
        """The last user turn: instruction, blank line, input (either may be missing)."""
        return "\n\n".join(part for part in (self.instruction, self.input) if part)

    def messages(self, demonstrations: Sequence[Example] = ()) -> list[Message]:
        """Returns the chat up to the point where the model answers; demonstrations come first, as finished turns."""
        chat: list[Message] = []
        if self.system is not None:
            chat.append({"role": "system", "content": self.system})
        for shown in demonstrations:
            chat += [{"role": role, "content": text} for role, text in shown.history]
            chat.append({"role": "user", "content": shown.prompt_text})
            chat.append({"role": "assistant", "content": shown.targets[0]})
        chat += [{"role": role, "content": text} for role, text in self.history]
        chat.append({"role": "user", "content": self.prompt_text})
        return chat


@dataclass(frozen=True)
class Task:
    """A task with its examples by role.

    Attributes:
        name: short name.
        family: group of tasks that are alike.
        metric: name of the metric (see `tunescope.config.Metric`).
        labels: the allowed answers, or None for free text.
        train: training examples; `validation` is already taken out.
        validation: held-out slice of the training examples.
        test: in-domain test examples.
        out_of_domain: name of the data set -> examples.
        set_aside: file -> its first rows, kept out of tuning and scoring to be shown as demonstrations.
    """

    name: str
    family: str
    metric: str
    labels: tuple[str, ...] | None = None
    train: tuple[Example, ...] = ()
    validation: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()
    out_of_domain: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    set_aside: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Hash (16 hex digits) of what is scored: test examples in any order, labels, metric.

        Scores may only be compared within one version.
        """
        groups = [("", self.test), *self.out_of_domain.items()]
        rows = sorted(
            json.dumps([name, e.instruction, e.input, e.targets, e.system, e.history], ensure_ascii=False)
            for name, examples in groups
            for e in examples
        )
        text = json.dumps([self.metric, self.labels, rows], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
