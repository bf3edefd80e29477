"""Writes a run folder of the study ``map`` from the records: 60 tasks, 30 blocks, long, Japanese and hostile names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fake_run import HOSTILE
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from tunescope.runs.records import SCHEMA_VERSION, Bands, LayerScores

N_TASKS, N_BLOCKS = 60, 30
PROFILE = {"base": "cka_in_out", "pair": "cka_base_tuned", "mossa": "cka_tuned_specialist"}
KINDS = (
    "question_answering",
    "sentiment_classification",
    "summarization",
    "entailment",
    "paraphrase_validation",
    "structured_text_generation",
    "quality_report_要約",
    "現場報告の部署振り分け",
    "設備点検記録の異常判定",
    "translation",
)
Table = npt.NDArray[np.float64]


def task_names(n_tasks: int = N_TASKS) -> list[str]:
    """Names of tasks, the first ones hostile."""
    names = [HOSTILE[0], 'a&b "quoted" <i>name</i>', "tab\tline\nbreak", "x" * 120]
    names += [
        f"task{37 * i + 11:03d}_{KINDS[i % len(KINDS)]}_{('easy', 'hard_negatives', 'v2')[i % 3]}"
        for i in range(n_tasks)
    ]
    return names[:n_tasks]


def profiles(mode: str, n_tasks: int, n_blocks: int) -> tuple[Table, Table]:
    """(base, tuned) similarities to the specialists; in the other modes the second is the profile."""
    random = np.random.default_rng(7)
    x = np.arange(n_blocks) / max(1, n_blocks - 1)
    kind = np.arange(n_tasks) % 3
    level = random.normal(0, 0.03, (n_tasks, 1)) + np.array([0.0, -0.09, -0.2])[kind][:, None]
    rise = 1 / (1 + np.exp(-(x - 0.4) * 22))
    base = 0.82 - 0.25 * x + level + random.normal(0, 0.012, (n_tasks, n_blocks))
    tuned = base - 0.05 + rise * (0.3 + np.array([0.02, 0.06, 0.1])[kind][:, None] * (1 - x))
    if mode == "base":
        tuned = 0.97 - 0.05 * np.sin(9 * x) ** 2 + 0.1 * level + random.normal(0, 0.004, (n_tasks, n_blocks))
        tuned[:, 0] = 0.42 + level[:, 0]
    if mode == "mossa":
        tuned[2::12, :3] = random.normal(0.02, 0.01, tuned[2::12, :3].shape)
        base[2::3, -4:] = random.normal(0.02, 0.01, base[2::3, -4:].shape)
    return np.clip(base, -0.05, 0.995), np.clip(tuned, -0.05, 0.995)


def _scores(name: str, task: str, values: Table, half: float, n: int, *, null: float | None = None) -> dict[str, Any]:
    row = [float(value) for value in values]
    return LayerScores(
        name=name,
        unit="similarity",
        layers=tuple(f"block.{i}" for i in range(len(row))),
        values=tuple(row),
        n=n,
        higher_means="more alike",
        low=tuple(value - half for value in row),
        high=tuple(value + half for value in row),
        task=task,
        null=None if null is None else tuple([null] * len(row)),
    ).to_dict()


def clusters(table: Table, names: list[str]) -> dict[str, Any]:
    """As `layers.Clusters.to_dict` writes it, cut into three."""
    from scipy.cluster.hierarchy import fcluster

    tree = linkage(pdist(table / np.sqrt(table.shape[1])), method="average", optimal_ordering=True)
    order = [int(row) for row in leaves_list(tree)]
    found = fcluster(tree, 3, criterion="maxclust").tolist()
    left = list(dict.fromkeys(found[row] for row in order))
    return {
        "names": names,
        "linkage": [[float(a), float(b), float(height), int(size)] for a, b, height, size in tree],
        "order": order,
        "labels": [left.index(label) for label in found],
        "silhouette": 0.61,
        "null": 0.4,
        "why": "3 clusters: best silhouette 0.61, 95% of profiles without clusters stay below 0.40",
    }


def bands(mode: str, n_blocks: int, n_tasks: int, *, found: bool) -> dict[str, Any]:
    """Bands as `layers.find_bands` gives them."""
    names = tuple(f"block.{i}" for i in range(n_blocks))
    if not found:
        why = (
            "no transition band found: two breaks explain the profiles no better than a smooth curve of degree 6 (criterion -3.1, "
            "above 0 wanted); signals with random phases do as well with p 0.412, at most 0.050 wanted; a boundary stays within one "
            "block in only 41% of the resamples, 80% wanted (best candidate block.9 to block.15: two breaks in the slopes of median "
            "and spread of one profile, without the published signs, which need specialists; 60 tasks, chance p 0.412, boundaries "
            "within one block in 41% and 77% of 200 resamples of tasks)"
        )
        return Bands(False, why, names, n_tasks=n_tasks).to_dict()
    start, end = round(n_blocks * 0.33), round(n_blocks * 0.53)
    why = "two breaks in the slopes of median, spread and g, with the published signs; 60 tasks, chance p 0.005"
    return Bands(
        True, why, names, (start, end), (start - 1, end - 1), (start + 1, end + 2), (0.97, 0.88), n_tasks
    ).to_dict()


def make_layers(
    mode: str = "mossa", *, n_tasks: int = N_TASKS, n_blocks: int = N_BLOCKS, found: bool = True, causal: bool = True
) -> dict[str, Any]:
    """Content of ``layers.json``, shaped as a map writes it; plain values, no NaN."""
    names = task_names(n_tasks)
    base, tuned = profiles(mode, n_tasks, n_blocks)
    main = PROFILE[mode]
    tables = {main: tuned} | ({"cka_base_specialist": base} if mode == "mossa" else {})
    rows = []
    for name, table in tables.items():
        rows += [_scores(name, task, table[i], 0.03, 100, null=0.06) for i, task in enumerate(names)]
        rows.append(_scores(name, "*", np.median(table, axis=0), 0.02, n_tasks, null=0.06))
        low, high = np.quantile(table, [0.25, 0.75], axis=0)
        rows.append(_scores(f"spread:{name}", "*", high - low, 0.012, n_tasks))
    if mode == "mossa":
        rows.append(_scores("gain", "*", np.median(tuned - base, axis=0), 0.015, n_tasks))
    rise = np.linspace(0.5, 1, n_blocks)
    rows.append(_scores("separability", "*", rise, 0.02, 100 * n_tasks, null=1.4 / n_tasks))
    if causal and mode != "base":
        effect = 0.02 * np.exp(-(((np.arange(n_blocks) - 0.45 * n_blocks) / (0.2 * n_blocks)) ** 2)) - 0.001
        for task in (*names, "*"):
            rows.append(_scores("causal", task, effect, 0.004, 8))
    blocks = [f"block.{i}" for i in range(n_blocks)]
    cut, upper = round(n_blocks * 0.33), round(n_blocks * 0.53)
    proposals = [
        ("top_third", blocks[-round(n_blocks / 3) :], "the blocks next to the output: the rule of thumb", 0.67)
    ]
    if mode != "mossa":
        proposals.insert(
            0, ("top_change", blocks[cut + 2 : cut + 6] + blocks[-3:], "the 7 blocks with the largest change", 0.78)
        )
    if found:
        proposals = [
            ("upper_cut", blocks[cut:], "everything above the shared band", 0.83),
            ("refinement", blocks[upper:], "the refinement band alone", 0.67),
            ("top_gain", blocks[cut + 2 : cut + 6] + blocks[-3:], "the 7 blocks with the largest g", 0.78),
            ("top_causal", blocks[cut - 2 : cut + 7 : 2], "the 5 blocks whose return raises the loss most", 0.86),
            *proposals,
        ]
    return {
        "schema_version": SCHEMA_VERSION,
        "scores": rows,
        "selections": {},
        "map": {
            "mode": mode,
            "estimator": "debiased",
            "states": "last",
            "tasks": [
                {"name": name, "family": ("classification", "generation", "")[i % 3], "n_prompts": 100 - i % 7}
                for i, name in enumerate(names)
            ],
            "d_model": 576,
            "bands": bands(mode, n_blocks, n_tasks, found=found) if n_blocks >= 6 else None,
            "clusters": clusters(tuned, names) if n_tasks > 3 else None,
            "agreement": {"correlation": 0.62, "p_value": 0.0004, "shift_p_value": 0.033, "n": n_blocks}
            if causal and mode != "base"
            else None,
            "proposals": [
                {
                    "name": name,
                    "layers": chosen,
                    "why": why,
                    "trainable_parameters": 81_408 * len(chosen),
                    "relative_cost": cost,
                    "memory_bytes": 900 * 1024**2 + 12 * 1024**2 * len(chosen),
                }
                for name, chosen, why, cost in proposals
                if chosen
            ],
            "seconds": {"capture": 214.2, "specialists": 512.0, "similarity": 48.1, "causal": 90.5},
        },
    }


def make_map_run(path: Path, *, lang: str = "en", **kinds: Any) -> Path:
    """Writes a run folder of the study ``map`` under `path` and returns it."""
    path.mkdir(parents=True, exist_ok=True)
    files = {
        "layers.json": make_layers(**kinds),
        "status.json": {
            "state": "done",
            "study": "map",
            "stage": "done",
            "error": None,
            "command": "tunescope map config.yaml",
            "started": "2026-11-22T09:12:04+00:00",
            "finished": "2026-11-22T09:27:41+00:00",
        },
        "environment.json": {
            "tunescope": "0.1.0",
            "python": "3.11.9",
            "packages": {"torch": "2.13.0"},
            "device": "cpu",
            "cpu": "AMD EPYC 9B14",
            "threads": 2,
            "seed": 42,
            "command": "tunescope map config.yaml",
            "model": {"name": "smollm2-135m-instruct", "revision": "1.0.0", "n_layers": 30, "license": "Apache-2.0"},
            "started": "2026-11-22T09:12:04+00:00",
        },
    }
    for name, values in files.items():
        text = json.dumps({"schema_version": SCHEMA_VERSION, **values}, ensure_ascii=False, allow_nan=False)
        (path / name).write_text(text, encoding="utf-8")
    (path / "config.yaml").write_text(f"language: {lang}\nseed: 42\n", encoding="utf-8")
    return path
