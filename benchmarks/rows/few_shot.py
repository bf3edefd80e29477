"""Few-shot multiple choice: the same requests, the same predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import work
from tunescope.models import continuation_logprobs

TITLE = "few-shot multiple choice, 5 examples in the prompt"
TARGET = 5.0
_TASK, _SHOTS, _QUESTIONS = "sentiment", 5, 48
_LABELS = (" positive", " negative")


def _requests() -> list[str]:
    train, test = work.sample_tasks()[_TASK]
    shown = "\n\n".join(f"{e.prompt_text}\nAnswer: {e.targets[0]}" for e in train[:_SHOTS])
    return [f"{shown}\n\n{e.prompt_text}\nAnswer:" for e in test[:_QUESTIONS]]


def _quality(predictions: list[int]) -> dict[str, Any]:
    """The predictions, and the share of them that is right."""
    test = work.sample_tasks()[_TASK][1][:_QUESTIONS]
    right = [_LABELS[p].strip() == e.targets[0] for p, e in zip(predictions, test, strict=True)]
    return {"predictions": predictions, "accuracy": sum(right) / len(right)}


def _ours() -> Callable[[], work.Round]:
    loaded, _ = work.load()
    prompts = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in _requests()]
    labels = [loaded.tokenizer(label, add_special_tokens=False)["input_ids"] for label in _LABELS]

    def one_round() -> work.Round:
        started = work.now()
        found = continuation_logprobs(loaded.model, prompts, labels, float32_head=True).argmax(1).tolist()
        return work.Round(work.now() - started, _done(prompts), _quality(found))

    return one_round


def _harness(batch_size: int, dtype: str) -> work.Side:
    def make() -> Callable[[], work.Round]:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        loaded, _ = work.load(dtype)
        loaded.model.set_attn_implementation("sdpa")
        harness = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size, add_bos_token=False)
        texts = _requests()
        prompts = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

        def one_round() -> work.Round:
            requests = [
                Instance("loglikelihood", {}, (text, label), i) for text in texts for i, label in enumerate(_LABELS)
            ]
            started = work.now()
            logs = [log for log, _ in harness.loglikelihood(requests, disable_tqdm=True)]
            seconds = work.now() - started
            rows = [logs[i : i + len(_LABELS)] for i in range(0, len(logs), len(_LABELS))]
            return work.Round(seconds, _done(prompts), _quality([row.index(max(row)) for row in rows]))

        return one_round

    return make


def _done(prompts: list[list[int]]) -> dict[str, float]:
    return {"questions": len(prompts), "prompt tokens": sum(map(len, prompts))}


OURS = "tunescope"
PEERS = tuple(f"lm-eval, {dtype}, batch {size}" for dtype in ("bfloat16", "float32") for size in (8, 1, 32))
SIDES = {OURS: _ours} | {
    f"lm-eval, {dtype}, batch {size}": _harness(size, dtype) for dtype in ("bfloat16", "float32") for size in (1, 8, 32)
}
