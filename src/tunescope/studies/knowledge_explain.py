"""Explanations in the model's own words for the answers of a training set, if the model proves able to write them.

An explanation is useful if it is a sentence or more of its own (not empty, copied, in another script, endless, or the answer again),
and if it explains: shown with the question but without the answer, it makes the model prefer the answer that it was written for. Where fewer
than half of a sample are useful, no set gets any, so that the sets differ in nothing but their answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tunescope import evaluate, models
from tunescope.data import normalise
from tunescope.evaluate import FewShot, answer_text
from tunescope.knowledge import Question, TrainingItem
from tunescope.knowledge.questions import draw_key
from tunescope.metrics import unrelated_flags
from tunescope.studies.bench import Bench
from tunescope.studies.knowledge_inputs import header_of
from tunescope.studies.progress import Progress, ticker

SAMPLE = 24
ENOUGH = 0.5
_SCRATCH = "arms/knowledge/explanations.jsonl"
_ENDS = (".", "!", "?", "。", "！", "？")
_FEWEST_CHARACTERS = 20

Key = tuple[str, int]


def explain(
    bench: Bench, model: Any, items: Sequence[TrainingItem], progress: Progress
) -> tuple[dict[Key, str], dict[str, Any]]:
    """Returns an explanation per question and answer, and what was found about the model's ability to write them.

    Args:
        bench: what all share.
        model: the base model.
        items: of all sets; a question with the same answer is explained once.
        progress: told about every explanation.

    Returns:
        (id, choice) -> explanation, those that are useful; empty where the setting is ``never`` or the model is not able to. And the facts:
        ``used``, ``why``, ``sample``, ``useful_in_sample``, ``written``, ``useful``.
    """
    wanted = {(item.id, item.target): item for item in items}
    facts: dict[str, Any] = {"used": False, "sample": 0, "useful_in_sample": None, "written": 0, "useful": 0}
    if bench.config.knowledge.intervention.explanations == "never":
        return {}, facts | {"why": "setting"}
    keys = sorted(wanted, key=lambda key: draw_key(0, "explanations", f"{key[0]}/{key[1]}"))
    progress.stage("explain answers (a sample)", min(SAMPLE, len(keys)))
    tried = _explained(bench, model, [wanted[key] for key in keys[:SAMPLE]], progress)
    share = sum(text != "" for text in tried.values()) / len(tried)
    facts |= {"sample": len(tried), "useful_in_sample": share}
    if share < ENOUGH:
        return {}, facts | {"why": "not_able"}
    progress.stage("explain answers", len(keys))
    found = _explained(bench, model, [wanted[key] for key in keys], progress)
    useful = {key: text for key, text in found.items() if text}
    return useful, facts | {"used": True, "why": "able", "written": len(found), "useful": len(useful)}


def _explained(bench: Bench, model: Any, items: Sequence[TrainingItem], progress: Progress) -> dict[Key, str]:
    """Explanations that are useful, others as the empty text; what was written before a kill is read back."""
    known = {(row["id"], row["target"]): str(row["text"]) for row in bench.run.read_jsonl(_SCRATCH)}
    progress.advance(sum((item.id, item.target) in known for item in items))
    lacking = [item for item in items if (item.id, item.target) not in known]
    (bench.run.path / _SCRATCH).parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(lacking), SAMPLE):
        some = lacking[start : start + SAMPLE]
        written = _write(bench, model, some)
        texts = [
            text if good else "" for text, good in zip(written, _explains(bench, model, some, written), strict=True)
        ]
        rows = [{"id": item.id, "target": item.target, "text": text} for item, text in zip(some, texts, strict=True)]
        bench.run.append_jsonl(_SCRATCH, rows)
        known |= {(item.id, item.target): text for item, text in zip(some, texts, strict=True)}
        ticker(progress)(len(some))
    return {(item.id, item.target): known[item.id, item.target] for item in items}


def question_of(item: TrainingItem) -> Question:
    """Returns the question of a training item, with the context that it is trained with."""
    return Question(item.id, item.domain, item.text, item.choices, item.gold, item.context)


def _write(bench: Bench, model: Any, items: Sequence[TrainingItem]) -> list[str]:
    """What the model writes after question, answer and `Explanation:`, up to the end of its first line; empty where a rule forbids it."""
    settings, chat = bench.config.knowledge.intervention, bench.chat
    prompts = [_answered(item, bench.config.knowledge.ask == "letters") for item in items]
    ids = [evaluate.plain_ids(chat.tokenizer, prompt) for prompt in prompts]
    found: dict[int, str] = {}
    for batch in models.greedy(
        model,
        ids,
        stop_ids=chat.stop_ids,
        max_new_tokens=settings.explanation_tokens,
        batch_tokens=bench.config.evaluation.batch_tokens,
    ):
        for index, generated in batch:
            item = items[index]
            text = chat.decode(generated.ids, special=False).strip().partition("\n")[0].strip()
            flags = unrelated_flags(
                text,
                prompt=prompts[index],
                references=[item.choices[item.target]],
                other_labels=(),
                hit_limit=generated.hit_limit,
            )
            repeats = normalise(text).strip(".") in {
                normalise(item.choices[item.target]).strip("."),
                normalise(item.text),
            }
            found[index] = "" if flags or repeats else _whole_sentences(text)
    return [found[i] for i in range(len(items))]


def _answered(item: TrainingItem, lettered: bool) -> str:
    question = question_of(item)
    answer = answer_text(question, item.target) if lettered else item.choices[item.target]
    return f"{evaluate.show(question, lettered=lettered)}\nAnswer: {answer}\nExplanation:"


def _whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty where that is hardly anything."""
    whole = text[: max(text.rfind(mark) for mark in _ENDS) + 1].strip()
    return whole if sum(not character.isspace() for character in whole) >= _FEWEST_CHARACTERS else ""


def _explains(bench: Bench, model: Any, items: Sequence[TrainingItem], texts: Sequence[str]) -> list[bool]:
    """Whether the model, shown the explanation and not the answer, prefers the answer that is explained."""
    found: dict[int, bool] = {}
    for domain in sorted({item.domain for item in items}):
        places = [i for i, item in enumerate(items) if item.domain == domain and texts[i]]
        asked = [
            dataclasses.replace(question_of(items[i]), id=str(i), text=f"{texts[i]}\n{items[i].text}", context="")
            for i in places
        ]
        form, tokens = FewShot(header_of(bench.config, domain)), bench.config.evaluation.batch_tokens
        if bench.config.knowledge.ask == "letters":
            probes = evaluate.few_shot(model, bench.chat.tokenizer, asked, form, batch_tokens=tokens)
        else:
            per_byte = bench.config.knowledge.ask == "text_per_byte"
            probes = evaluate.by_text(model, bench.chat.tokenizer, asked, form, per_byte=per_byte, batch_tokens=tokens)
        found |= {i: probe.answer == items[i].target for i, probe in zip(places, probes, strict=True)}
    return [found.get(i, False) for i in range(len(items))]
