"""Look for the settings of tuning with the lowest held-out loss; trials that fall behind are ended early, and none is lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from tunescope import engine
from tunescope.config import Config, SearchSettings, TuningSettings
from tunescope.errors import ConfigError, IntegrityError, TunescopeError
from tunescope.runs.records import Selection
from tunescope.studies.bench import Bench
from tunescope.studies.machine import release_memory
from tunescope.studies.progress import Progress
from tunescope.studies.ready import make_ready

RESULT = "search.json"
_JOURNAL = "search.journal"
_STUDY = "tuning"
_RATES_AROUND = 4.0  # the default range reaches this factor below and above the candidates of a race
_TRIALS_BEFORE_PRUNING = 4


def search(bench: Bench, arm: str, selection: Selection, n_trials: int, progress: Progress) -> Config:
    """Tries settings and returns those of the run with the best of them put in.

    Every trial tunes from the same start, with the same seed, to the held-out loss of its best check. The first trial has the settings as
    they are (with ``learning_rate: auto``, the middle candidate of the race); the others are proposed from what the earlier ones gave. A
    trial that is worse at a check than the median of the earlier ones at the same check is ended. States below the lowest moving block
    are kept from trial to trial.

    What was tried is in the run's ``search.journal`` as it happens; ``search.json`` has it for reading. Called again after an interruption
    the search goes on, the interrupted trial from its last checkpoint.

    Args:
        bench: what all arms share; the journal lies in its run folder.
        arm: what is tuned.
        selection: what moves.
        n_trials: finished trials wanted, those of earlier calls included.
        progress: told what happens.

    Returns:
        The settings with the best values.

    Raises:
        ConfigError: Optuna is not installed, there are no held-out examples, or no trial gave a finite loss.
        IntegrityError: the journal is damaged.
    """
    optuna = _optuna()
    checks = bench.checks(len(bench.inputs.train))
    if not checks.validation:
        raise ConfigError(
            "--search compares settings on held-out examples, and there are none; raise data.validation_fraction or add training examples"
        )
    journal = bench.run.path / _JOURNAL
    try:
        backend = optuna.storages.journal.JournalFileBackend(str(journal))
        study = optuna.create_study(
            study_name=_STUDY,
            storage=optuna.storages.JournalStorage(backend),
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_TRIALS_BEFORE_PRUNING),
        )
        _take_up(optuna, study)
    except (ValueError, KeyError) as error:
        raise IntegrityError(
            f"{journal}: damaged ({str(error)[:120]}); remove it to search anew, or restore it from a copy"
        ) from None
    if not study.trials:
        study.enqueue_trial(_as_they_are(bench.config.tuning))
    _write(optuna, study, bench, n_trials)
    progress.stage(f"{arm}: search", n_trials)
    progress.advance(min(n_trials, _n_finished(optuna, study)))
    while _n_finished(optuna, study) < n_trials:
        # A sampler of its own for each trial: what is proposed depends on the trials before, not on how often the search was interrupted.
        study.sampler = optuna.samplers.TPESampler(seed=_seed(bench.config.seed, _n_finished(optuna, study)))
        trial = study.ask()
        _one_trial(optuna, study, trial, bench, arm, selection, progress)
        _write(optuna, study, bench, n_trials)
        release_memory()
        progress.advance()
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise ConfigError(
            f"--search: none of {n_trials} trials gave a finite held-out loss; lower tuning.search.learning_rate, or use dtype float32"
        )
    best = min(complete, key=lambda t: (t.value, t.number))
    shown = ", ".join(f"{name} {value:g}" for name, value in best.params.items())
    progress.note(f"{arm}: best of {n_trials} trials: held-out loss {best.value:.4f} with {shown}")
    return with_values(bench.config, best.params)


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """Returns the settings with values of a trial put in."""
    changed = {name: value for name, value in values.items() if name != "lora_alpha_per_rank"}
    if "lora_alpha_per_rank" in values:
        changed["lora_alpha"] = values["lora_alpha_per_rank"] * values.get("lora_rank", config.tuning.lora_rank)
    return config.model_copy(update={"tuning": config.tuning.model_copy(update=changed)})


def _one_trial(
    optuna: Any, study: Any, trial: Any, bench: Bench, arm: str, selection: Selection, progress: Progress
) -> None:
    """Tunes with what the trial proposes and tells the study what came out; an interrupted trial stays open."""
    values = _propose(trial, bench.config.tuning)
    config = with_values(bench.config, values)
    tried = dataclasses.replace(bench, config=config)
    checks = tried.checks(len(bench.inputs.train))
    folder = bench.run.path / "arms" / arm / "search" / _digest(trial.params)
    ready = make_ready(tried, arm, selection, checks, progress)
    fit = engine.Fit(ready.tuner(values["learning_rate"]), checks, folder=folder, should_stop=progress.stopping)
    best, seconds = float("inf"), 0.0
    reported = {int(check): loss for check, loss in trial.user_attrs.get("again", {}).items()}
    for check, loss in reported.items():
        trial.report(loss, check)
    try:
        for record in fit:
            seconds += record.seconds
            if record.validation_loss is None:
                continue
            best = min(best, record.validation_loss)
            # Trials differ in their batch size, so checks are compared by the share of the epochs done.
            check = round(record.epoch * config.tuning.checks_per_epoch)
            if check not in reported:
                reported[check] = record.validation_loss
                trial.report(record.validation_loss, check)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return
    except TunescopeError as error:  # it diverged; other trials may not
        progress.note(f"{arm}: trial {trial.number} ended: {error.problems[0]}")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    finally:
        ready.release()
    assert fit.outcome is not None
    found = fit.outcome.best_loss
    trial.set_user_attr("seconds", round(seconds, 3))
    trial.set_user_attr("steps", fit.outcome.steps)
    study.tell(trial, best if found is None else found)


def _propose(trial: Any, tuning: TuningSettings) -> dict[str, Any]:
    """The values of a trial, by name in `SearchSettings`."""
    space = tuning.search
    low, high = _rates(space, tuning.method)
    values: dict[str, Any] = {"learning_rate": trial.suggest_float("learning_rate", low, high, log=True)}
    names = ["batch_size", "warmup_fraction", "weight_decay"]
    if tuning.method == "lora":
        names += ["lora_rank", "lora_alpha_per_rank"]
    for name in names:
        choices = getattr(space, name)
        if len(choices) > 1:
            values[name] = trial.suggest_categorical(name, list(choices))
        else:
            values[name] = choices[0]
    return values


def _rates(space: SearchSettings, method: str) -> tuple[float, float]:
    candidates = engine.CANDIDATES[method]
    return space.learning_rate or (min(candidates) / _RATES_AROUND, max(candidates) * _RATES_AROUND)


def _as_they_are(tuning: TuningSettings) -> dict[str, Any]:
    """The settings as they are, as far as they lie in the space; the sampler draws the rest."""
    candidates = engine.CANDIDATES[tuning.method]
    rate = candidates[len(candidates) // 2] if tuning.learning_rate == "auto" else tuning.learning_rate
    low, high = _rates(tuning.search, tuning.method)
    values: dict[str, Any] = {"learning_rate": rate} if low <= rate <= high else {}
    for name in ("lora_rank", "batch_size", "warmup_fraction", "weight_decay"):
        if name == "lora_rank" and tuning.method != "lora":
            continue
        if getattr(tuning, name) in getattr(tuning.search, name):
            values[name] = getattr(tuning, name)
    ratio = tuning.lora_alpha / tuning.lora_rank
    if tuning.method == "lora" and ratio in tuning.search.lora_alpha_per_rank:
        values["lora_alpha_per_rank"] = ratio
    return values


def _take_up(optuna: Any, study: Any) -> None:
    """Puts trials that a kill left open back to the front of the queue: same values, so their checkpoints are found."""
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        checks = trial.user_attrs.get("again", {}) | {str(k): loss for k, loss in trial.intermediate_values.items()}
        study.enqueue_trial(trial.params, user_attrs={"again": checks})


def _n_finished(optuna: Any, study: Any) -> int:
    """Trials with a result: complete, pruned, or diverged; one that was interrupted has none."""
    states = optuna.trial.TrialState
    interrupted = sum("again" in t.user_attrs for t in study.trials)
    done = sum(t.state in (states.COMPLETE, states.PRUNED, states.FAIL) for t in study.trials)
    return done - interrupted


def _write(optuna: Any, study: Any, bench: Bench, n_trials: int) -> None:
    again = [t.params for t in study.trials if "again" in t.user_attrs]
    rows = [
        {
            "trial": t.number,
            "state": t.state.name.lower(),
            "values": t.params,
            "held_out_loss": t.value,
            "checks": [{"check": step, "held_out_loss": loss} for step, loss in sorted(t.intermediate_values.items())],
            "seconds": t.user_attrs.get("seconds"),
            "steps": t.user_attrs.get("steps"),
        }
        for t in study.trials
        if t.state.is_finished() and not (t.state == optuna.trial.TrialState.FAIL and t.params in again)
    ]
    complete = [row for row in rows if row["state"] == "complete"]
    best = min(complete, key=lambda row: (row["held_out_loss"], row["trial"])) if complete else None
    bench.run.write_json(RESULT, {"wanted_trials": n_trials, "trials": rows, "best": best})


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _seed(seed: int, n_finished: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {n_finished}".encode()).digest()[:4])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("--search needs Optuna: pip install 'tunescope[optuna]'") from None
    import optuna.storages.journal

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
