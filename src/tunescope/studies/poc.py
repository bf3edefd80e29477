"""The proof of concept: check the data, choose what to tune, tune the arms, measure them all the same way, decide."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tunescope import config as settings
from tunescope.config import Config
from tunescope.errors import GateError
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast, Selection
from tunescope.studies import approve
from tunescope.studies.bench import TUNED, remove_scratch
from tunescope.studies.choose import choose
from tunescope.studies.cluster import cluster_of
from tunescope.studies.conclude import write_costs, write_results, write_verdict
from tunescope.studies.data_curve import draw_curve, forecast_curve
from tunescope.studies.forecast import forecast_arms
from tunescope.studies.knowledge_poc import check_knowledge, probe_knowledge
from tunescope.studies.machine import release_memory
from tunescope.studies.many_arms import ArmWork, do_arms, planned
from tunescope.studies.plan import settle
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.serving import check_serving
from tunescope.studies.setup import begin, check, choose_once, finished, settings_text
from tunescope.studies.specialist_cache import scored_with


def run(
    config: Config,
    *,
    command: str = "",
    overrides: Sequence[str] = (),
    resume: bool = False,
    study: str = "poc",
    progress: Progress | None = None,
) -> RunFolder:
    """Runs the whole study in ``config.output_dir``; continues there with ``resume=True``.

    Args:
        config: the settings.
        command: command line, for the record.
        overrides: settings replaced on the command line, for the ledger.
        resume: continue an interrupted run.
        study: name in ``status.json``.
        progress: told what happens.

    Returns:
        The finished run folder; the report is built from it by `tunescope.report`.

    Raises:
        TunescopeError: see `tunescope.errors`; what was done up to then is kept.
        ApprovalError: the settings want an approval of the plan, which is written, and nobody approved yet; repeat with `resume` then.
        GateError: ``gate.fail`` is set and the verdict is not to tune; the run is complete all the same.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    text = settings_text(config, resume=resume)
    RunFolder.check_free(config.output_dir, text, study=study, resume=resume)
    if resume and (whole := finished(config.output_dir)):
        return _through_gate(config, whole)
    approve.gate(RunFolder(config.output_dir), required=config.approval == "required")
    checked = check(config, progress)
    check_knowledge(config, checked)
    check_serving(config, checked.chat, _untuned(config))
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
        settled = settle(bench, [a.value for a in config.arms], selections, progress, started=started)
        curve_seconds = forecast_curve(config, settled.forecasts)
        progress.plan(planned(cluster, settled.forecasts) | ({"curve": curve_seconds} if curve_seconds else {}))

        costs = do_arms([ArmWork(bench, arm, settled.selections.get(arm)) for arm in settled.arms], progress)

        folder.set_status("running", stage="decide")
        progress.stage("compare the arms")
        verdict = write_verdict(bench, write_results(bench, [cost.arm for cost in costs]), costs)
        probe_knowledge(bench, verdict.arm, progress)
        curve_seconds = draw_curve(bench, settled.selections, costs, verdict.arm, progress)
        write_costs(bench, settled.forecasts, costs, settled.preparation_seconds + curve_seconds)
        remove_scratch(folder)
        folder.set_status("done", stage="done")
    return _through_gate(config, folder)


def preview(config: Config, progress: Progress | None = None) -> tuple[list[Forecast], dict[str, Selection]]:
    """What `run` would do and cost: reads the data, chooses the blocks, takes a few calibrated steps, and keeps nothing."""
    progress = progress or Silent()
    with tempfile.TemporaryDirectory(prefix="tunescope-dry-run-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", settings.dump(config), study="dry-run", command="")
        checked = check(config, progress)
        check_serving(config, checked.chat, _untuned(config), knock=False)
        bench = begin(checked, folder, "", progress)
        selections = choose(bench, checked.loaded, progress).selections
        return forecast_arms(bench, [a.value for a in config.arms], selections, progress), selections


def _untuned(config: Config) -> list[str]:
    return [arm.value for arm in config.arms if arm not in TUNED]


def _through_gate(config: Config, folder: RunFolder) -> RunFolder:
    decision = folder.read_json("verdict.json")["decision"]
    if config.gate.fail and decision != "tune":
        raise GateError(
            f"gate: the verdict is {decision.replace('_', ' ')} and gate.fail is set; see {folder.path / 'report.html'}"
        )
    return folder
