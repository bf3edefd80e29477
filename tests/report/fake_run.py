"""Writes a realistic run folder from the records, so that the report can be tested and looked at without a model."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from tunescope.config.models import Config
from tunescope.runs.generalisation import CurvePoint, DataCurve, MatrixCell, Rewording, WeightChange
from tunescope.runs.records import (
    SCHEMA_VERSION,
    Answer,
    Finding,
    Forecast,
    LayerScores,
    MoneyLine,
    Result,
    Risk,
    Role,
    Sample,
    Selection,
    Sensitivity,
    StepRecord,
    Verdict,
)

ARMS = ("nothing", "prompt", "selected", "random", "lora-all")
TUNED = ("selected", "random", "lora-all")
LABELS = {
    "routing": ("it", "facility", "hr", "quality"),
    "sentiment": ("negative", "neutral", "positive"),
    "duplicates": ("yes", "no"),
    "policy": ("allowed", "forbidden", "unclear"),
}
TASKS = (*LABELS, "extraction", "summary")
METRIC = {"extraction": "json_fields", "summary": "rouge_l"}
N_TEST = {"routing": 80, "sentiment": 70, "duplicates": 70, "policy": 60, "extraction": 60, "summary": 60}
GAIN = {"nothing": 0.0, "prompt": 0.07, "selected": 0.26, "random": 0.22, "lora-all": 0.28}
N_BLOCKS = 30
CHOSEN = {"selected": range(20, 30), "random": (1, 4, 6, 9, 13, 14, 18, 22, 25, 28), "lora-all": range(30)}
HOSTILE = (
    "<script>alert('owned')</script>",
    '"><img src=x onerror=alert(1)> & <b>bold</b>',
    "bell\x07 escape\x1b[31m null\x00 right-to-left \u202eevil\u202c end",
    "$\\frac{1}{0}$ {{ 7 * 7 }} {% raw %}",
    "very-long-word-" * 60,
)


def make_run(path: Path, *, lang: str = "en", seed: int = 0, decision: str = "tune") -> Path:
    """Writes every file of a run folder under `path` and returns it."""
    rng = random.Random(seed)
    path.mkdir(parents=True, exist_ok=True)
    config = _config(path, lang, seed)
    (path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    results = _results(rng, seed)
    _json(path / "environment.json", _environment(seed))
    _json(path / "data.json", _data(lang))
    _jsonl(path / "steps.jsonl", [step.to_dict() for step in _steps(rng)])
    _json(path / "layers.json", _layers(rng))
    _json(path / "results.json", {"results": [row.to_dict() for row in results]})
    _jsonl(path / "samples.jsonl", [sample.to_dict() for sample in _samples(rng, lang)])
    _json(path / "costs.json", _costs(rng))
    _json(path / "verdict.json", _verdict(results, decision).to_dict())
    _json(path / "risk.json", {"risks": [risk.to_dict() for risk in _risks(rng)]})
    _json(path / "generalisation.json", _generalisation(results))
    _json(path / "curve.json", {"curves": [curve.to_dict() for curve in _data_curves()], "seconds": 812.0})
    _jsonl(
        path / "ledger.jsonl",
        [
            {
                "seq": i,
                "time": f"2026-11-22T09:{12 + 8 * i}:04+00:00",
                "actor": "tunescope",
                "event": event,
                "details": {},
                "hash": f"{i:x}f" * 32,
            }
            for i, event in enumerate(("data_accepted", "verdict"), 1)
        ],
    )
    _json(
        path / "status.json",
        {
            "state": "done",
            "study": "poc",
            "stage": "verdict",
            "error": None,
            "started": "2026-11-22T09:12:04+00:00",
            "finished": "2026-11-22T09:20:41+00:00",
        },
    )
    return path


def _generalisation(results: list[Result]) -> dict[str, Any]:
    cells = [
        MatrixCell(
            arm=row.arm,
            task=row.task,
            dataset=row.dataset,
            role=row.role,
            relation="other" if row.task == "policy" else "same",
            metric=row.metric,
            n=row.n,
            value=row.value,
            low=row.low,
            high=row.high,
            difference=row.difference,
            difference_low=row.difference_low,
            difference_high=row.difference_high,
            noise_floor=row.noise_floor,
            collapse_rate=0.3
            if row.task == "summary" and row.arm == "lora-all"
            else 0.0
            if row.task in METRIC
            else None,
            unrelated_rate=0.35 if row.task in METRIC else None,
            demonstrations=2 if row.arm == "prompt" else 0,
        )
        for row in results
        if row.role != "guard"
    ]
    changes = [
        WeightChange(
            arm,
            2e-5 * (1 + i),
            {f"block.{b}": 3e-5 * (b in CHOSEN[arm]) for b in range(N_BLOCKS)},
            changed_fraction=0.3,
        )
        for i, arm in enumerate(TUNED)
    ]
    reworded = [
        Rewording(arm, "routing", "routing.test", "in_domain", 50, 2, 0.8 + 0.04 * i, 0.7, 0.95, 0.6, (0.58, 0.61))
        for i, arm in enumerate(ARMS)
    ]
    return {
        "cells": [cell.to_dict() for cell in cells],
        "weight_change": [row.to_dict() for row in changes],
        "reworded": [row.to_dict() for row in reworded],
        "paraphrases": {"routing": ["Who should get this?", HOSTILE[0]]},
    }


def _data_curves() -> list[DataCurve]:
    points = tuple(
        CurvePoint(n, n / 256, 0.82 - 2 * n**-0.5, 0.79 - 2 * n**-0.5, 0.85 - 2 * n**-0.5, 60.0 * (n < 256))
        for n in (32, 64, 128, 256)
    )
    known = {"floor": 0.18, "scale": 2.0, "exponent": 0.5}
    told = DataCurve("selected", "in_domain", points, 0.41, **known, gain=0.036, gain_low=0.01, gain_high=0.07)
    refused = {"why": "too_wide", "details": {"low": 0.0, "high": 0.31, "fall": 0.2}}
    return [told, DataCurve("selected", "out_of_domain", points, 0.38, **known, **refused)]  # type: ignore[arg-type]


def _json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(
        json.dumps({"schema_version": SCHEMA_VERSION, **values}, ensure_ascii=False, indent=1), encoding="utf-8"
    )


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps({"schema_version": SCHEMA_VERSION, **row}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _config(path: Path, lang: str, seed: int) -> dict[str, Any]:
    tasks = [
        {
            "name": name,
            "family": "classification" if name in LABELS else "generation",
            "train": f"data/{name}.train.jsonl",
            "test": f"data/{name}.test.jsonl",
            "out_of_domain": [f"data/{name}.plant_b.jsonl"],
            "labels": LABELS.get(name),
            "metric": METRIC.get(name, "accuracy"),
        }
        for name in TASKS
    ]
    config = Config.model_validate(
        {"output_dir": str(path), "language": lang, "seed": 42 + seed, "tasks": tasks, "guard": ["data/guard.jsonl"]}
    )
    plain: dict[str, Any] = config.model_dump(mode="json")
    return plain


def _environment(seed: int) -> dict[str, Any]:
    return {
        "tunescope": "0.1.0",
        "python": "3.11.9",
        "packages": {"torch": "2.13.0", "transformers": "5.3.0", "peft": "0.19.1", "numpy": "2.4.6"},
        "git": {"commit": "4f0c2a9be1d27c83aa10b7725e0d5a34b7cd9e11", "dirty": True},
        "platform": "Linux-6.1-x86_64",
        "cpu": "AMD EPYC 9B14",
        "cores": 2,
        "threads": 2,
        "memory_bytes": 8 * 1024**3,
        "device": "cpu",
        "dtype": "bfloat16",
        "seed": 42 + seed,
        "command": "tunescope poc helpdesk.yaml tuning.num_epochs=3",
        "model": {
            "name": "smollm2-135m-instruct",
            "source": "pypi",
            "revision": "1.0.0",
            "sha256": "9d" * 32,
            "family": "llama",
            "n_layers": N_BLOCKS,
            "parameters": 134_515_008,
            "license": "Apache-2.0",
        },
        "files": {f"data/{name}.train.jsonl": f"{i:02x}" * 32 for i, name in enumerate(TASKS)},
        "score_batch_noise": 0.00012,
        "started": "2026-11-22T09:12:04+00:00",
    }


def _data(lang: str) -> dict[str, Any]:
    files, counts = [], {}
    for name in TASKS:
        for role, rows in (("train", 110), ("test", N_TEST[name]), ("out_of_domain", 40)):
            suffix = {"train": "train", "test": "test", "out_of_domain": "plant_b"}[role]
            path = f"data/{name}.{suffix}.jsonl"
            files.append(
                {
                    "path": path,
                    "task": name,
                    "role": role,
                    "format": "alpaca",
                    "rows": rows,
                    "used": rows - 2 * (role == "train"),
                    "sha256": "c3" * 32,
                    "prompt_tokens": {"p50": 64, "p95": 121, "max": 180},
                    "target_tokens": {"p50": 4, "p95": 31, "max": 58},
                }
            )
            if name in LABELS:
                counts.setdefault(name, {})[path] = {label: rows // (i + 2) for i, label in enumerate(LABELS[name])}
    files.append(
        {
            "path": "data/guard.jsonl",
            "task": "guard",
            "role": "guard",
            "format": "messages",
            "rows": 40,
            "used": 40,
            "sha256": "d4" * 32,
            "prompt_tokens": {"p50": 30, "p95": 66, "max": 90},
            "target_tokens": {"p50": 40, "p95": 88, "max": 120},
        }
    )
    findings = [
        *[
            Finding(
                "duplicate_exact",
                "warning",
                "data/routing.train.jsonl",
                n,
                f"repeats line {n - 7}; left out of training",
                "routing",
            )
            for n in (17, 44, 63, 90)
        ],
        *[
            Finding(
                "leakage",
                "warning",
                "data/policy.train.jsonl",
                n,
                f"stands in data/policy.test.jsonl, line {n + 3}; left out of training",
                "policy",
            )
            for n in (12, 31)
        ],
        *[
            Finding(
                "personal_email",
                "info",
                "data/summary.train.jsonl",
                n,
                "e-mail address “m<b>…</b>@example.com”: mask it or state why it is needed",
                "summary",
            )
            for n in range(5, 17)
        ],
        Finding(
            "label_conflict",
            "info",
            "data/sentiment.train.jsonl",
            71,
            "same text as line 12, other label (<script>alert(1)</script>)",
            "sentiment",
        ),
    ]
    prompt = "現場からの報告です。どの部署が担当しますか？" if lang == "ja" else "Which desk handles this ticket?"
    tokens = [["<|im_start|>", False], ["user", False], ["\n", False]]
    tokens += [
        [part, False]
        for part in (prompt, "\n\n", "The", " badge", " reader", " at", " gate", " 4", " stays", " dark", ".")
    ]
    tokens += [["<|im_end|>", False], ["\n", False], ["<|im_start|>", False], ["assistant", False], ["\n", False]]
    tokens += [
        ["<script>alert(2)</script>", False],
        ["fac", True],
        ["ility", True],
        ["<|im_end|>", True],
        ["\n", False],
    ]
    return {
        "files": files,
        "label_counts": counts,
        "findings": [finding.to_dict() for finding in findings],
        "example": {"file": "data/routing.train.jsonl", "id": "routing-0007", "tokens": tokens},
    }


def _steps(rng: random.Random) -> list[StepRecord]:
    rows = []
    for arm, final in (("selected", 0.62), ("random", 0.70), ("lora-all", 0.50)):
        for step in range(1, 226):
            loss = final + 2.0 * math.exp(-step / 40) + rng.gauss(0, 0.09)
            check = (
                final + 0.25 + 1.9 * math.exp(-step / 38) + (0.0012 * max(0, step - 150) if arm == "lora-all" else 0)
            )
            rows.append(
                StepRecord(
                    arm,
                    step,
                    step / 75,
                    loss,
                    2e-4 * min(1, step / 12) * (1 - step / 240),
                    0.8 + rng.random(),
                    900,
                    90,
                    0.6,
                    validation_loss=check if step % 37 == 0 or step == 225 else None,
                )
            )
    return rows


def _layers(rng: random.Random) -> dict[str, Any]:
    names = tuple(f"block.{i}" for i in range(N_BLOCKS))
    values = tuple(
        0.02 + 0.05 / (1 + math.exp(-(i - 19) / 2.2)) + 0.004 * rng.random() + (0.03 if i == 0 else 0)
        for i in range(N_BLOCKS)
    )
    scores = LayerScores(
        "gradient_norm",
        "nats per target token per unit of weight",
        names,
        values,
        32,
        "the loss changes more when this block moves",
        low=tuple(v * 0.85 for v in values),
        high=tuple(v * 1.15 for v in values),
    )
    whys = {
        "selected": "the 10 blocks with the highest mean gradient norm on 32 training examples",
        "random": "10 blocks drawn at random, seed 42",
        "lora-all": "every block",
    }
    selections = {
        arm: Selection(
            "lora",
            tuple(f"block.{i}" for i in blocks),
            ("q", "k", "v", "o", "gate", "up", "down"),
            whys[arm],
            trainable_parameters=81_408 * len(list(blocks)),
            total_parameters=134_515_008,
            lowest_layer=min(blocks),
        ).to_dict()
        for arm, blocks in CHOSEN.items()
    }
    return {"scores": [scores.to_dict()], "selections": selections}


def _row(
    arm: str, task: str, role: Role, *, metric: str, numbers: tuple[float, float, int], seed: int, dataset: str
) -> Result:
    value, base, n = numbers
    half = 1.6 / math.sqrt(n) * 0.6
    gap = value - base
    loss = metric == "loss"
    half = half / 6 if loss else half
    pair = half * (0.5 if loss else 0.85)
    untuned = arm == "nothing"
    return Result(
        arm,
        task,
        role,
        metric,
        value,
        value - half,
        value + half if loss else min(1.0, value + half),
        n,
        not loss,
        None if untuned else gap,
        None if untuned else gap - pair,
        None if untuned else gap + pair,
        None if untuned else pair,
        task_version="f00d" * 4 if task in ("*", "guard") else f"{TASKS.index(task):04x}" * 4,
        seed=None if arm in ("nothing", "prompt") else 42 + seed,
        dataset=dataset,
    )


def _results(rng: random.Random, seed: int) -> list[Result]:
    rows = []
    base = {name: 0.34 + 0.05 * i + 0.01 * seed for i, name in enumerate(TASKS)}
    for arm in ARMS:
        role: Role
        for role, keep, n_of in (("in_domain", 1.0, N_TEST), ("out_of_domain", 0.55, dict.fromkeys(TASKS, 40))):
            values = []
            for name in TASKS:
                start = base[name] - (0.04 if role == "out_of_domain" else 0)
                value = min(0.97, max(0.02, start + GAIN[arm] * keep + (rng.gauss(0, 0.05) if arm != "nothing" else 0)))
                values.append((value, start))
                rows.append(
                    _row(
                        arm,
                        name,
                        role,
                        metric=METRIC.get(name, "accuracy"),
                        numbers=(value, start, n_of[name]),
                        seed=seed,
                        dataset=f"{name}.test" if role == "in_domain" else f"{name}.plant_b",
                    )
                )
            mean, first = (sum(pair[i] for pair in values) / len(values) for i in (0, 1))
            rows.append(
                _row(
                    arm,
                    "*",
                    role,
                    metric="mean_score",
                    numbers=(mean, first, sum(n_of.values())),
                    seed=seed,
                    dataset="",
                )
            )
        rise = {"nothing": 0.0, "prompt": 0.0, "selected": 0.021, "random": 0.034, "lora-all": 0.118}[arm]
        rows.append(
            _row(arm, "guard", "guard", metric="loss", numbers=(2.214 + rise, 2.214, 40), seed=seed, dataset="guard")
        )
    return rows


def _samples(rng: random.Random, lang: str) -> list[Sample]:
    rows = []
    for name in TASKS:
        role: Role
        for role, n, dataset in (("in_domain", N_TEST[name], f"{name}.test"), ("out_of_domain", 40, f"{name}.plant_b")):
            for i in range(n):
                rows.append(_sample(rng, (name, role, dataset), i, lang))
    for i, text in enumerate(HOSTILE):
        answers = {
            arm: Answer(text, float(arm == "nothing"), flags=("endless", "made_up_flag")).to_dict() for arm in ARMS
        }
        rows.append(
            Sample(f"hostile-{i}", f"hostile{i}", "in_domain", "summary.test", f"Summarise: {text}", (text,), answers)
        )
    answers = {arm: Answer("A general answer.", 2.2).to_dict() for arm in ARMS}
    rows.append(
        Sample("guard-1", "guard", "guard", "guard", "Name three primary colours.", ("Red, yellow, blue.",), answers)
    )
    return rows


def _sample(rng: random.Random, where: tuple[str, Role, str], i: int, lang: str) -> Sample:
    name, role, dataset = where
    labels = LABELS.get(name)
    if lang == "ja":
        ticket = f"{i + 1}番ラインの表示器が朝から点灯しません。昨日の清掃後から不調です。"
        prompt = f"次の問い合わせを読み、担当部署を答えてください。\n\n{ticket}"
    else:
        ticket = f"Ticket {i + 1}: the display of line {i % 7 + 1} stays dark since the cleaning on Monday. "
        prompt = f"Read the ticket and answer.\n\n{ticket}" + "We tried the breaker twice. " * (i % 9)
    right = labels[i % len(labels)] if labels else '{"line": 3, "part": "display", "since": "Monday"}'
    answers: dict[str, Any] = {}
    for arm in ARMS:
        sure = 0.45 + 0.5 * rng.random()
        hit = rng.random() < sure - (0.25 if arm == "nothing" else 0.1) + (0.08 if arm in TUNED else 0)
        if labels:
            text = right if hit else rng.choice([label for label in labels if label != right])
            answers[arm] = Answer(text, float(hit), sure, {text: sure}).to_dict()
        else:
            score = round(min(1.0, max(0.0, 0.3 + GAIN[arm] * 1.5 + rng.gauss(0, 0.2))), 3)
            answers[arm] = Answer(
                f"The display of line {i % 7 + 1} is dark since Monday.",
                score,
                flags=() if score > 0.2 else ("copies_prompt",),
            ).to_dict()
    return Sample(f"{name}-{role}-{i:03d}", name, role, dataset, prompt, (right,), answers)


def _costs(rng: random.Random) -> dict[str, Any]:
    forecast, actual = [], []
    seconds = {"nothing": 0.0, "prompt": 0.0, "selected": 74.0, "random": 121.0, "lora-all": 158.0}
    for arm in ARMS:
        blocks = len(list(CHOSEN.get(arm, ())))
        tuned = arm in TUNED
        common: dict[str, Any] = {
            "trainable_parameters": 81_408 * blocks,
            "adapter_bytes": 325_632 * blocks,
            "steps": 225 * tuned,
            "tokens": 202_500 * tuned,
            "learning_rate": 2e-4 if tuned else None,
            "learning_rate_why": "best of 3 probed on the held-out slice" if tuned else "",
        }
        p50 = 0.21 if arm != "prompt" else 0.64
        forecast.append(Forecast(arm, seconds[arm] * 0.92, 31.0, int(1.4e9 + 3e7 * blocks), **common).to_dict())
        actual.append(
            Forecast(
                arm,
                seconds[arm] * rng.uniform(0.95, 1.2),
                33.5 if arm != "prompt" else 61.0,
                int(1.55e9 + 3.2e7 * blocks),
                latency_p50_seconds=p50,
                latency_p95_seconds=p50 * 2.3,
                **common,
            ).to_dict()
        )
    return {
        "forecast": forecast,
        "actual": actual,
        "total_seconds": 517.0,
        "peak_memory_bytes": int(2.6e9),
        "base_model_bytes": 269_030_016,
    }


def _verdict(results: list[Result], decision: str) -> Verdict:
    quality = {row.arm: row for row in results if row.task == "*" and row.role == "in_domain"}
    guard = {row.arm: row for row in results if row.role == "guard"}
    money = []
    for arm in ARMS:
        row = quality[arm]
        worth = [p * 0.4 - (1 - p) * 0.8 for p in (row.value, row.low, row.high)]
        fixed = 480.4 if arm in TUNED else 0.0
        net = [24_000 * w - fixed for w in worth]
        money.append(MoneyLine(arm, *worth, fixed, 0.00003, *net, 2_960.0 if arm in TUNED else 0.0))
    gap = quality["selected"].value - quality["prompt"].value
    gain = money[2].net_over_horizon - money[1].net_over_horizon
    if decision == "not_enough_evidence":
        return Verdict(
            "not_enough_evidence",
            None,
            None,
            ({"code": "thin_evidence", "n": 18, "needed": 30}, {"code": "something_new", "depth": 3, "name": "x<y"}),
            ({"code": "collect_test_examples", "have": 18, "need": 120}, {"code": "collect_ood_examples"}),
            tuple(money),
        )
    if decision == "do_not_tune":
        return Verdict(
            "do_not_tune",
            "prompt",
            0.41,
            (
                {
                    "code": "within_noise",
                    "arm": "selected",
                    "against": "prompt",
                    "value": 0.012,
                    "low": -0.03,
                    "high": 0.05,
                    "noise_floor": 0.04,
                },
                {"code": "money_negative", "arm": "selected", "against": "prompt", "value": -310.0, "currency": "EUR"},
            ),
            ({"code": "use_untuned", "arm": "prompt"}, {"code": "collect_training_examples"}),
            tuple(money),
        )
    reasons: tuple[dict[str, Any], ...] = (
        {
            "code": "gain",
            "arm": "selected",
            "against": "prompt",
            "value": gap,
            "low": gap - 0.04,
            "high": gap + 0.04,
            "n": 400,
        },
        {
            "code": "money",
            "arm": "selected",
            "against": "prompt",
            "value": gain,
            "low": gain - 1100,
            "high": gain + 1100,
            "months": 12,
            "currency": "EUR",
        },
        {"code": "guard_ok", "arm": "selected", "value": guard["selected"].difference, "limit": 0.1},
        {"code": "guard_worse", "arm": "lora-all", "value": guard["lora-all"].difference, "limit": 0.1},
        {"code": "ood_gain", "arm": "selected", "value": 0.09, "low": 0.02, "high": 0.16},
        {"code": "cheapest_of_equals", "arm": "selected", "equals": ["selected", "random"]},
        {"code": "random_as_good", "arm": "random", "value": 0.018, "low": -0.02, "high": 0.056},
    )
    steps = (
        {"code": "pilot", "arm": "selected", "requests": 500},
        {"code": "human_review", "arm": "selected", "share": 0.34, "error": 0.05},
        {"code": "check_wrong_but_sure", "arm": "selected"},
        {"code": "rerun_more_seeds"},
        {"code": "future_step", "count": 7},
    )
    bases = {
        "requests_per_month": 2000,
        "value_of_right_answer": 0.4,
        "cost_of_wrong_answer": 0.8,
        "person_hours": 8,
        "machine_cost_per_hour": 0.5,
    }
    sensitivity = tuple(
        Sensitivity(
            name,
            base,
            factor,
            "do_not_tune" if (name, factor) == ("requests_per_month", 0.25) else "tune",
            "prompt" if (name, factor) == ("requests_per_month", 0.25) else "selected",
            0.0
            if (name, factor) == ("requests_per_month", 0.25)
            else gain * (factor if name == "requests_per_month" else 0.7 + 0.3 * factor) - 90,
        )
        for name, base in bases.items()
        for factor in (0.25, 0.5, 2.0, 4.0)
    )
    return Verdict(
        "tune",
        "selected",
        0.987,
        reasons,
        steps,
        tuple(money),
        sensitivity,
        {"difference": 0.018, "low": -0.02, "high": 0.056},
    )


def _risks(rng: random.Random) -> list[Risk]:
    rows = []
    for arm in ARMS:
        role: Role
        for role, n in (("in_domain", 280), ("out_of_domain", 160)):
            top = 0.62 - GAIN[arm] * (1.3 if role == "in_domain" else 0.7)
            coverage = tuple((i + 1) / 20 for i in range(20))
            risk = tuple(round(top * c**1.4 + 0.006 * rng.random(), 4) for c in coverage)
            reach = None if arm == "nothing" or role == "out_of_domain" else max(0.0, 0.6 - GAIN[arm])
            rows.append(
                Risk(
                    arm,
                    role,
                    n,
                    0.04 + 0.2 * rng.random(),
                    coverage,
                    risk,
                    sum(risk) / 20,
                    reach,
                    0.05,
                    None if reach is None else 0.047,
                    0.02 * rng.random(),
                    0.05 * rng.random(),
                    None if reach is None else 0.74,
                    "validation",
                    64,
                    0 if reach is None else round(n * (1 - reach)),
                    None if reach is None else 0.02,
                    None if reach is None else 0.09,
                )
            )
    return rows
