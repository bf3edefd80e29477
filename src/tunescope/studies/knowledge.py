"""What a model knew before tuning, what tuning did to it, and whether it learns from what it does not know."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunescope import config as settings
from tunescope import engine, models
from tunescope.config import Config
from tunescope.data import ChatFormat
from tunescope.errors import IntegrityError
from tunescope.evaluate import check_context, letter_format
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast
from tunescope.studies.base_model import load_base
from tunescope.studies.bench import Bench, remove_scratch
from tunescope.studies.inputs import Inputs
from tunescope.studies.knowledge_after import after, find_tuned
from tunescope.studies.knowledge_forecast import KnowledgeForecast, forecast_knowledge
from tunescope.studies.knowledge_inputs import Asked, check_texts, form_of, read_asked
from tunescope.studies.knowledge_intervene import check_lengths, check_settings, intervene, prepare
from tunescope.studies.knowledge_probe import ask_few_shot, before
from tunescope.studies.knowledge_results import write_results
from tunescope.studies.machine import pick_device, set_threads
from tunescope.studies.map_models import hash_of
from tunescope.studies.number_format import settled
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.setup import Checked, begin, finished, record

__all__ = ["KnowledgeForecast", "preview", "run"]

STUDY = "knowledge"
FOUND = "knowledge.json"
QUESTIONS = "questions.jsonl"


def run(
    config: Config,
    *,
    tuned: Path | None = None,
    intervention: bool = False,
    command: str = "",
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Probes the base in ``config.output_dir``; on request compares a tuned model with it and runs the intervention study.

    A finished run can be continued with `resume` and a further part: nothing that was asked is asked again.

    Args:
        config: the settings; of the tasks nothing is read.
        tuned: folder with tuned weights, or a run with one recommended arm.
        intervention: tune on groups of the questions and compare.
        command: command line, for the record.
        overrides: settings replaced on the command line, for the ledger.
        resume: continue an interrupted run, or add a part to a finished one.
        progress: told what happens.

    Returns:
        The finished run folder; the report is built from it by `tunescope.report`.

    Raises:
        ConfigError: a setting does not allow what is asked for.
        DataError: the questions cannot be used; see `read_asked`.
        IntegrityError: on resume, data, base or tuned weights are not those of the first time.
        TunescopeError: see `tunescope.errors`; what was done up to then is kept.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    text = settings.dump(config)
    RunFolder.check_free(config.output_dir, text, study=STUDY, resume=resume)
    weights = find_tuned(tuned) if tuned is not None else None
    wanted = {"after": weights is not None, "intervention": intervention}
    if resume and (whole := finished(config.output_dir)) and _holds(whole, wanted):
        _refuse_other_weights(whole, weights)
        return whole
    checked, asked = check(config, progress, weights=weights, intervention=intervention)
    folder = RunFolder.create(config.output_dir, text, study=STUDY, command=command, resume=resume)
    with folder.locked():
        bench = begin(checked, folder, command, progress, overrides=overrides)
        _refuse_other_weights(folder, weights)
        write_questions(folder, asked)
        with engine.Meter(bench.device) as meter:
            costs = _parts(bench, checked, asked, weights, intervention, progress)
        spent = folder.read_json("costs.json")["total_seconds"] if folder.has("costs.json") else 0.0
        remove_scratch(folder)
        folder.write_json(
            "costs.json",
            {
                "forecast": [],
                "actual": [cost.to_dict() for cost in costs],
                "total_seconds": spent + time.perf_counter() - started,
                "peak_memory_bytes": meter.peak_memory_bytes,
                "base_model_bytes": folder.read_json("environment.json")["model"]["weight_bytes"],
            },
        )
        folder.set_status("done", stage="done")
    return folder


def preview(
    config: Config, *, tuned: Path | None = None, intervention: bool = False, progress: Progress | None = None
) -> KnowledgeForecast:
    """What `run` would ask and tune and how long it would take: reads the questions, times a few, keeps nothing."""
    progress = progress or Silent()
    weights = find_tuned(tuned) if tuned is not None else None
    with tempfile.TemporaryDirectory(prefix="tunescope-dry-run-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", settings.dump(config), study="dry-run", command="")
        checked, asked = check(config, progress, weights=weights, intervention=intervention)
        bench = begin(checked, folder, "", progress)
        return forecast_knowledge(
            bench, checked.loaded, asked, tuned=weights is not None, intervention=intervention, progress=progress
        )


def check(
    config: Config, progress: Progress, *, weights: Path | None = None, intervention: bool = False
) -> tuple[Checked, Asked]:
    """Reads the questions and loads the model, before a run folder is made: bad input leaves nothing behind."""
    progress.stage("read the questions", 1)
    asked = read_asked(config)
    if intervention:
        check_settings(config, asked)
    progress.advance()
    progress.stage("load the model")
    device, threads = pick_device(config.device), set_threads(config.threads)
    located = models.locate(config.model, revision=config.revision)
    config, measured = settled(config, located, device, threads)
    loaded = load_base(config, located, device, note=progress.note)
    chat = ChatFormat(loaded.tokenizer)
    check_asked(config, asked, loaded, chat)
    if weights is not None:
        engine.check_fits(loaded, weights)
    inputs = Inputs((), (), asked.report, dict(asked.files))
    return Checked(config, inputs, located, loaded, chat, device, threads, measured), fit_general(config, asked, chat)


def check_asked(config: Config, asked: Asked, loaded: models.Loaded, chat: ChatFormat) -> None:
    """Refuses questions that this model cannot be asked, before anything slow.

    Raises:
        DataError: a control token in a text, or prompts longer than the model reads.
        ModelError: the questions are asked by letters, and the tokenizer has no token for each.
    """
    check_texts(asked, chat)
    tokenizer = loaded.tokenizer
    most_choices = max(len(question.choices) for question in asked.everything)
    letters = letter_format(tokenizer, most_choices) if asked.lettered else None
    for domain in asked.domains:
        form = form_of(config, asked, domain)
        if letters is not None:
            form = dataclasses.replace(form, separator=letters.separator, lead=letters.lead)
        check_context(loaded.model, tokenizer, [q for q in asked.everything if q.domain == domain], form)


def fit_general(config: Config, asked: Asked, chat: ChatFormat) -> Asked:
    """Leaves out general examples that are longer than ``data.max_length``."""
    fitting = tuple(e for e in asked.general if len(chat.encode(e)) <= config.data.max_length)
    return dataclasses.replace(asked, general=fitting)


def write_questions(folder: RunFolder, asked: Asked) -> None:
    """Writes ``questions.jsonl``: what is asked and shown, as it was read.

    Raises:
        IntegrityError: the run asked other questions before.
    """
    rows = [{"role": role, **question.to_dict()} for role, some in asked.questions.items() for question in some]
    rows += [{"role": "demonstrations", **question.to_dict()} for some in asked.shown.values() for question in some]
    if folder.has(QUESTIONS) and folder.read_jsonl(QUESTIONS) != rows:
        raise IntegrityError(
            f"{folder.path / QUESTIONS}: the files of questions changed since this run began; put them back, or start again in another output_dir"
        )
    folder.write_jsonl(QUESTIONS, rows)


def _parts(
    bench: Bench, checked: Checked, asked: Asked, weights: Path | None, intervention: bool, progress: Progress
) -> list[Forecast]:
    """Probe, comparison and intervention, each written as soon as it is there; returns what tuning cost."""
    folder, config = bench.run, bench.config
    folder.set_status("running", stage="probe")
    base = ask_few_shot(bench, checked.loaded.model, asked, progress)
    found: dict[str, Any] = folder.read_json(FOUND) if folder.has(FOUND) else {}
    found |= {"before": before(config, asked, base), "asked": facts_of(asked)}
    _write(folder, found)
    if weights is not None and "after" not in found:
        folder.set_status("running", stage="compare with the tuned model")
        found["after"] = after(bench, checked.loaded, asked, base, weights, progress)
        _write(folder, found)
    if intervention and "intervention" not in found:
        folder.set_status("running", stage="intervention")
        prepared = prepare(config, asked, base)
        check_lengths(bench, prepared)
        record(folder, "groups drawn", {"group_size": prepared.facts["group_size"], "sets": list(prepared.sets)})
        found["intervention"] = intervene(bench, checked.loaded, prepared, base, progress)
        _write(folder, found)
    write_results(bench, asked, base)
    judged = found.get("after", {}).get("judgement", {})
    record(
        folder,
        "knowledge",
        {"parts": [k for k in ("before", "after", "intervention") if k in found], "decision": judged.get("decision")},
    )
    return [Forecast.from_dict(cost) for cost in found.get("intervention", {}).get("costs", [])]


def facts_of(asked: Asked) -> dict[str, Any]:
    """Returns what was asked, in numbers."""
    return {
        "questions": {role: len(some) for role, some in asked.questions.items()},
        "domains": asked.domains,
        "lettered": asked.lettered,
        "shown": {domain: [q.id for q in some] for domain, some in asked.shown.items()},
        "other_type": list(asked.other_type),
        "general": len(asked.general),
        "choices": sorted({len(question.choices) for question in asked.everything}),
    }


def _write(folder: RunFolder, found: Mapping[str, Any]) -> None:
    folder.write_json(FOUND, {key: value for key, value in found.items() if key != "schema_version"})


def _holds(folder: RunFolder, wanted: Mapping[str, bool]) -> bool:
    """Whether a finished run has every part that is asked for."""
    found = folder.read_json(FOUND)
    return all(part in found for part, is_wanted in wanted.items() if is_wanted)


def _refuse_other_weights(folder: RunFolder, weights: Path | None) -> None:
    """A run compares with one tuned model; the ledger knows which."""
    if weights is None:
        return
    compares = {"path": str(weights), "sha256": hash_of(weights)}
    rows = folder.read_jsonl("ledger.jsonl")
    before_ = next((row["details"] for row in rows if row["event"] == "compares with"), compares)
    if before_["sha256"] != compares["sha256"]:
        raise IntegrityError(
            f"{weights}: this run compares with {before_['path']}, and these are other weights, or they changed since; give the same ones, or "
            "choose another output_dir"
        )
    record(folder, "compares with", compares)
