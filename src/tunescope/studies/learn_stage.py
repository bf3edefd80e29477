"""One stage: which examples it is tuned on, where its weights begin, and which test examples are answered after it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunescope.config import Arm, Config
from tunescope.data import Example
from tunescope.models import Loaded
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Selection
from tunescope.studies.bench import Bench
from tunescope.studies.choose import Choice
from tunescope.studies.learn_onto import Earlier
from tunescope.studies.learn_stream import Stage, Stream
from tunescope.studies.mask_files import mask_of, mask_path
from tunescope.studies.progress import Progress
from tunescope.studies.setup import choose_once, write_layers


def tuning_bench(bench: Bench, learns: Sequence[str], repeated: Mapping[str, Sequence[Example]]) -> Bench:
    """Returns a bench whose training examples are those of some tasks, and what is repeated of others.

    Held out are examples of the learned tasks alone: of the earlier ones there is only what was kept, and all of that may be repeated.

    Args:
        bench: the whole study.
        learns: tasks with all their examples.
        repeated: earlier task -> its repeated examples.
    """
    tasks = []
    for task in bench.inputs.tasks:
        if task.name in learns:
            tasks.append(task)
        elif repeated.get(task.name):
            tasks.append(dataclasses.replace(task, train=tuple(repeated[task.name]), validation=()))
    return dataclasses.replace(bench, inputs=dataclasses.replace(bench.inputs, tasks=tuple(tasks)))


def measuring_bench(bench: Bench, tasks: Sequence[str], *, timed: bool = False, guard: bool = True) -> Bench:
    """Returns a bench that measures some tasks, in their order; single requests are timed only where asked."""
    by_name = {task.name: task for task in bench.inputs.tasks}
    inputs = dataclasses.replace(bench.inputs, tasks=tuple(by_name[name] for name in tasks))
    if not guard:
        inputs = dataclasses.replace(inputs, guard=())
    config = bench.config
    if not timed:
        quiet = config.evaluation.model_copy(update={"latency_requests": 0})
        config = config.model_copy(update={"evaluation": quiet})
    return dataclasses.replace(bench, config=config, inputs=inputs)


def what_moves(
    bench: Bench, loaded: Loaded, stream: Stream, earlier: Earlier | None, progress: Progress
) -> tuple[str, Selection]:
    """Returns what moves at every stage, and the arm that its mask is known by; ``layers.json`` says it.

    On a run that tuned before, the same weights go on. Otherwise it is chosen as in a proof of concept, on the first stage's tasks alone:
    of later ones nothing is known then.
    """
    if earlier is not None:
        if not bench.run.has("layers.json"):
            write_layers(bench.run, Choice([], {earlier.arm: earlier.selection}))
        if earlier.selection.method == "sparse" and not mask_path(bench.run, earlier.arm).is_file():
            _copy(mask_path(earlier.run, earlier.arm), mask_path(bench.run, earlier.arm))
        mask_of(bench.run, earlier.arm, earlier.selection)
        return earlier.arm, earlier.selection
    arm = bench.config.replay.arm
    first = tuning_bench(bench, stream.stages[0].learns, {})
    return arm, choose_once(first, loaded, progress)[arm]


def arms_of(config: Config, earlier: Earlier | None) -> tuple[Arm, ...]:
    """Returns the arms for the checks and the choice: what is tuned, and what it takes its budget from."""
    arm = Arm(config.replay.arm)
    if earlier is not None:
        return (Arm.FULL,) if earlier.selection.whole_model else (Arm.LORA_ALL,)
    return (Arm.SELECTED, arm) if arm == Arm.TOP_THIRD else (arm,)


def give_mask(bench: Bench, arm: str, selection: Selection, stage: str) -> None:
    """Puts the mask of sparse entries where the stage looks for it."""
    if selection.method == "sparse" and not mask_path(bench.run, stage).is_file():
        _copy(mask_path(bench.run, arm), mask_path(bench.run, stage))


def weights_before(bench: Bench, stream: Stream, stage: Stage, earlier: Earlier | None) -> Path | None:
    """Returns the weights with which a stage begins: those of the stage before, of the earlier run, or None for the base model."""
    place = stream.stages.index(stage)
    if place:
        return bench.run.path / "weights" / stream.stages[place - 1].arm
    return earlier.weights if earlier is not None else None


def remove_weights(run: RunFolder, stage: str) -> None:
    """Removes weights, and a mask, that a later stage has replaced."""
    folder = run.path / "weights" / stage
    gone = folder.with_name(f".{stage}.old")
    shutil.rmtree(gone, ignore_errors=True)  # what a kill has left
    if folder.is_dir():  # renamed first: under its own name there is never half a folder
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    mask_path(run, stage).unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """Copies a file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, scratch)
    scratch.replace(target)
