"""The end that studies share: results with intervals, samples, risk, costs and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunescope import evaluate, verdict
from tunescope.evaluate import Scored
from tunescope.runs.records import Answer, Forecast, Risk, Sample, Verdict
from tunescope.studies.bench import TUNED, Bench, test_groups
from tunescope.studies.generalise import write_generalisation
from tunescope.studies.measure import read_scored
from tunescope.studies.serving import ANSWERED, answered_by
from tunescope.studies.setup import record


def write_results(bench: Bench, arms: Sequence[str], weights: Mapping[str, Path] | None = None) -> list[Scored]:
    """Writes ``results.json``, ``generalisation.json``, ``samples.jsonl`` and ``risk.json`` from the arms' answers.

    Args:
        bench: what all arms share.
        arms: all arms, all measured.
        weights: arm -> folder, of arms that are not the run's own.
    """
    settings = bench.config.evaluation
    scored = read_scored(bench, arms)
    results = evaluate.summarise(
        scored,
        seed=bench.config.seed,
        tuned=[arm for arm in arms if arm in TUNED],
        n_bootstrap=settings.n_bootstrap,
        confidence=settings.confidence,
    )
    who = answered_by(bench.config, scored)
    bench.run.write_json("results.json", {"results": [r.to_dict() for r in results], "answered_by": who})
    if who:
        record(bench.run, ANSWERED, {"answers": who})
    write_generalisation(bench, arms, scored, results, weights or {})
    bench.run.write_json("risk.json", {"risks": [r.to_dict() for r in _risks(bench, scored)]})
    write_samples(bench, scored)
    return scored


def write_samples(bench: Bench, scored: Sequence[Scored]) -> None:
    """Writes ``samples.jsonl``: every test example with every arm's answer."""
    samples = [
        Sample(
            id=example.id,
            task=item.task,
            role=item.role,
            dataset=item.dataset,
            prompt=example.prompt_text,
            references=example.targets,
            answers={arm: answers[i].to_dict() for arm, answers in item.answers.items()},
        )
        for group, item in zip(test_groups(bench.inputs), scored, strict=True)
        for i, example in enumerate(group.examples)
    ]
    bench.run.write_jsonl("samples.jsonl", [s.to_dict() for s in samples])


def write_verdict(bench: Bench, scored: Sequence[Scored], costs: Sequence[Forecast]) -> Verdict:
    """Decides, writes ``verdict.json`` and notes the decision in the ledger."""
    config = bench.config
    arms = [cost.arm for cost in costs]
    decision = verdict.decide(
        {arm: _by_task(scored, arm, "in_domain") for arm in arms},
        ood_scores={arm: _by_task(scored, arm, "out_of_domain") for arm in arms},
        guard_losses={arm: item.scores(arm) for item in scored if item.role == "guard" for arm in arms},
        costs={cost.arm: cost for cost in costs},
        assumptions=verdict.Assumptions(**config.business.model_dump()),
        gates=verdict.Gates(**config.gate.model_dump()),
        confidence=config.evaluation.confidence,
        n_bootstrap=config.evaluation.n_bootstrap,
        seed=config.seed,
    )
    decision = verdict.add_risk_steps(decision, _risks(bench, scored))
    bench.run.write_json("verdict.json", decision.to_dict())
    record(
        bench.run, "verdict", {"decision": decision.decision, "arm": decision.arm, "confidence": decision.confidence}
    )
    return decision


def write_costs(
    bench: Bench, forecasts: Sequence[Forecast], costs: Sequence[Forecast], preparation_seconds: float
) -> None:
    """Writes ``costs.json``: forecast and fact; the total is the work done, pauses between kill and resume left out."""
    bench.run.write_json(
        "costs.json",
        {
            "forecast": [f.to_dict() for f in forecasts],
            "actual": [c.to_dict() for c in costs],
            "total_seconds": preparation_seconds + sum(c.tuning_seconds + c.evaluation_seconds for c in costs),
            "peak_memory_bytes": max(cost.peak_memory_bytes for cost in costs),
            "base_model_bytes": bench.run.read_json("environment.json")["model"]["weight_bytes"],
        },
    )


def _risks(bench: Bench, scored: Sequence[Scored]) -> list[Risk]:
    """The risk of all arms, thresholds chosen on the held-out slice where that is large enough."""
    held_out = {
        arm: [Answer.from_dict(row) for row in bench.run.read_json(f"arms/{arm}/measured.json")["held_out"]]
        for arm in dict.fromkeys(arm for item in scored for arm in item.answers)
    }
    settings = bench.config.evaluation
    return evaluate.risks(
        scored,
        seed=bench.config.seed,
        target_error=settings.max_error_rate,
        held_out=held_out,
        confidence=settings.confidence,
    )


def _by_task(scored: Sequence[Scored], arm: str, role: str) -> dict[str, NDArray[np.float64]]:
    tasks = dict.fromkeys(item.task for item in scored if item.role == role)
    return {
        task: np.concatenate([item.scores(arm) for item in scored if item.role == role and item.task == task])
        for task in tasks
    }
