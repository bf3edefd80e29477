"""The intervention study: tune on what the model knows, gets wrong or says itself, and test what each does to what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tunescope import engine, evaluate, knowledge, models
from tunescope.config import Config, RegularisationSettings
from tunescope.data import Example, Task
from tunescope.errors import ConfigError, DataError
from tunescope.knowledge import Cell, Probe, Question, Split, TrainingItem
from tunescope.knowledge.questions import shuffled
from tunescope.models import Loaded
from tunescope.runs.records import Forecast, Selection
from tunescope.studies.arms import tune_arm
from tunescope.studies.bench import Bench
from tunescope.studies.inputs import Inputs
from tunescope.studies.knowledge_after import agreement
from tunescope.studies.knowledge_explain import explain, question_of
from tunescope.studies.knowledge_inputs import Asked, header_of
from tunescope.studies.knowledge_probe import BASE, ZERO_SHOT, ask_in_chat, read_probes
from tunescope.studies.machine import release_memory
from tunescope.studies.progress import Progress

TESTS = ("homo", "in_domain", "out_of_domain")
_ENOUGH_CONTEXT = 0.5  # of the incompatible questions; below, a contextualised set would shrink all groups


@dataclass(frozen=True)
class Prepared:
    """What is going to be tuned and tested.

    Attributes:
        sets: name -> questions with the answers that are trained; every set has the same size.
        tests: role -> questions, none of them trained.
        general: examples that are mixed into every set.
        facts: sizes, as plain values.
    """

    sets: Mapping[str, tuple[TrainingItem, ...]]
    tests: Mapping[str, tuple[Question, ...]]
    general: tuple[Example, ...]
    facts: Mapping[str, Any]


def check_settings(config: Config, asked: Asked) -> None:
    """Refuses settings with which the sets could not be compared, before anything is asked.

    Raises:
        ConfigError: one line per problem.
    """
    problems = []
    tuning, regularisation = config.tuning, config.tuning.regularisation
    if "homo" not in asked.questions:
        problems.append(
            "knowledge.questions: the intervention study tunes on questions of role homo, and there are none; add a file"
        )
    if not asked.general:
        problems.append(
            "knowledge.general is empty: tuning on choices alone makes a model answer everything with a letter; name files of general "
            "instruction data"
        )
    if tuning.learning_rate == "auto":
        problems.append(
            "tuning.learning_rate auto would give every set its own rate, and the comparison would be one of rates; set a number such as 5e-4"
        )
    if tuning.method == "sparse":
        problems.append("tuning.method sparse: the intervention study moves all blocks alike; use lora or weights")
    if regularisation.kl_to_base or regularisation.demonstrations or regularisation.noise_fraction:
        problems.append(
            "tuning.regularisation: kl_to_base, demonstrations and noise_fraction would change what each set is; leave them out for this study"
        )
    if problems:
        raise ConfigError(problems)


def prepare(config: Config, asked: Asked, base: Mapping[str, Sequence[Probe]]) -> Prepared:
    """Splits the questions, groups them by what the base said, and draws the sets.

    Args:
        config: the settings.
        asked: what was asked.
        base: role -> probes of the base.

    Raises:
        DataError: the groups are empty or smaller than wanted, or there are too few general examples.
    """
    settings = config.knowledge.intervention
    split = knowledge.split_tests(
        asked.questions["homo"],
        in_domain=asked.questions.get("in_domain", ()),
        out_of_domain=asked.questions.get("out_of_domain", ()),
        test_fraction=settings.test_fraction,
        seed=config.seed,
    )
    known = {probe.id: probe for probe in base["homo"]}
    probes = [known[question.id] for question in split.train]
    threshold = config.knowledge.threshold
    found = knowledge.group(probes, threshold=threshold)
    with_context = {question.id for question in split.train if question.context}
    both = with_context & set(found.incompatible)
    only = both if both and len(both) >= _ENOUGH_CONTEXT * len(found.incompatible) else None
    largest = knowledge.equal_groups(probes, threshold=threshold, only=only, seed=config.seed).size
    size = min(largest, len(asked.general), settings.group_size or largest)
    groups = knowledge.equal_groups(probes, threshold=threshold, size=size, only=only, seed=config.seed)
    drawn = knowledge.intervention_sets(split.train, probes, groups)
    sets: dict[str, tuple[TrainingItem, ...]] = {str(kind): items for kind, items in drawn.items()}
    sets |= {mix_name(share): knowledge.mix(drawn, share, seed=config.seed) for share in settings.shares}
    by_id = {example.id: example for example in asked.general}
    general = knowledge.draw_general(list(by_id), groups.size, seed=config.seed)
    tests = _tests(split, settings.max_test_questions)
    facts = {
        "group_size": groups.size,
        "largest_group": largest,
        "per_domain": dict(groups.per_domain),
        "general": len(general),
        "train_questions": len(split.train),
        "harmonious": len(found.harmonious),
        "incompatible": len(found.incompatible),
        "unsure": len(found.unsure),
        "with_context": len(with_context),
        "contextualised": "contextualised" in sets,
        "tests": {role: len(questions) for role, questions in tests.items()},
        "left_out": {role: list(ids) for role, ids in split.left_out.items()},
    }
    return Prepared(sets, tests, tuple(by_id[name] for name in general), facts)


def mix_name(share: float) -> str:
    """Returns the name of a mixed set.

    Example:
        >>> mix_name(0.05)
        'mix-0.05'
    """
    return f"mix-{share:g}"


def intervene(
    bench: Bench, loaded: Loaded, prepared: Prepared, base: Mapping[str, Sequence[Probe]], progress: Progress
) -> dict[str, Any]:
    """Tunes every set once per seed, tests each, and compares them; goes on where it was interrupted.

    Args:
        bench: what all share.
        loaded: the base model.
        prepared: what is tuned and tested.
        base: role -> probes of the base with demonstrations.
        progress: told about every step.

    Returns:
        The comparison, and what each tuning cost, as plain values.
    """
    items = [item for some in prepared.sets.values() for item in some]
    why, explanations = explain(bench, loaded.model, items, progress)
    ask_in_chat(bench, loaded.model, BASE, dict(prepared.tests), progress)
    seeds = bench.config.knowledge.intervention.seeds or (bench.config.seed,)
    selection = _selection(bench.config, loaded)
    arms = {(name, seed): f"{name}-{seed}" for name in prepared.sets for seed in seeds}
    if not bench.run.has("layers.json"):
        bench.run.write_json(
            "layers.json", {"scores": [], "selections": {arm: selection.to_dict() for arm in arms.values()}}
        )
    answers: dict[tuple[str, int], dict[str, list[Probe]]] = {}
    costs = []
    for (name, seed), arm in arms.items():
        bench.run.set_status("running", stage=f"set {arm}")
        examples = [_example(bench.config, item, why) for item in prepared.sets[name]]
        costs.append(_tune(bench, arm, seed, [*examples, *prepared.general], selection, progress))
        release_memory()
        answers[name, seed] = _test(bench, arm, prepared.tests, progress)
        release_memory()
    found = compare_sets(bench.config, prepared, base, answers)
    untuned = read_probes(bench, BASE, ZERO_SHOT)
    in_chat = {role: float(np.mean([untuned[q.id].correct for q in some])) for role, some in prepared.tests.items()}
    facts = dict(prepared.facts) | {"seeds": list(seeds), "explanations": explanations, "base_in_chat": in_chat}
    return {"facts": facts, **found, "costs": [cost.to_dict() for cost in costs]}


def compare_sets(
    config: Config,
    prepared: Prepared,
    base: Mapping[str, Sequence[Probe]],
    answers: Mapping[tuple[str, int], Mapping[str, Sequence[Probe]]],
) -> dict[str, Any]:
    """Returns accuracy, differences, consistency and KL of every set on every test, from the stored probabilities.

    Args:
        config: the settings.
        prepared: the sets and tests.
        base: role -> probes of the base.
        answers: (set, seed) -> role -> probes.
    """
    known = {probe.id: probe for probes in base.values() for probe in probes}
    scores: dict[str, dict[str, list[list[float]]]] = {}
    rows: list[dict[str, Any]] = []
    for (name, seed), by_role in answers.items():
        for role, probes in by_role.items():
            scores.setdefault(name, {}).setdefault(role, []).append([float(p.correct) for p in probes])
            together = agreement([known[p.id] for p in probes], probes)[-1]
            rows.append(
                {"set": name, "seed": seed, "test": role} | {k: v for k, v in together.items() if k != "domain"}
            )
    compared = knowledge.compare_groups(
        scores, n_bootstrap=config.evaluation.n_bootstrap, confidence=config.evaluation.confidence, seed=config.seed
    )
    return {
        "rows": rows,
        "comparison": compared.to_dict(),
        "partial": knowledge.partial_consistency(_cells(rows)).to_dict(),
        "base_accuracy": {
            role: float(np.mean([known[q.id].correct for q in questions])) for role, questions in prepared.tests.items()
        },
    }


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """A cell per set and test, the mean over seeds."""
    cells = []
    for name, test in dict.fromkeys((row["set"], row["test"]) for row in rows):
        mine = [row for row in rows if (row["set"], row["test"]) == (name, test)]
        means = [float(np.mean([row[k] for row in mine])) for k in ("consistency", "tuned_accuracy", "base_accuracy")]
        cells.append(Cell(name, test, *means))
    return cells


def _tests(split: Split, limit: int | None) -> dict[str, tuple[Question, ...]]:
    roles = {"homo": split.homo, "in_domain": split.in_domain, "out_of_domain": split.out_of_domain}
    return {role: tuple(shuffled(questions, 0, "tested"))[:limit] for role, questions in roles.items() if questions}


def _example(config: Config, item: TrainingItem, why: Mapping[tuple[str, int], str]) -> Example:
    return evaluate.chat_example(
        question_of(item),
        header_of(config, item.domain),
        item.target,
        context=True,
        explanation=why.get((item.id, item.target), ""),
        lettered=config.knowledge.ask == "letters",
    )


def _selection(config: Config, loaded: Loaded) -> Selection:
    names, parts = models.block_names(loaded.info.n_layers), tuple(config.tuning.target_modules)
    method: Literal["lora", "weights"] = "lora" if config.tuning.method == "lora" else "weights"
    selection = Selection(method, names, parts, f"all {len(names)} blocks, the same for every set")
    engine.check_selection(selection, n_layers=len(names))
    return selection


def _tune(
    bench: Bench, arm: str, seed: int, examples: Sequence[Example], selection: Selection, progress: Progress
) -> Forecast:
    tuning = bench.config.tuning
    kept = RegularisationSettings(
        l2_sp=tuning.regularisation.l2_sp, label_smoothing=tuning.regularisation.label_smoothing
    )
    # Templates belong to the tasks of the config, which this study does not read.
    config = bench.config.model_copy(
        update={"seed": seed, "tasks": (), "tuning": tuning.model_copy(update={"regularisation": kept})}
    )
    task = Task(arm, "knowledge", "loss", train=tuple(examples))
    inputs = Inputs((task,), (), bench.inputs.report, bench.inputs.files)
    return tune_arm(dataclasses.replace(bench, config=config, inputs=inputs), arm, selection, progress)


def _test(
    bench: Bench, arm: str, tests: Mapping[str, tuple[Question, ...]], progress: Progress
) -> dict[str, list[Probe]]:
    known = read_probes(bench, arm, ZERO_SHOT)
    if all(question.id in known for questions in tests.values() for question in questions):
        return {role: [known[question.id] for question in questions] for role, questions in tests.items()}
    model = engine.attach(bench.load(), bench.run.path / "weights" / arm)
    return ask_in_chat(bench, model, arm, dict(tests), progress)


def check_lengths(bench: Bench, prepared: Prepared) -> None:
    """Refuses rows that are longer than ``data.max_length``, before anything is tuned.

    Raises:
        DataError: with the numbers.
    """
    limit = bench.config.data.max_length
    examples = [_example(bench.config, item, {}) for items in prepared.sets.values() for item in items]
    lengths = {e.id: len(bench.chat.encode(e)) for e in [*examples, *prepared.general]}
    long = {name: n for name, n in lengths.items() if n > limit}
    if long:
        name, most = max(long.items(), key=lambda pair: pair[1])
        raise DataError(
            f"{len(long)} rows of the tuning sets are longer than data.max_length {limit}, the longest is {name!r} with {most} tokens; raise the "
            "limit, or shorten or remove them"
        )
