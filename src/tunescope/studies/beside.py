"""What is asked of an arm beside its test examples: held-out examples for the risk, and other wordings of the instruction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunescope import evaluate
from tunescope.config import Config
from tunescope.data import Example, Task
from tunescope.runs.records import Answer, Role
from tunescope.studies.demonstrations import settings_of

TRAINING = "training.json"
"""Beside saved weights: what they were tuned on."""
_OWN = "{instruction}"

Ask = Callable[[str, Sequence[Example]], list[Answer]]
"""Answers examples of a task, by its name."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """Examples of one test file that are asked again in other wordings.

    Attributes:
        item: the file, without answers.
        start: index of its first example among all test examples, the guard set left out.
        examples: those that are asked again: the first ones of the file as it is scored.
        wordings: per other wording, the same examples.
    """

    item: evaluate.Scored
    start: int
    examples: tuple[Example, ...]
    wordings: tuple[tuple[Example, ...], ...]


class Beside:
    """What is asked of every arm beside its test examples.

    Args:
        config: the settings.
        tasks: the tasks with their examples.

    Attributes:
        count: number of examples, every wording counted.
    """

    def __init__(self, config: Config, tasks: Sequence[Task]) -> None:
        self._config = config
        self.held_out = {task.name: task.validation for task in tasks if task.labels is not None and task.validation}
        self.reworded = _reworded(config, tasks)
        self.count = sum(map(len, self.held_out.values()))
        self.count += sum(len(rows) for asked in self.reworded for rows in asked.wordings)

    def examples(self, task: str) -> list[tuple[Example, ...]]:
        """Returns what is asked in a task, in the groups that are answered together."""
        held_out = [self.held_out[task]] if task in self.held_out else []
        return held_out + [rows for asked in self.reworded if asked.item.task == task for rows in asked.wordings]

    def ask(self, arm: str, own: Sequence[Answer], answer: Ask) -> dict[str, Any]:
        """Asks an arm and returns what its ``measured.json`` keeps of it.

        Args:
            arm: name of the arm.
            own: its answers to all test examples in their order, the guard set left out.
            answer: asks the arm.
        """
        settings = self._config.evaluation
        held_out = [a for task, examples in self.held_out.items() for a in answer(task, examples)]
        found = [
            evaluate.reworded(
                arm,
                asked.item,
                own[asked.start : asked.start + len(asked.examples)],
                [answer(asked.item.task, rows) for rows in asked.wordings],
                seed=self._config.seed,
                n_bootstrap=settings.n_bootstrap,
                confidence=settings.confidence,
            )
            for asked in self.reworded
        ]
        return {"held_out": [a.to_dict() for a in held_out], "reworded": [r.to_dict() for r in found]}


def tuned_on(config: Config, tasks: Sequence[Task]) -> dict[str, Any]:
    """Returns what a tuned arm was tuned on, for `TRAINING`."""
    shown = {task.name: settings_of(config, task.name) for task in tasks if task.train}
    return {
        "tasks": list(shown),
        "examples": {task.name: len(task.train) for task in tasks if task.train},
        "demonstrations": {name: wanted.model_dump(mode="json") for name, wanted in shown.items() if wanted},
        "seed": config.seed,
    }


def _reworded(config: Config, tasks: Sequence[Task]) -> list[Asked]:
    wordings = {task.name: task.paraphrases for task in config.tasks}
    most = config.evaluation.paraphrase_examples
    found, start = [], 0
    for task in tasks:
        files: list[tuple[Role, str, tuple[Example, ...]]] = []
        if task.test:
            files.append(("in_domain", Path(task.test[0].file).stem, task.test))
        files += [("out_of_domain", name, examples) for name, examples in task.out_of_domain.items() if examples]
        for role, dataset, examples in files:
            item = evaluate.Scored(task.name, role, dataset, task.metric, task.labels, (), {})
            chosen = examples[:most]
            others = tuple(
                tuple(dataclasses.replace(e, instruction=text.replace(_OWN, e.instruction)) for e in chosen)
                for text in wordings[task.name]
            )
            if others:
                found.append(Asked(item, start, chosen, others))
            start += len(examples)
    return found
