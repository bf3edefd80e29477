"""The layer map: states of all blocks and their comparison, base against tuned, against the published procedure.

Published procedure: one prompt at a time, the states of every prompt to the disk, CKA in its feature form from what is read back. No intervals and no
null there; ours computes both. `bare` is the forward passes alone, batched by length, nothing kept: what no map can be faster than.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import work
from tunescope import layers
from tunescope.models import decoder, length_batches

TITLE = "layer map, base and a model tuned in all blocks"
TARGET = 20.0
_PER_TASK = 50
_N_RESAMPLES, _N_PERMUTATIONS = 200, 100


def _prompts(chat: Any) -> list[list[tuple[int, ...]]]:
    """The sample tasks, up to 50 training prompts each."""
    return [
        [chat.encode(example).prompt_ids for example in train[:_PER_TASK]] for train, _ in work.sample_tasks().values()
    ]


def _pair(share: float) -> tuple[Any, Any, list[list[tuple[int, ...]]]]:
    """Base, a model that differs from it in its upper blocks, and the prompts. The tuning itself is no part of the row."""
    loaded, chat = work.load()
    tuned, _ = work.load()
    torch.manual_seed(0)
    n_changed = round(share * loaded.info.n_layers)
    with torch.no_grad():
        for parameter in tuned.model.model.layers[-n_changed:].parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.abs().mean() * 0.05)
    return loaded.model, tuned.model, _prompts(chat)


def _ours(share: float) -> Callable[[], work.Round]:
    base, tuned, tasks = _pair(share)

    def one_round() -> work.Round:
        started = work.now()
        similar = []
        readers = [layers.Reader(base), layers.Reader(tuned, layers.first_changed_block(base, tuned))]
        for prompts in tasks:
            a, b = (states.last for states in layers.capture_each(readers, prompts))
            for x, y in zip(a[1:], b[1:], strict=True):
                similar.append(layers.cka(x, y, estimator="biased"))
                layers.cka_bootstrap(x, y, n_bootstrap=_N_RESAMPLES, seed=0)
                layers.permutation_null(x, y, n_permutations=_N_PERMUTATIONS, seed=0)
        return work.Round(work.now() - started, _done(tasks), {"mean biased CKA": float(np.mean(similar))})

    return one_round


def _bare(share: float) -> Callable[[], work.Round]:
    base, tuned, tasks = _pair(share)

    @torch.no_grad()
    def one_round() -> work.Round:
        started = work.now()
        for model in (base, tuned):
            for prompts in tasks:
                for batch in length_batches([len(p) for p in prompts], batch_tokens=4096):
                    width = max(len(prompts[i]) for i in batch)
                    ids, mask = torch.zeros((2, len(batch), width), dtype=torch.long)
                    for row, i in enumerate(batch):
                        ids[row, : len(prompts[i])] = torch.tensor(prompts[i])
                        mask[row, : len(prompts[i])] = 1
                    decoder(model)(input_ids=ids.to(work.DEVICE), attention_mask=mask.to(work.DEVICE), use_cache=False)
        return work.Round(work.now() - started, _done(tasks))

    return one_round


def _published(share: float) -> Callable[[], work.Round]:
    base, tuned, tasks = _pair(share)

    def one_round() -> work.Round:
        started = work.now()
        similar = []
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for t, prompts in enumerate(tasks):
                for name, model in (("base", base), ("tuned", tuned)):
                    for i, prompt in enumerate(prompts):
                        np.save(folder / f"{t}-{name}-{i}.npy", _states_of_one(model, prompt))
                x, y = (
                    np.stack([np.load(folder / f"{t}-{name}-{i}.npy") for i in range(len(prompts))], axis=1)
                    for name in ("base", "tuned")
                )
                similar += [_feature_cka(a, b) for a, b in zip(x, y, strict=True)]
        return work.Round(work.now() - started, _done(tasks), {"mean biased CKA": float(np.mean(similar))})

    return one_round


@torch.no_grad()
def _states_of_one(model: Any, prompt: tuple[int, ...]) -> np.ndarray:
    """Last-token states after every block, (n_layers, d_model); the last one before the final norm, as ours."""
    kept: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda _m, _i, out: kept.append((out[0] if isinstance(out, tuple) else out)[0, -1].float())
        )
        for block in model.model.layers
    ]
    model(input_ids=torch.tensor([prompt], device=work.DEVICE), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(kept).cpu().numpy()


def _feature_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(x.T @ y) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _done(tasks: list[list[tuple[int, ...]]]) -> dict[str, float]:
    return {"tasks": len(tasks), "prompts": sum(map(len, tasks)), "tokens": sum(len(p) for t in tasks for p in t)}


def sides(share: float) -> dict[str, work.Side]:
    """The three sides, with a tuned model that differs from its base in the upper `share` of the blocks."""
    made = {OURS: _ours, "published procedure": _published, "bare forward passes": _bare}
    return {name: functools.partial(side, share) for name, side in made.items()}


OURS = "tunescope"
PEERS = ("published procedure",)
SIDES = sides(1.0)
BESIDE = {"bare forward passes": round(1 / 1.15, 2)}  # at most 1.15 times their time
