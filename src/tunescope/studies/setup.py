"""The beginning that all studies share: data, model, what both are, and what each arm moves."""

from __future__ import annotations

import dataclasses
import getpass
from collections.abc import Sequence
from typing import Any

from tunescope import evaluate, models
from tunescope.config import Config
from tunescope.data import ChatFormat
from tunescope.errors import DataError, IntegrityError
from tunescope.models import Loaded, Located
from tunescope.runs import ledger
from tunescope.runs.environment import describe_environment
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import LayerScores, Selection
from tunescope.studies.arms import Bench, choose, test_groups
from tunescope.studies.inputs import Inputs, encode_inputs, read_inputs, refuse
from tunescope.studies.machine import pick_device, set_threads
from tunescope.studies.progress import Progress


@dataclasses.dataclass(frozen=True)
class Checked:
    """Data and model that passed all checks; nothing was written yet."""

    config: Config
    inputs: Inputs
    located: Located
    loaded: Loaded
    chat: ChatFormat
    device: str
    threads: int


def check(config: Config, progress: Progress, *, needs_test: bool = True) -> Checked:
    """Reads and checks the data and loads the model, before a run folder is made: bad input leaves nothing behind.

    Raises:
        DataError: the data has errors, or there is nothing to test on.
        ModelError: the model cannot be used.
    """
    progress.stage("read the data", len(config.tasks))
    inputs = read_inputs(config, done=lambda _name: progress.advance())
    refuse(inputs.report)
    if needs_test and not any(group.role == "in_domain" for group in test_groups(inputs)):
        raise DataError(
            "no task has a `test` file with examples, so nothing could be decided; add one, or use `tunescope tune`"
        )
    progress.stage("load the model")
    device, threads = pick_device(config.device), set_threads(config.threads)
    located = models.locate(config.model, revision=config.revision)
    loaded = models.load_located(located, dtype=config.dtype, device=device)
    chat = ChatFormat(loaded.tokenizer)
    inputs = encode_inputs(config, inputs, chat)
    refuse(inputs.report)
    return Checked(config, inputs, located, loaded, chat, device, threads)


def begin(
    checked: Checked, folder: RunFolder, command: str, progress: Progress, *, overrides: Sequence[str] = ()
) -> Bench:
    """Writes ``data.json`` and ``environment.json``; on resume compares with them instead.

    The data that was accepted, and the settings that were replaced on the command line, go to the ledger.

    Raises:
        IntegrityError: on resume, data or weights are not those of the first time.
    """
    config, inputs, loaded = checked.config, checked.inputs, checked.loaded
    bench = Bench(config, checked.located, inputs, checked.chat, checked.device, folder)
    if folder.has("environment.json"):
        _check_unchanged(folder.read_json("environment.json"), inputs, loaded, checked.threads, progress)
        return bench
    folder.write_json("data.json", inputs.report.to_dict())
    facts = {
        "threads": checked.threads,
        "device": checked.device,
        "dtype": config.dtype,
        "seed": config.seed,
        "command": command,
        "model": dataclasses.asdict(loaded.info),
        "files": inputs.files,
        "score_batch_noise": _score_noise(bench, loaded),
        "started": folder.read_json("status.json")["started"],
    }
    folder.write_json("environment.json", describe_environment() | facts)
    if overrides:
        record(folder, "overrides", {"settings": list(overrides)})
    warnings = sum(finding.severity == "warning" for finding in inputs.report.findings)
    record(folder, "data accepted", {"files": inputs.files, "warnings": warnings})
    return bench


def choose_once(bench: Bench, loaded: Loaded, progress: Progress) -> dict[str, Selection]:
    """Decides what each tuned arm moves and writes ``layers.json``; on resume reads it back."""
    if bench.run.has("layers.json"):
        saved = bench.run.read_json("layers.json")["selections"]
        return {arm: Selection.from_dict(values) for arm, values in saved.items()}
    scores, selections = choose(bench, loaded, progress)
    write_layers(bench.run, scores, selections)
    return selections


def write_layers(folder: RunFolder, scores: list[LayerScores], selections: dict[str, Selection]) -> None:
    """Writes ``layers.json``."""
    values = {
        "scores": [s.to_dict() for s in scores],
        "selections": {arm: s.to_dict() for arm, s in selections.items()},
    }
    folder.write_json("layers.json", values)


def record(folder: RunFolder, event: str, details: dict[str, Any]) -> None:
    """Adds a decision to the run's ledger, once: a resumed run does not decide again what it already decided."""
    path = folder.path / "ledger.jsonl"
    if any(row["event"] == event and row["details"] == details for row in folder.read_jsonl("ledger.jsonl")):
        return
    ledger.append(path, event, details, actor=getpass.getuser(), key=ledger.key_from_environment())


def _check_unchanged(before: dict[str, Any], inputs: Inputs, loaded: Loaded, threads: int, progress: Progress) -> None:
    changed = [path for path, digest in inputs.files.items() if before["files"].get(path) != digest]
    changed += [path for path in before["files"] if path not in inputs.files]
    problems = [
        f"{path}: changed since this run began; put it back, or start again in another output_dir" for path in changed
    ]
    if before["model"]["sha256"] != loaded.info.sha256:
        problems.append(
            f"{loaded.info.folder}: the weights changed since this run began; put them back, or start again in another output_dir"
        )
    if problems:
        raise IntegrityError(problems)
    if before["threads"] != threads:
        progress.note(
            f"this run began with {before['threads']} CPU threads and continues with {threads}: results may differ in rounding"
        )


def _score_noise(bench: Bench, loaded: Loaded) -> float | None:
    """How much a log-probability depends on its batch, in nats, on eight examples of the first task with labels; None without one."""
    for task in bench.inputs.tasks:
        examples = (task.test or task.train)[:8]
        if task.labels is not None and len(examples) > 1:
            prompts = [bench.chat.encode(e).prompt_ids for e in examples]
            return evaluate.batch_noise(loaded.model, prompts, [bench.chat.target_ids(label) for label in task.labels])
    return None
