"""Make a layer map: where a task lives in the model, before any money is spent or after tuning."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tunescope import config as settings
from tunescope import engine
from tunescope.config import Arm, Config
from tunescope.errors import IntegrityError
from tunescope.runs.folder import RunFolder
from tunescope.studies.bench import remove_scratch
from tunescope.studies.cluster import cluster_of
from tunescope.studies.layer_map import layer_map, prompts_of
from tunescope.studies.map_causal import windows_of
from tunescope.studies.map_conclude import MapResult
from tunescope.studies.map_forecast import MapForecast, forecast_map
from tunescope.studies.map_models import check_tuned, hash_of
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.setup import Checked, begin, check, finished, record, settings_text
from tunescope.studies.specialist_cache import shared_by

__all__ = ["MapForecast", "MapResult", "layer_map", "preview", "run"]

SCRATCH = "arms/map"


def run(
    config: Config,
    *,
    command: str = "",
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Makes the map in ``config.output_dir`` and writes it to ``layers.json``; continues there with ``resume=True``.

    Args:
        config: the settings; `arms` is ignored.
        command: command line, for the record.
        overrides: settings replaced on the command line, for the ledger.
        resume: continue an interrupted map: tasks that were read are not read again, specialists go on from their checkpoint.
        progress: told what happens.

    Returns:
        The finished run folder; report and pictures are made from it by `tunescope.report`.

    Raises:
        TunescopeError: see `layer_map`; what was done up to then is kept.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    text, study = settings_text(config, resume=resume), "map"
    RunFolder.check_free(config.output_dir, text, study=study, resume=resume)
    if resume and (whole := finished(config.output_dir)):
        return whole
    checked = _check(config, progress)
    with contextlib.ExitStack() as open_until_done:
        cluster = open_until_done.enter_context(cluster_of(config, progress, checked.located, shared=shared_by(config)))
        folder = RunFolder.create(config.output_dir, text, study=study, command=command, resume=resume)
        open_until_done.enter_context(folder.locked())
        bench = begin(checked, folder, command, progress, overrides=overrides, cluster=cluster)
        folder.set_status("running", stage="map")
        tuned = config.map.tuned if config.map.mode != "base" else None
        _refuse_other_weights(folder, {} if tuned is None else {"path": str(tuned), "sha256": hash_of(tuned)})
        with engine.Meter(bench.device) as meter:
            found = layer_map(bench, checked.loaded, progress, scratch=folder.path / SCRATCH)
        folder.write_json(
            "layers.json",
            {"scores": [row.to_dict() for row in found.scores], "selections": {}, "map": found.facts},
        )
        bands = found.bands
        record(
            folder,
            "map made",
            {
                "mode": config.map.mode,
                "tasks": len(found.facts["tasks"]),
                "prompts": sum(task["n_prompts"] for task in found.facts["tasks"]),
                "bands": bands.why if bands is not None else None,
                "boundaries": list(bands.boundaries) if bands is not None and bands.boundaries is not None else None,
            },
        )
        folder.write_json(
            "costs.json",
            {
                "forecast": [],
                "actual": [],
                "total_seconds": max(time.perf_counter() - started, sum(found.facts["seconds"].values())),
                "peak_memory_bytes": meter.peak_memory_bytes,
                "base_model_bytes": checked.loaded.info.weight_bytes,
            },
        )
        remove_scratch(folder)
        folder.set_status("done", stage="done")
    return folder


def preview(config: Config, progress: Progress | None = None) -> MapForecast:
    """What `run` would do and how long it would take: reads the data, times a few prompts, keeps nothing."""
    progress = progress or Silent()
    with tempfile.TemporaryDirectory(prefix="tunescope-dry-run-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", settings.dump(config), study="dry-run", command="")
        checked = _check(config, progress)
        bench = begin(checked, folder, "", progress)
        return forecast_map(bench, checked.loaded, prompts_of(config, checked.inputs, checked.chat), progress)


def _check(config: Config, progress: Progress) -> Checked:
    """Everything that can be refused before a run folder is made."""
    checked = check(config.model_copy(update={"arms": (Arm.NOTHING,)}), progress, needs_test=False)
    prompts_of(config, checked.inputs, checked.chat)
    windows_of(config, checked.loaded.info.n_layers)
    if config.map.tuned is not None and config.map.mode != "base":
        check_tuned(checked.loaded, config.map.tuned)  # `layer_map` says what it could not find out
    return checked


def _refuse_other_weights(folder: RunFolder, compares: dict[str, str]) -> None:
    """On resume the tuned model must be that of the first time; the ledger knows."""
    if not compares:
        return
    before = next(
        (row["details"] for row in folder.read_jsonl("ledger.jsonl") if row["event"] == "compares with"), compares
    )
    if before["sha256"] != compares["sha256"]:
        raise IntegrityError(
            f"{compares['path']}: the tuned weights changed since this map began; put them back, or start again in another output_dir"
        )
    record(folder, "compares with", compares)
