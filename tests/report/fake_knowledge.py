"""A run of the knowledge study, made of real numbers from the package and invented answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tunescope import knowledge
from tunescope.knowledge import Cell, Probe, Question

DOMAINS = ("plants", "tools", "rivers", "wines", "a_very_long_name_of_a_domain_that_does_not_fit_beside_a_bar")
HOW: dict[str, Any] = {"n_bootstrap": 200, "confidence": 0.95, "seed": 0}
TESTS = ("homo", "in_domain", "out_of_domain")


def probes(known: float, *, seed: int, per_domain: int = 24) -> list[Probe]:
    """Four choices each; a share of the questions is answered right."""
    dice = random.Random(seed)
    made = []
    for domain in DOMAINS:
        for i in range(per_domain):
            gold, right = i % 4, dice.random() < known
            top = gold if right else (gold + 1 + dice.randrange(3)) % 4
            weights = [dice.random() * 0.3 + 0.02 for _ in range(4)]
            weights[top] += 0.8
            share = [weight / sum(weights) for weight in weights]
            made.append(Probe(f"{domain}/{i}", domain, ("w", "x", "y", "z"), gold, tuple(share)))
    return made


def content(*, known: float = 0.6, after: bool = True, intervention: bool = True) -> dict[str, Any]:
    """What a ``knowledge.json`` holds."""
    base = {"homo": probes(known, seed=1), "in_domain": probes(known - 0.1, seed=2)}
    everything = [*base["homo"], *[_renamed(p) for p in base["in_domain"]]]
    parts = {"homo": base["homo"], "in_domain": base["in_domain"], "*": everything}
    found: dict[str, Any] = {
        "schema_version": 1,
        "asked": {"questions": {role: len(some) for role, some in base.items()}},
        "before": {
            "demonstrations": 5,
            "threshold": 0.5,
            "chance": {role: [r.to_dict() for r in knowledge.chance_table(some)] for role, some in parts.items()},
            "groups": {role: _groups(some) for role, some in parts.items()},
            "calibration": {role: _calibration(some) for role, some in parts.items()},
            "advice": [
                dict(code)
                for code in knowledge.advise(_asked(everything), everything, threshold=0.5, behaviour_examples=500)
            ],
        },
    }
    if after:
        found["after"] = _after(base["homo"])
    if intervention:
        found["intervention"] = _intervention()
    return json.loads(json.dumps(found))


def make_knowledge_run(folder: Path, found: dict[str, Any] | None = None, *, lang: str = "en") -> Path:
    """Writes a run folder with a knowledge study."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"language: {lang}\nseed: 3\n", encoding="utf-8")
    status = {"schema_version": 1, "state": "done", "study": "knowledge", "stage": "done"}
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
    (folder / "knowledge.json").write_text(json.dumps(content() if found is None else found), encoding="utf-8")
    return folder


def _renamed(probe: Probe) -> Probe:
    return Probe(f"other/{probe.id}", probe.domain, probe.choices, probe.gold, probe.probabilities)


def _asked(some: list[Probe]) -> list[Question]:
    return [
        Question(p.id, p.domain, f"What is {p.id}?", p.choices, p.gold, "context" if p.domain == "wines" else "")
        for p in some
    ]


def _groups(some: list[Probe]) -> list[dict[str, Any]]:
    rows = []
    for domain in (*sorted(DOMAINS), "*"):
        found = knowledge.group([p for p in some if domain in (p.domain, "*")], threshold=0.5)
        rows.append(
            {"domain": domain} | {kind: len(getattr(found, kind)) for kind in ("harmonious", "incompatible", "unsure")}
        )
    return rows


def _calibration(some: list[Probe]) -> dict[str, Any]:
    right = knowledge.accuracy(some)
    return {
        "n": len(some),
        "accuracy": right,
        "confidence": 0.7,
        "ece": 0.1,
        "coverage": [0.5, 1.0],
        "risk": [0.1, 1 - right],
    }


def _after(base: list[Probe]) -> dict[str, Any]:
    tuned = [
        Probe(p.id, p.domain, p.choices, p.gold, q.probabilities)
        for p, q in zip(base, probes(0.75, seed=5), strict=True)
    ]
    rows = []
    for domain in (*sorted(DOMAINS), "*"):
        mine = [(p, q) for p, q in zip(base, tuned, strict=True) if domain in (p.domain, "*")]
        sides = [p.probabilities for p, _ in mine], [q.probabilities for _, q in mine]
        accuracies = {
            "base_accuracy": knowledge.accuracy([p for p, _ in mine]),
            "tuned_accuracy": knowledge.accuracy([q for _, q in mine]),
        }
        near = {"consistency": knowledge.rank_consistency(*sides), "kl": knowledge.mean_kl(*sides)}
        rows.append({"domain": domain, "n": len(mine), **near, **accuracies})
    ranks, tokens = [[1, 1, 4, 9], [1, 2, 5, 30]], [["It", " is", " sure", " elm"], ["It", " is", " sure", " oak"]]
    return {
        "transitions": {"homo": [row.to_dict() for row in knowledge.transitions(base, tuned, **HOW)]},
        "agreement": {"homo": rows},
        "partial_spearman": {"value": 0.71, "n": 5},
        "judgement": knowledge.judge(base, tuned, **HOW).to_dict(),
        "style": {"prompts": "general", **knowledge.token_shift(ranks, tokens, **HOW).to_dict()},
        "written": {"n": 24, "names_a_choice": 0.9, "right_in_words": 0.5, "right_by_scores": 0.7},
    }


def _intervention() -> dict[str, Any]:
    dice = random.Random(0)
    level = {"harmonious": 0.7, "self_aligning": 0.6, "incompatible": 0.45, "contextualised": 0.5, "mix-0.2": 0.65}
    scores = {
        name: {test: [[float(dice.random() < share) for _ in range(60)] for _ in range(2)] for test in TESTS}
        for name, share in level.items()
    }
    rows = [
        {
            "set": name,
            "seed": seed,
            "test": test,
            "n": 60,
            "consistency": share - 0.1,
            "kl": None if name == "mix-0.2" else 0.2,
        }
        | {"base_accuracy": 0.5, "tuned_accuracy": sum(scores[name][test][seed]) / 60}
        for name, share in level.items()
        for seed in (0, 1)
        for test in TESTS
    ]
    cells = [Cell(r["set"], r["test"], r["consistency"], r["tuned_accuracy"], r["base_accuracy"]) for r in rows]
    return {
        "facts": {
            "group_size": 50,
            "general": 50,
            "seeds": [42, 43],
            "tests": dict.fromkeys(TESTS, 60),
            "contextualised": True,
            "explanations": {"used": False, "why": "not_able"},
        },
        "rows": rows,
        "comparison": knowledge.compare_groups(scores, **HOW).to_dict(),
        "partial": knowledge.partial_consistency(cells).to_dict(),
        "base_accuracy": dict.fromkeys(TESTS, 0.5),
    }
