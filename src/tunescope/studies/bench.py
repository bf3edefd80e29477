"""What every arm of a run shares, and the files it is tested on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tunescope import engine
from tunescope.config import Arm, Config
from tunescope.data import ChatFormat, Example
from tunescope.models import Loaded, Located
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Role
from tunescope.studies.base_model import load_base
from tunescope.studies.cluster import Cluster
from tunescope.studies.demonstrations import encode_training
from tunescope.studies.inputs import GUARD, Inputs

TUNED = (Arm.SELECTED, Arm.RANDOM, Arm.TOP_THIRD, Arm.LORA_ALL, Arm.FULL)


@dataclass(frozen=True)
class Bench:
    """What all arms share.

    Attributes:
        config: the settings.
        located: the base model's files; every arm loads its own copy, so that none inherits from another.
        inputs: tasks and guard set.
        chat: chat format of the tokenizer.
        device: torch device.
        run: the run folder.
        cluster: where independent pieces are done; None = one after the other in this process.
    """

    config: Config
    located: Located
    inputs: Inputs
    chat: ChatFormat
    device: str
    run: RunFolder
    cluster: Cluster | None = None

    def load(self) -> Loaded:
        """Returns a fresh copy of the base model."""
        return load_base(self.config, self.located, self.device)

    def checks(self, n_train: int) -> engine.Checks:
        """Returns when to look at the held-out slice."""
        tuning = self.config.tuning
        per_epoch = -(-n_train // tuning.batch_size)
        every = max(1, per_epoch // tuning.checks_per_epoch)
        validation = encode_training(self.config, self.inputs.tasks, self.chat, self.inputs.validation)
        return engine.Checks(validation, every, tuning.patience, self.config.evaluation.batch_tokens)


@dataclass(frozen=True)
class Group:
    """Test examples of one file.

    Attributes:
        task: name of the task.
        role: in_domain or out_of_domain, or guard.
        dataset: stem of the file.
        examples: in a fixed order.
    """

    task: str
    role: Role
    dataset: str
    examples: tuple[Example, ...]


def test_groups(inputs: Inputs) -> list[Group]:
    """Returns all test files as groups, task by task, the guard set last."""
    groups = []
    for task in inputs.tasks:
        if task.test:
            groups.append(Group(task.name, "in_domain", Path(task.test[0].file).stem, task.test))
        groups += [
            Group(task.name, "out_of_domain", name, examples)
            for name, examples in task.out_of_domain.items()
            if examples
        ]
    if inputs.guard:
        groups.append(Group(GUARD, "guard", Path(inputs.guard[0].file).stem, inputs.guard))
    return groups


def remove_scratch(run: RunFolder) -> None:
    """Removes what only a resume needs, once everything is in the run's own files."""
    shutil.rmtree(run.path / "arms", ignore_errors=True)
