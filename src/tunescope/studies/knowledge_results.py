"""``results.json`` of the knowledge study: accuracy per model, domain and role, with intervals and the difference to the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunescope import metrics
from tunescope.knowledge import Probe
from tunescope.runs.records import Result, Role
from tunescope.studies.bench import Bench
from tunescope.studies.knowledge_inputs import Asked
from tunescope.studies.knowledge_probe import BASE, FEW_SHOT, PROBES

_ROLES: dict[str, Role] = {"homo": "in_domain", "in_domain": "in_domain", "out_of_domain": "out_of_domain"}


def write_results(bench: Bench, asked: Asked, base: Mapping[str, Sequence[Probe]]) -> None:
    """Writes a row per model, role and domain, and one over all domains (task ``*``), from the stored probabilities.

    The base is the arm ``base`` (with demonstrations); every other model was asked in its chat format, the base too as ``base (chat)``.
    Roles ``homo`` and ``in_domain`` are both in-domain; `Result.dataset` says which.
    """
    rows = bench.run.read_jsonl(PROBES)
    groups: dict[tuple[str, str], dict[str, Probe]] = {}
    for row in rows:
        arm = BASE if row["how"] == FEW_SHOT else "base (chat)" if row["model"] == BASE else row["model"]
        groups.setdefault((arm, row["role"]), {})[row["id"]] = Probe.from_dict(row)
    results = []
    for (arm, role), probes in groups.items():
        known = {probe.id: probe for probe in base[role]}
        mine = [probes[q.id] for q in asked.questions[role] if q.id in probes]
        domains = sorted({probe.domain for probe in mine})
        for domain in [*domains, *(["*"] if len(domains) > 1 else [])]:
            some = [probe for probe in mine if domain in (probe.domain, "*")]
            results.append(_result(bench, arm, role, domain, some, [known[probe.id] for probe in some]))
    bench.run.write_json("results.json", {"results": [result.to_dict() for result in results]})


def _result(bench: Bench, arm: str, role: str, domain: str, probes: Sequence[Probe], base: Sequence[Probe]) -> Result:
    settings = bench.config.evaluation
    how = {"n_bootstrap": settings.n_bootstrap, "confidence": settings.confidence, "seed": bench.config.seed}
    right = [float(probe.correct) for probe in probes]
    here = metrics.interval(right, **how)  # type: ignore[arg-type]
    gap = None
    if arm != BASE:
        gap = metrics.paired_difference(right, [float(probe.correct) for probe in base], **how)  # type: ignore[arg-type]
    return Result(
        arm=arm,
        task=domain,
        role=_ROLES[role],
        metric="accuracy",
        value=here.value,
        low=here.low,
        high=here.high,
        n=len(probes),
        difference=gap.value if gap else None,
        difference_low=gap.low if gap else None,
        difference_high=gap.high if gap else None,
        noise_floor=gap.noise_floor if gap else None,
        dataset=role,
    )
