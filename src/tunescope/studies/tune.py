"""Tune one arm and save its weights; no comparison, no verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tunescope import config as settings
from tunescope.config import Config
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast, Selection
from tunescope.studies import approve
from tunescope.studies.bench import remove_scratch
from tunescope.studies.choose import choose
from tunescope.studies.cluster import cluster_of
from tunescope.studies.conclude import write_costs
from tunescope.studies.forecast import forecast_arms
from tunescope.studies.machine import release_memory
from tunescope.studies.many_arms import ArmWork, do_arms
from tunescope.studies.plan import only, settle
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.search import RESULT, search
from tunescope.studies.setup import begin, check, choose_once, finished, record, settings_text
from tunescope.studies.specialist_cache import scored_with


def run(
    config: Config,
    arm: str,
    *,
    trials: int | None = None,
    command: str = "",
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Tunes one arm in ``config.output_dir``; weights go to ``weights/<arm>``.

    Args:
        config: the settings; `arms` is ignored.
        arm: selected, random, top-third, lora-all or full.
        trials: look for the settings with the lowest held-out loss first, in this many trials; on `resume`, None goes on with as many as were
            wanted. See `tunescope.studies.search`.
        command: command line, for the record.
        overrides: settings replaced on the command line, for the ledger.
        resume: continue an interrupted run.
        progress: told what happens.

    Raises:
        ConfigError: the arm is not one that is tuned, or the search cannot be done.
        ApprovalError: the settings want an approval of the plan, which is written, and nobody approved yet.
        TunescopeError: see `tunescope.errors`; what was done up to then is kept.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    config = only(config, arm)
    text, study = settings_text(config, resume=resume), "tune"
    RunFolder.check_free(config.output_dir, text, study=study, resume=resume)
    if resume and (whole := finished(config.output_dir)):
        return whole
    approve.gate(RunFolder(config.output_dir), required=config.approval == "required")
    checked = check(config, progress, needs_test=False)
    with contextlib.ExitStack() as open_until_done:
        cluster = open_until_done.enter_context(
            cluster_of(config, progress, checked.located, shared=scored_with(config))
        )
        folder = RunFolder.create(config.output_dir, text, study=study, command=command, resume=resume)
        open_until_done.enter_context(folder.locked())
        bench = begin(checked, folder, command, progress, overrides=overrides, cluster=cluster)
        selections = choose_once(bench, checked.loaded, progress)
        del checked
        release_memory()
        folder.set_status("running", stage="plan")
        settled = settle(bench, [arm], selections, progress, started=started)
        seconds = settled.forecasts[0].tuning_seconds
        trials = trials or (folder.read_json(RESULT)["wanted_trials"] if folder.has(RESULT) else 0)
        progress.plan({f"{arm}: search": seconds * trials} | {f"{arm}: tune": seconds})
        if trials:
            folder.set_status("running", stage=f"arm {arm}: search")
            found = search(bench, arm, settled.selections[arm], trials, progress)
            bench = dataclasses.replace(bench, config=found)
            record(folder, "search", {"trials": trials, "best": folder.read_json(RESULT)["best"]["values"]})
        cost = do_arms([ArmWork(bench, arm, settled.selections[arm], measured=False)], progress)[0]
        if trials:
            cost = dataclasses.replace(cost, learning_rate_why=f"lowest held-out loss of {trials} trials")
        write_costs(bench, settled.forecasts, [cost], settled.preparation_seconds)
        remove_scratch(folder)
        folder.set_status("done", stage="done")
    return folder


def preview(config: Config, arm: str, progress: Progress | None = None) -> tuple[list[Forecast], dict[str, Selection]]:
    """What `run` would do and cost; keeps nothing."""
    progress = progress or Silent()
    config = only(config, arm)
    with tempfile.TemporaryDirectory(prefix="tunescope-dry-run-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", settings.dump(config), study="dry-run", command="")
        checked = check(config, progress, needs_test=False)
        bench = begin(checked, folder, "", progress)
        selections = choose(bench, checked.loaded, progress).selections
        return forecast_arms(bench, [arm], selections, progress), {arm: selections[arm]}
