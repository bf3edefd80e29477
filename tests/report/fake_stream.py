"""Writes a run folder of the study ``learn`` without a model: 16 tasks with long, Japanese and hostile names, learned in 16 stages."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from fake_run import HOSTILE, make_run

from tunescope.config import ReplaySettings
from tunescope.runs.records import SCHEMA_VERSION

N_TEST = 20
NAMES = (
    HOSTILE[0],
    'a&b "quoted" <i>name</i>',
    "設備点検記録の異常判定",
    "a_task_with_a_name_that_is_far_too_long_for_any_column_of_any_table_in_any_report",
    *(f"task_{i:02d}" for i in range(5, 17)),
)


def make_stream(
    *,
    n_tasks: int = 16,
    policy: str = "inscl",
    loss: float = 0.1,
    experts: bool = True,
    onto: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the content of ``stream.json`` and of ``samples.jsonl``.

    Args:
        n_tasks: tasks of the stream.
        policy: name of the policy.
        loss: share of right answers of every earlier task that the last stage turned wrong.
        experts: whether there are experts.
        onto: the first half was learned by an earlier run.
        seed: of the scores.
    """
    dice = random.Random(seed)
    tasks = list(NAMES[:n_tasks])
    joint = policy == "joint"
    n_earlier = n_tasks // 2 if onto else 0
    arms = ["stage-01"] if joint else [f"stage-{i + 1:02d}" for i in range(n_earlier, n_tasks)]
    before = "start" if onto else "nothing"
    learned = {
        task: arms[0] if joint else before if i < n_earlier else arms[i - n_earlier] for i, task in enumerate(tasks)
    }
    right = {task: [dice.random() < 0.75 for _ in range(N_TEST)] for task in tasks}
    final = {task: [x and (learned[task] == arms[-1] or dice.random() >= loss) for x in right[task]] for task in tasks}
    rows = []
    for place, arm in enumerate([before, *arms]):
        scores, failures = {}, {}
        for i, task in enumerate(tasks):
            if not joint and place and i > n_earlier + place:
                continue
            known = (joint and place) or i < n_earlier + place
            answers = (
                final[task]
                if arm == arms[-1]
                else right[task]
                if known
                else [x and j % 3 == 0 for j, x in enumerate(right[task])]
            )
            scores[task] = sum(answers) / N_TEST
            n_wrong = N_TEST - sum(answers)
            failures[task] = {
                "right": sum(answers),
                "wrong": n_wrong - n_wrong // 2,
                "unrelated": n_wrong // 2,
                "empty": n_wrong // 2,
            }
        rows.append({"arm": arm, "scores": scores, "guard_loss": 3.2 + place / 50, "failures": failures})
    stages = [_stage(dice, arm, [t for t in tasks if learned[t] == arm], tasks, policy) for arm in arms]
    changes = _changes(tasks, learned, right, final, arms[-1])
    gains = [
        {"stage": s, "tasks": i + 1, "value": 99 - i, "low": 95 - i, "high": 102 - i} for i, s in enumerate(arms[1:])
    ]
    span = {"value": 0.71, "low": 0.66, "high": 0.76}
    several = not joint and n_tasks > 1
    values = {
        "policy": policy,
        "order": tasks,
        "earlier": tasks[:n_earlier],
        "onto": "runs/before" if onto else None,
        "embedding": "last_block_mean",
        "tasks": [
            {
                "name": task,
                "family": "general",
                "metric": "accuracy",
                "stage": learned[task],
                "n_train": 100,
                "n_test": N_TEST,
                "version": f"v-{task}",
                "train_sha256": "0" * 64,
                "settings": {},
            }
            for task in tasks
        ],
        "stages": stages,
        "rows": rows,
        "experts": dict.fromkeys(tasks, 0.8) if experts else {},
        "measures": {
            "average": span,
            "forgetting": {"value": 0.05, "low": 0.02, "high": 0.09} if several else None,
            "forgetting_by_task": {},
            "backward_transfer": {"value": -0.04, "low": -0.08, "high": -0.01} if several else None,
            "forward_transfer": None,
            "relative_gain": gains if experts and several else None,
            "without_share": ["task_05"] if experts and n_tasks > 4 else [],
        },
        "changes": changes,
        "memory": {"examples": 100 * n_tasks, "bytes": 31_000 * n_tasks, "budget_examples": None, "budget_bytes": None},
        "advice": [
            {
                "code": "lost",
                "tasks": tasks[:1],
                "n_tasks": len(tasks) - 1,
                "difference": -0.05,
                "low": -0.08,
                "high": -0.02,
            },
            {"code": "replay_more", "replayed": 20, "pool": 100, "kept": 100, "learned": 1600},
            {"code": "compare", "policy": policy},
            {"code": "few_examples", "tasks": tasks, "needed": 30},
            {"code": "unrelated", "share": 0.125},
            {"code": "shifted"},
            {"code": "invented_later", "number": 3},
        ],
    }
    samples = [
        {
            "id": f"{i}",
            "task": task,
            "role": "in_domain",
            "dataset": "test",
            "prompt": HOSTILE[1],
            "references": ["yes"],
            "answers": {
                arms[-1]: {
                    "text": "yes",
                    "score": float(answer),
                    "confidence": None,
                    "probabilities": None,
                    "flags": [],
                }
            },
        }
        for task in tasks
        for i, answer in enumerate(final[task])
    ]
    return values, samples


def make_stream_run(path: Path, *, lang: str = "en", replay: dict[str, Any] | None = None, **how: Any) -> Path:
    """Writes a finished run folder of a stream and returns it."""
    make_run(path, lang=lang, seed=how.get("seed", 0))
    for name in ("verdict.json", "risk.json", "layers.json", "results.json"):
        (path / name).unlink()
    values, samples = make_stream(**how)
    text = json.dumps({"schema_version": SCHEMA_VERSION, **values}, ensure_ascii=False)
    (path / "stream.json").write_text(text, encoding="utf-8")
    lines = [json.dumps({"schema_version": SCHEMA_VERSION, **row}, ensure_ascii=False) for row in samples]
    (path / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    status = json.loads((path / "status.json").read_text(encoding="utf-8"))
    (path / "status.json").write_text(json.dumps(status | {"study": "learn"}), encoding="utf-8")
    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    settings = ReplaySettings(policy=values["policy"], **(replay or {}))
    config["replay"] = settings.model_dump(mode="json")
    (path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return path


def _stage(dice: random.Random, arm: str, learns: list[str], tasks: list[str], policy: str) -> dict[str, Any]:
    before = tasks[: tasks.index(learns[0])]
    repeats = policy not in ("none", "joint")
    return {
        "arm": arm,
        "learns": learns,
        "n_train": 100 * len(learns),
        "budget": 20 * len(before),
        "replayed": {task: dice.randrange(5, 40) if repeats else 0 for task in before},
        "pool": dict.fromkeys(before, 100),
        "distances": {
            task: {"value": dice.random(), "standard_error": 0.01 * (i % 2), "exact": i % 2 == 0}
            for i, task in enumerate(before)
        },
        "tagger": "local" if repeats and before else "",
        "kept": dict.fromkeys([*before, *learns], 100),
        "learning_rate": 5e-4,
        "steps": 30,
        "tuning_seconds": 61.5,
        "measuring_seconds": 20.0,
        "bias": [
            {
                "attribute": attribute,
                "within": "task_05" if attribute == "label" else "",
                "value": value,
                "n_pool": 60,
                "n_kept": 10,
                "pool_share": 0.6,
                "kept_share": 0.3,
                "p": 0.0004,
                "flagged": flagged,
            }
            for attribute, value, flagged in (
                ("language", "ja", True),
                ("label", HOSTILE[1], False),
                ("site", "plant_b", False),
            )
        ]
        if repeats and before
        else [],
    }


def _changes(
    tasks: list[str], learned: dict[str, str], right: dict[str, list[bool]], final: dict[str, list[bool]], last: str
) -> list[dict[str, Any]]:
    rows = []
    for task in tasks:
        if learned[task] == last:
            continue
        gap = (sum(final[task]) - sum(right[task])) / N_TEST
        rows.append(
            {
                "task": task,
                "learned": learned[task],
                "before": sum(right[task]) / N_TEST,
                "after": sum(final[task]) / N_TEST,
                "difference": gap,
                "low": gap - 0.1,
                "high": gap + 0.1,
                "decides": abs(gap) > 0.1,
                "right_then_wrong": sum(a and not b for a, b in zip(right[task], final[task], strict=True)),
                "wrong_then_right": 0,
                "n": N_TEST,
            }
        )
    if len(rows) > 1:
        mean = sum(row["difference"] for row in rows) / len(rows)
        overall = {"task": "*", "difference": mean, "low": mean - 0.03, "high": mean + 0.03, "n": N_TEST * len(rows)}
        rows.insert(0, overall | {"decides": abs(mean) > 0.03})
    return rows
