"""The beginning that all studies share: data, model, what both are, and what each arm moves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunescope import config as settings
from tunescope import engine, evaluate, models, select
from tunescope.config import FREE_ON_RESUME, Arm, Config, plain
from tunescope.data import ChatFormat, Task
from tunescope.engine import NumberFormat
from tunescope.errors import ConfigError, DataError, IntegrityError, ModelError
from tunescope.models import Loaded, Located
from tunescope.runs import ledger
from tunescope.runs.environment import describe_environment, user_name
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Selection
from tunescope.studies.asking import unfit_stops
from tunescope.studies.base_model import is_streamed, load_base
from tunescope.studies.bench import TUNED, Bench, remove_scratch, test_groups
from tunescope.studies.choose import Choice, choose
from tunescope.studies.cluster import Cluster
from tunescope.studies.data_curve import unfit_sizes
from tunescope.studies.demonstrations import at_test, demonstrations, shown_at
from tunescope.studies.inputs import Inputs, encode_inputs, read_inputs, refuse
from tunescope.studies.machine import gpu_name, pick_device, set_threads
from tunescope.studies.mask_files import mask_of
from tunescope.studies.number_format import settled
from tunescope.studies.progress import Progress
from tunescope.studies.regularisation import unfit_prompts
from tunescope.studies.serving import described


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
    number_format: NumberFormat | None = None


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
    config, measured = settled(config, located, device, threads)
    loaded = load_base(config, located, device, note=progress.note)
    chat = ChatFormat(loaded.tokenizer)
    inputs = encode_inputs(config, inputs, chat)
    refuse(inputs.report)
    _refuse_unfit(config, inputs, loaded, chat)
    return Checked(config, inputs, located, loaded, chat, device, threads, measured)


def _refuse_unfit(config: Config, inputs: Inputs, loaded: Loaded, chat: ChatFormat) -> None:
    """Names all settings that do not fit the data or the model, before anything is written or takes long."""
    problems: list[str] = []
    tuned = [arm for arm in config.arms if arm in TUNED]
    if tuned and not inputs.train:
        problems.append(
            f"arms {', '.join(tuned)}: nothing to tune on, there is no (usable) training example; give a task `train` data, or keep "
            "only the arms nothing and prompt"
        )
    elif tuned and config.tuning.learning_rate == "auto" and not inputs.validation:
        problems.append(
            f"tuning.learning_rate is auto, which needs held-out examples, and {len(inputs.train)} training examples with "
            f"data.validation_fraction {config.data.validation_fraction:g} give none; raise it, add examples, or set a number such as 5e-4"
        )
    if Arm.PROMPT in config.arms:
        borrowing = [task for task in inputs.tasks if not shown_at(config, task.name, "test")]
        problems += [
            f"arm prompt: task {task.name!r} has no training example to show in the prompt; give it `train` data, or drop the arm"
            for task in borrowing
            if not demonstrations(task, 1) and (task.test or task.out_of_domain)
        ]
        problems += [problem for task in borrowing for problem in _given_away(config, task)]
    names = models.block_names(loaded.info.n_layers)
    chosen_by_hand = config.selection.blocks if Arm.SELECTED in config.arms else None
    try:
        if chosen_by_hand:
            select.match_layers(chosen_by_hand, names)
    except ModelError as error:
        problems += [f"selection.blocks: {problem}" for problem in error.problems]
    try:
        if tuned:
            wanted = Selection("lora", names, tuple(config.tuning.target_modules), "")
            engine.check_selection(wanted, n_layers=len(names))
    except ModelError as error:
        problems += [f"tuning.target_modules: {problem}" for problem in error.problems]
    if tuned and not problems:
        problems += _unfit_selection(config, loaded)
    problems += unfit_prompts(config, inputs, chat) if tuned and inputs.train else []
    problems += unfit_sizes(config, inputs) if tuned else []
    problems += _too_long(config, inputs, loaded, chat)
    problems += unfit_stops(config, chat)
    if problems:
        raise ConfigError(problems)


def _unfit_selection(config: Config, loaded: Loaded) -> list[str]:
    """What `selection` asks for and the matrices of this model cannot give; the parts and blocks exist."""
    settings = config.selection
    offered = select.weight_matrices(loaded.model, loaded.family, parts=tuple(config.tuning.target_modules))
    if settings.names and Arm.SELECTED in config.arms:
        try:
            select.hand_mask(offered, settings.names)
        except ModelError as error:
            return [f"selection.names: {problem}" for problem in error.problems]
    total = sum(weight.numel() for weight in offered.values())
    if settings.weights is not None and settings.weights > total:
        return [
            f"selection.weights: got {settings.weights:,}, and the parts in tuning.target_modules have {total:,}; lower it, or use the arm full"
        ]
    side = min(min(weight.shape) for weight in offered.values())
    if settings.score == "low_rank_magnitude" and settings.rank >= side:
        return [
            f"selection.rank: got {settings.rank}, and the smallest matrix on offer has {side} rows or columns; allowed are 1 to {side - 1}"
        ]
    return []


def _given_away(config: Config, task: Task) -> list[str]:
    """Test examples that are also demonstrations: the arm `prompt` would read their answers."""
    shown = {(d.instruction, d.input) for d in demonstrations(task, config.evaluation.demonstrations)}
    return [
        f"{e.file}:{e.line}: arm prompt shows this example of task {task.name!r} as a demonstration, answer included; set "
        "data.drop_duplicates to true, or remove it from the training file"
        for e in (*task.test, *(e for examples in task.out_of_domain.values() for e in examples))
        if (e.instruction, e.input) in shown
    ]


def _too_long(config: Config, inputs: Inputs, loaded: Loaded, chat: ChatFormat) -> list[str]:
    """Tasks whose longest row, demonstrations included, is more than the model can read."""
    most = getattr(loaded.model.config, "max_position_embeddings", None)
    problems = []
    for task in inputs.tasks:
        tables = [f for f in inputs.report.files if f.task == task.name and f.prompt_tokens]
        if most is None or not tables:
            continue
        answers = max(f.target_tokens["max"] for f in tables)
        needed = max(f.prompt_tokens["max"] for f in tables)
        needed += answers if task.labels is not None else max(answers, config.evaluation.max_new_tokens)
        shown = _longest_shown(config, task, chat)
        if shown is not None:
            needed += shown[0]
        if needed > most:
            with_what = f" with {shown[1]} demonstrations" if shown else ""
            problems.append(
                f"task {task.name!r}: its longest row{with_what} needs {needed} tokens, answer included; {loaded.info.name} reads at most "
                f"{most}. Shorten the rows, or lower evaluation.demonstrations or evaluation.max_new_tokens"
            )
    return problems


def _longest_shown(config: Config, task: Task, chat: ChatFormat) -> tuple[int, int] | None:
    """Tokens that demonstrations add to a test prompt at most, and how many there are; None where an arm shows none."""
    if Arm.PROMPT not in config.arms and not shown_at(config, task.name, "test"):
        return None
    shown = at_test(config, task, Arm.PROMPT)
    examples = (*task.test, *sum(task.out_of_domain.values(), ()))
    before = {tuple((d.file, d.id) for d in shown(e)): (e, shown(e)) for e in examples}  # the same ones add the same
    added = [
        (len(chat.encode(e, demonstrations=found).prompt_ids) - len(chat.encode(e).prompt_ids), len(found))
        for e, found in before.values()
        if found
    ]
    return max(added, default=None)


def finished(path: Path) -> RunFolder | None:
    """Returns the run in a folder if it is complete, or None; a run that was killed while it tidied up is tidied up."""
    folder = RunFolder(path)
    if not folder.has("costs.json"):  # written last
        return None
    if folder.read_json("status.json")["state"] != "done":
        with folder.locked():
            remove_scratch(folder)
            folder.set_status("done", stage="done")
    return folder


def settings_text(config: Config, *, resume: bool) -> str:
    """Returns the settings as they are kept in the run, and compared with on resume.

    Where specialists are kept, whether a damaged one is tuned again, how a server is reached, and which machines do the work changes no
    result beyond rounding: with ``--resume`` these settings are those of the first time, so that a run which ended with a full disk, a
    damaged cache, a lost server or a cluster that is gone can go on with other ones.

    Args:
        config: the settings.
        resume: whether a run that is there goes on.
    """
    path = config.output_dir / "config.yaml"
    if resume and path.is_file():
        try:
            values, _, _ = plain.parse(plain.read_text(path), str(path))
            kept = {key: values["map"][key] for key in ("cache", "rebuild_cache")}
            reached = {key: values["generation"][key] for key in FREE_ON_RESUME}
            where = {
                key: values["engine"]["ray"][key]
                for key in ("address", "cpus_per_task", "gpus_per_task", "max_failures")
            }
            backend = values["engine"]["backend"]
        except (ConfigError, KeyError, TypeError):
            return settings.dump(config)  # whatever is there now, it is not what was written: refused as different
        kept["cache"] = None if kept["cache"] is None else Path(kept["cache"])
        engine_settings = config.engine.model_copy(
            update={"backend": backend, "ray": config.engine.ray.model_copy(update=where)}
        )
        config = config.model_copy(update={"map": config.map.model_copy(update=kept), "engine": engine_settings})
        if (
            config.generation.endpoint is not None and reached["endpoint"] is not None
        ):  # with or without a server is another matter
            config = config.model_copy(update={"generation": config.generation.model_copy(update=reached)})
    return settings.dump(config)


def begin(
    checked: Checked,
    folder: RunFolder,
    command: str,
    progress: Progress,
    *,
    overrides: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> Bench:
    """Writes ``data.json`` and ``environment.json``; on resume compares with them instead.

    The data that was accepted, the settings that were replaced on the command line, and the machines that work go to the ledger.

    Raises:
        IntegrityError: on resume, data or weights are not those of the first time.
    """
    inputs, loaded = checked.inputs, checked.loaded
    bench = Bench(checked.config, checked.located, inputs, checked.chat, checked.device, folder, cluster)
    if folder.has("environment.json"):
        _check_unchanged(folder.read_json("environment.json"), inputs, loaded, checked.threads, progress)
    else:
        folder.write_json("data.json", inputs.report.to_dict())
        folder.write_json("environment.json", _environment(checked, bench, command))
    if server := described(checked.config):  # another address on resume is a row of its own
        record(folder, "generation server", server)
    if overrides:
        record(folder, "overrides", {"settings": list(overrides)})
    if cluster is not None:
        record(folder, "cluster", cluster.to_dict())
    elif checked.config.engine.backend == "ray":
        progress.note("engine: ray is not used here: this study, or a dry run, has no pieces for other machines")
    if not any(row["event"] == "data accepted" for row in folder.read_jsonl("ledger.jsonl")):
        warnings = sum(finding.severity == "warning" for finding in inputs.report.findings)
        record(folder, "data accepted", {"files": inputs.files, "warnings": warnings})
    return bench


def _environment(checked: Checked, bench: Bench, command: str) -> dict[str, Any]:
    facts = {
        "threads": checked.threads,
        "device": checked.device,
        "gpu": gpu_name(checked.device),
        "dtype": checked.config.dtype,
        "number_format": checked.number_format.to_dict() if checked.number_format else None,
        "seed": checked.config.seed,
        "command": command,
        "model": dataclasses.asdict(checked.loaded.info),
        "files": checked.inputs.files,
        "score_batch_noise": _score_noise(bench, checked.loaded),
        "generation": described(checked.config),
        "started": bench.run.read_json("status.json")["started"],
    }
    return describe_environment() | facts


def choose_once(bench: Bench, loaded: Loaded, progress: Progress) -> dict[str, Selection]:
    """Decides what each tuned arm moves and writes ``layers.json``; on resume reads it back."""
    if bench.run.has("layers.json"):
        saved = bench.run.read_json("layers.json")["selections"]
        lists = ("layers", "modules", "matrices")
        selections = {
            arm: Selection.from_dict({key: tuple(v) if key in lists else v for key, v in values.items()})
            for arm, values in saved.items()
        }
        for arm, selection in selections.items():
            mask_of(bench.run, arm, selection)  # a damaged mask is found before anything slow
        return selections
    choice = choose(bench, loaded, progress)
    write_layers(bench.run, choice)
    return choice.selections


def write_layers(folder: RunFolder, choice: Choice) -> None:
    """Writes ``layers.json``."""
    values: dict[str, Any] = {
        "scores": [s.to_dict() for s in choice.scores],
        "selections": {arm: s.to_dict() for arm, s in choice.selections.items()},
    }
    if choice.map is not None:
        values["map"] = dict(choice.map)
    folder.write_json("layers.json", values)


def record(folder: RunFolder, event: str, details: dict[str, Any]) -> None:
    """Adds a decision to the run's ledger, once: a resumed run does not decide again what it already decided."""
    path = folder.path / "ledger.jsonl"
    if any(row["event"] == event and row["details"] == details for row in folder.read_jsonl("ledger.jsonl")):
        return
    ledger.append(path, event, details, actor=user_name(), key=ledger.key_from_environment())


def _check_unchanged(before: dict[str, Any], inputs: Inputs, loaded: Loaded, threads: int, progress: Progress) -> None:
    # The settings are the same, so the files come in the same order; their paths are shown relative to the working directory.
    problems = [
        f"{path}: changed since this run began; put it back, or start again in another output_dir"
        for (path, digest), known in zip(inputs.files.items(), before["files"].values(), strict=True)
        if digest != known
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
    """How much a log-probability depends on its batch, in nats, on examples of the first task with labels; None without one."""
    count = 2 if is_streamed(loaded) else 8  # every pass over one example reads the base
    for task in bench.inputs.tasks:
        examples = (task.test or task.train)[:count]
        if task.labels is not None and len(examples) > 1:
            prompts = [bench.chat.encode(e).prompt_ids for e in examples]
            noise = evaluate.batch_noise(loaded.model, prompts, [bench.chat.target_ids(label) for label in task.labels])
            if not math.isfinite(noise):
                raise ModelError(
                    f"{loaded.info.name}: the model gives probabilities that are not finite on task {task.name!r}; look for NaN in its "
                    "weights, or use another dtype"
                )
            return noise
    return None
