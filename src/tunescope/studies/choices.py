"""Does a score choose better blocks than chance, than the rule of thumb, than another score? At one budget, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope import config as settings
from tunescope.config import Arm, Config
from tunescope.errors import ConfigError
from tunescope.metrics import resample_seeds_and_examples
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Forecast
from tunescope.studies.arms import tune_arm
from tunescope.studies.bench import TUNED, remove_scratch
from tunescope.studies.conclude import write_results
from tunescope.studies.machine import release_memory
from tunescope.studies.many_runs import Run, alone, do_runs
from tunescope.studies.measure import measure_arm
from tunescope.studies.progress import Progress, Silent
from tunescope.studies.serving import check_serving
from tunescope.studies.setup import begin, check, choose_once

Floats = NDArray[np.float64]
ByTask = Mapping[str, Floats]
"""Task -> scores (n_seeds, n_examples); every choice on the same examples in the same order."""

STUDY = "choices"
RESULT = "choices.json"
_ROLES = ("in_domain", "out_of_domain")


@dataclass(frozen=True)
class _Choice:
    """One way to choose, as it was tuned with every seed."""

    name: str
    arm: Arm
    folders: tuple[RunFolder, ...]


def run(
    config: Config,
    *,
    scores: Sequence[str] = ("layer_map", "gradient_norm"),
    seeds: Sequence[int] = (42, 43, 44),
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Tunes what every score chooses, with every seed, and compares on the same examples; with ``engine: ray`` a run per score and seed at once.

    The controls `random` (drawn anew for every seed) and `top-third` are tuned once per seed, beside the first score, with as many
    blocks. Every score and seed is a run folder of its own in ``config.output_dir``. Called again, the study goes on where it was interrupted.

    Args:
        config: the settings; `arms`, `seed` and `selection.score` in it are replaced.
        scores: values of `selection.score`.
        seeds: of the order of the data, the adapters and the random control.
        command: command line, for the record.
        progress: told what happens.

    Returns:
        What ``choices.json`` in ``config.output_dir`` holds: the blocks chosen, the comparison of `compare` per role, the guard loss and
        the seconds of tuning, all per choice and seed.

    Raises:
        ConfigError: no score or no seed, one twice, or the score top_third, which is a control here.
        TunescopeError: see `tunescope.errors`; what was done up to then is kept.
    """
    progress = progress or Silent()
    for name, values in (("scores", scores), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name}: got {', '.join(map(str, values)) or 'none'}; give at least one, each once")
    if "top_third" in scores:
        raise ConfigError("scores: top_third is a control of this study and always compared; leave it out")
    controls = (Arm.NOTHING, Arm.RANDOM, Arm.TOP_THIRD)
    runs = [
        Run(f"{score}-{seed}", _one, (alone(config), score, seed, controls if score == scores[0] else (), command))
        for score in scores
        for seed in seeds
    ]
    do_runs(config, runs, progress)
    folders = {score: tuple(RunFolder(config.output_dir / f"{score}-{seed}") for seed in seeds) for score in scores}
    choices = [_Choice(score, Arm.SELECTED, folders[score]) for score in scores]
    choices += [_Choice(arm.value, arm, folders[scores[0]]) for arm in controls]
    found = {
        "model": config.model,
        "seeds": list(seeds),
        "chosen": {c.name: [_blocks(f, c.arm) for f in c.folders] for c in choices if c.arm != Arm.NOTHING},
        "compared": {
            role: compare(
                {c.name: _scores(c, role) for c in choices},
                n_bootstrap=config.evaluation.n_bootstrap,
                confidence=config.evaluation.confidence,
                seed=config.seed,
            )
            for role in _ROLES
        },
        "guard_loss": {c.name: _macro(_scores(c, "guard")).tolist() for c in choices if config.guard},
        "tuning_seconds": {c.name: [_seconds(f, c.arm) for f in c.folders] for c in choices if c.arm != Arm.NOTHING},
    }
    RunFolder(config.output_dir).write_json(RESULT, found)
    return found


def compare(
    scores: Mapping[str, ByTask], *, n_bootstrap: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Compares choices in pairs.

    Args:
        scores: name of the choice -> task -> (n_seeds, n_examples) scores in [0, 1].
        n_bootstrap: resamples.
        confidence: level of the intervals.
        seed: of the resampling.

    Returns:
        ``means``: choice -> mean over tasks, one number per seed. ``differences``: a row per pair: choice minus against, its interval,
        and the difference of every seed. The interval resamples the examples of each task and the seeds. Of few seeds it knows little, so
        look at the differences of the seeds as well.

    Example:
        >>> better, worse = {"t": np.full((3, 20), 0.9)}, {"t": np.full((3, 20), 0.4)}
        >>> row = compare({"a": better, "b": worse})["differences"][0]
        >>> row["choice"], row["against"], round(row["difference"], 3), round(row["low"], 3)
        ('a', 'b', 0.5, 0.5)
    """
    names = [name for name, tasks in scores.items() if tasks]
    tail = (1 - confidence) / 2
    rows = []
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            gaps = {task: values - scores[other][task] for task, values in scores[name].items()}
            by_seed = _macro(gaps)
            low, high = np.quantile(resample_seeds_and_examples(gaps, n_bootstrap, seed), [tail, 1 - tail]).tolist()
            rows.append(
                {
                    "choice": name,
                    "against": other,
                    "difference": float(by_seed.mean()),
                    "low": low,
                    "high": high,
                    "by_seed": by_seed.tolist(),
                }
            )
    return {"means": {name: _macro(scores[name]).tolist() for name in names}, "differences": rows}


def _one(config: Config, score: str, seed: int, controls: tuple[Arm, ...], command: str, progress: Progress) -> None:
    """Tunes and measures what one score chooses with one seed, and the controls; a finished folder stays as it is."""
    values = config.model_dump(mode="json") | {
        "seed": seed,
        "arms": [*(arm.value for arm in controls), Arm.SELECTED.value],
        "output_dir": str(config.output_dir / f"{score}-{seed}"),
    }
    values["selection"] = values["selection"] | {"score": score, "blocks": None, "names": None}
    mine = Config.model_validate(values)
    text = settings.dump(mine)
    RunFolder.check_free(mine.output_dir, text, study=STUDY, resume=True)
    folder = RunFolder(mine.output_dir)
    if folder.has("results.json"):
        return
    progress.note(f"{score}, seed {seed}")
    checked = check(mine, progress)
    check_serving(mine, checked.chat, [arm.value for arm in mine.arms if arm not in TUNED])
    folder = RunFolder.create(mine.output_dir, text, study=STUDY, command=command, resume=True)
    with folder.locked():
        bench = begin(checked, folder, command, progress)
        selections = choose_once(bench, checked.loaded, progress)
        del checked
        release_memory()
        for arm in (a.value for a in mine.arms):
            folder.set_status("running", stage=f"arm {arm}")
            cost = tune_arm(bench, arm, selections[arm], progress) if arm in selections else Forecast(arm=arm)
            release_memory()
            measure_arm(bench, arm, cost, progress)
            release_memory()
        write_results(bench, [arm.value for arm in mine.arms])
        remove_scratch(folder)
        folder.set_status("done", stage="done")


def _scores(choice: _Choice, role: str) -> dict[str, Floats]:
    """Task -> (n_seeds, n_examples), read from the samples."""
    found: dict[str, list[list[float]]] = {}
    for place, folder in enumerate(choice.folders):
        for row in folder.read_jsonl("samples.jsonl"):
            if row["role"] == role:
                by_seed = found.setdefault(row["task"], [[] for _ in choice.folders])
                by_seed[place].append(row["answers"][choice.arm.value]["score"])
    return {task: np.array(by_seed, dtype=np.float64) for task, by_seed in found.items()}


def _macro(scores: ByTask) -> Floats:
    """Mean over tasks of the mean over examples: (n_seeds,)."""
    means: Floats = np.mean([values.mean(axis=1) for values in scores.values()], axis=0)
    return means


def _blocks(folder: RunFolder, arm: Arm) -> list[str]:
    return list(folder.read_json("layers.json")["selections"][arm.value]["layers"])


def _seconds(folder: RunFolder, arm: Arm) -> float:
    return float(sum(r["seconds"] for r in folder.read_jsonl("steps.jsonl") if r["arm"] == arm.value))
