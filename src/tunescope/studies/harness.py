"""Runs tasks of lm-evaluation-harness on every arm of a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunescope import models
from tunescope.errors import IntegrityError
from tunescope.evaluate import harness
from tunescope.runs.folder import RunFolder
from tunescope.studies.bench import Bench
from tunescope.studies.measure import tuned_model
from tunescope.studies.progress import Progress
from tunescope.studies.setup import record

RESULT = "lm_eval.json"
_EVENT = "tasks of lm-evaluation-harness"


def check_tasks(tasks: Sequence[Path]) -> None:
    """Refuses what cannot be run, before anything slow.

    Raises:
        ConfigError: the extra is not installed, or a file is no task with local data.
    """
    if tasks:
        harness.check_installed()
    harness.read_tasks(tasks)


def note_tasks(folder: RunFolder, tasks: Sequence[Path]) -> None:
    """Notes in the ledger which tasks are run.

    Raises:
        IntegrityError: on resume, the tasks are not those of the first time.
    """
    mine = {str(path): models.sha256_of(path) for path in tasks}
    before = next((row["details"] for row in folder.read_jsonl("ledger.jsonl") if row["event"] == _EVENT), mine)
    if before != mine:
        raise IntegrityError(
            f"{folder.path}: this run asks other tasks of lm-evaluation-harness ({', '.join(before)}), or they changed since it began; give "
            "the same ones to resume, or choose another output_dir"
        )
    if tasks:
        record(folder, _EVENT, mine)


def run_harness(bench: Bench, arm: str, weights: Path | None, tasks: Sequence[Path], progress: Progress) -> None:
    """Asks one arm all tasks and keeps what it scored; an arm that was asked is not asked again."""
    name = f"arms/{arm}/{RESULT}"
    if not tasks or bench.run.has(name):
        return
    progress.stage(f"{arm}: lm-evaluation-harness")
    loaded = bench.load()
    model = tuned_model(bench, loaded, weights) if weights else loaded.model
    found = harness.run_tasks(model, loaded.tokenizer, tasks, batch_tokens=bench.config.evaluation.batch_tokens)
    bench.run.write_json(name, found)


def write_harness(bench: Bench, arms: Sequence[str], tasks: Sequence[Path]) -> None:
    """Writes ``lm_eval.json``: arm -> results, counts, version."""
    if tasks:
        found = {arm: bench.run.read_json(f"arms/{arm}/{RESULT}") for arm in arms}
        bench.run.write_json(RESULT, {"arms": {arm: _without_version(values) for arm, values in found.items()}})


def _without_version(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name != "schema_version"}
