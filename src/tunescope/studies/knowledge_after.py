"""What tuning did: the tuned model in its chat format against what the base knew, and the words of its answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tunescope import evaluate, knowledge, models
from tunescope.config import Config
from tunescope.data import Example
from tunescope.errors import ConfigError
from tunescope.knowledge import Probe, Question
from tunescope.knowledge.questions import draw_key
from tunescope.models import Loaded
from tunescope.studies.bench import Bench
from tunescope.studies.knowledge_inputs import Asked, header_of
from tunescope.studies.knowledge_probe import BASE, TUNED, ZERO_SHOT, ask_in_chat, read_probes
from tunescope.studies.map_models import Tuned, tuned_beside
from tunescope.studies.progress import Progress, ticker

T = TypeVar("T")
ANSWERS = "answers.jsonl"
_FEWEST_DOMAINS = 4  # with fewer points a rank correlation given a third variable is nearly always -1, 0 or 1
_STARTS_WITH_LETTER = re.compile(r"(?:(?i:the (?:correct )?answer is:?|answer:)\s*)?\(?([A-Z])(?:[.):,]|\s*$)")


def find_tuned(path: Path) -> Path:
    """Returns the folder with tuned weights: the given one, or the only or recommended arm of the run that it is.

    Raises:
        ConfigError: there is no such folder, or the run has several arms and recommends none of them.
    """
    if not path.is_dir():
        raise ConfigError(f"--tuned {path}: no such folder; give an adapter, a tuned model, or a run with weights")
    arms = sorted(p.parent for p in path.glob("weights/*/selection.json"))
    if not arms:
        return path.resolve()
    if len(arms) == 1:
        return arms[0].resolve()
    verdict = path / "verdict.json"
    recommended = json.loads(verdict.read_text(encoding="utf-8")).get("arm") if verdict.is_file() else None
    chosen = [arm for arm in arms if arm.name == recommended]
    if not chosen:
        raise ConfigError(
            f"--tuned {path}: a run with {len(arms)} tuned arms, none of them recommended; give one: {', '.join(map(str, arms))}"
        )
    return chosen[0].resolve()


def after(
    bench: Bench, loaded: Loaded, asked: Asked, base: Mapping[str, Sequence[Probe]], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Asks the tuned model in its chat format and compares it with what the base knew.

    Args:
        bench: what all share.
        loaded: the base model; afterwards it is what it was.
        asked: what is asked.
        base: role -> probes of the base with demonstrations.
        folder: with the tuned weights.
        progress: told about every question.

    Returns:
        Transitions, consistency, verdict and style, as plain values.
    """
    with tuned_beside(bench, loaded, folder) as pair:
        with pair.as_base() as model:
            untuned = ask_in_chat(bench, model, BASE, dict(asked.questions), progress)
        tuned = ask_in_chat(bench, pair.model, TUNED, dict(asked.questions), progress)
        style = _style(bench, pair, asked, progress)
    return {"tuned": str(folder)} | compare(bench.config, base, tuned) | {"base_in_chat": _accuracies(untuned)} | style


def compare(
    config: Config, base: Mapping[str, Sequence[Probe]], tuned: Mapping[str, Sequence[Probe]]
) -> dict[str, Any]:
    """Returns everything that follows from the stored probabilities of both models, as plain values.

    Args:
        config: the settings.
        base: role -> probes of the base.
        tuned: role -> probes of the tuned model, of the same questions.
    """
    how: dict[str, Any] = {
        "n_bootstrap": config.evaluation.n_bootstrap,
        "confidence": config.evaluation.confidence,
        "seed": config.seed,
    }
    first = [probe for role in tuned for probe in base[role]]
    second = [probe for role in tuned for probe in tuned[role]]
    by_role = [*tuned.items(), *([("*", second)] if len(tuned) > 1 else [])]
    return {
        "transitions": {
            role: [row.to_dict() for row in knowledge.transitions(_of(first, probes), probes, **how)]
            for role, probes in by_role
        },
        "agreement": {role: agreement(_of(first, probes), probes) for role, probes in by_role},
        "partial_spearman": _partial(first, second),
        "judgement": knowledge.judge(first, second, **how).to_dict(),
    }


def agreement(base: Sequence[Probe], tuned: Sequence[Probe]) -> list[dict[str, Any]]:
    """Returns consistency and KL of each domain, all together last, as ``*``; KL is None where it is infinite.

    Args:
        base: probes of the base.
        tuned: of the tuned model, of the same questions in the same order.
    """
    domains = [*sorted({probe.domain for probe in base}), "*"]
    rows = []
    for domain in domains:
        mine = [(b, t) for b, t in zip(base, tuned, strict=True) if domain in (b.domain, "*")]
        p, q = [b.probabilities for b, _ in mine], [t.probabilities for _, t in mine]
        kl = knowledge.mean_kl(p, q)
        rows.append(
            {
                "domain": domain,
                "n": len(mine),
                "consistency": knowledge.rank_consistency(p, q),
                "kl": kl if np.isfinite(kl) else None,
                "base_accuracy": float(np.mean([b.correct for b, _ in mine])),
                "tuned_accuracy": float(np.mean([t.correct for _, t in mine])),
            }
        )
    return rows


def _of(probes: Sequence[Probe], wanted: Sequence[Probe]) -> list[Probe]:
    by_id = {probe.id: probe for probe in probes}
    return [by_id[probe.id] for probe in wanted]


def _partial(base: Sequence[Probe], tuned: Sequence[Probe]) -> dict[str, Any]:
    """Partial Spearman over domains; None where there are too few, or one of the three is constant."""
    rows = agreement(base, tuned)[:-1]
    value = None
    if len(rows) >= _FEWEST_DOMAINS:
        columns = [[row[name] for row in rows] for name in ("consistency", "tuned_accuracy", "base_accuracy")]
        found = knowledge.partial_spearman(*columns)
        value = float(found) if np.isfinite(found) else None
    return {"value": value, "n": len(rows)}


def _accuracies(probes: Mapping[str, Sequence[Probe]]) -> dict[str, float]:
    return {role: knowledge.accuracy(some) for role, some in probes.items()}


def _style(bench: Bench, pair: Tuned, asked: Asked, progress: Progress) -> dict[str, Any]:
    """Greedy answers of the tuned model: what its words owe to style, and whether they say what its scores say."""
    count = bench.config.knowledge.style_prompts
    if not count:
        return {"style": None, "written": None}
    questions = _drawn({q.id: q for q in asked.everything}, count, bench.config.seed)
    general = _drawn({e.id: e for e in asked.general}, count, bench.config.seed)
    about = [_example(bench.config, question) for question in questions]
    rows = _answers(bench, pair, [*about, *general], progress)
    told = rows[len(about) :] or rows
    how = bench.config.evaluation
    shift = knowledge.token_shift(
        [row["ranks"] for row in told],
        [row["tokens"] for row in told],
        n_bootstrap=how.n_bootstrap,
        confidence=how.confidence,
        seed=bench.config.seed,
    )
    return {
        "style": {"prompts": "general" if general else "questions", **shift.to_dict()},
        "written": written(bench, questions, [row["text"] for row in rows[: len(about)]]),
    }


def _example(config: Config, question: Question) -> Example:
    lettered = config.knowledge.ask == "letters"
    return evaluate.chat_example(question, header_of(config, question.domain), 0, lettered=lettered)


def _drawn(items: Mapping[str, T], count: int, seed: int) -> list[T]:
    return [items[name] for name in sorted(items, key=lambda name: draw_key(seed, "style", name))[:count]]


def _answers(bench: Bench, pair: Tuned, examples: Sequence[Example], progress: Progress) -> list[dict[str, Any]]:
    """The tuned model's greedy answers with the base's rank of every token; read back where they are stored."""
    if bench.run.has(ANSWERS):
        return bench.run.read_jsonl(ANSWERS)
    settings, chat = bench.config.knowledge, bench.chat
    prompts = [chat.encode(example).prompt_ids for example in examples]
    progress.stage("tuned: answer in words", 2 * len(prompts))
    tick = ticker(progress)
    found: dict[int, models.Generated] = {}
    for batch in models.greedy(
        pair.model,
        prompts,
        stop_ids=chat.stop_ids,
        max_new_tokens=settings.style_tokens,
        batch_tokens=bench.config.evaluation.batch_tokens,
    ):
        found |= dict(batch)
        tick(len(batch))
    answers = [found[i].ids for i in range(len(prompts))]
    with pair.as_base() as model:
        ranks = evaluate.token_ranks(
            model, prompts, answers, batch_tokens=bench.config.evaluation.batch_tokens, done=tick
        )
    rows = [
        {
            "id": example.id,
            "prompt": example.prompt_text,
            "text": chat.decode(ids, special=False).strip(),
            "tokens": [chat.decode([token]) for token in ids],
            "ranks": list(rank),
            "hit_limit": found[i].hit_limit,
        }
        for i, (example, ids, rank) in enumerate(zip(examples, answers, ranks, strict=True))
    ]
    bench.run.write_jsonl(ANSWERS, rows)
    return rows


def written(bench: Bench, questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    """Returns how often the answers in words are right, beside how often the scored ones are, on the same questions.

    Args:
        bench: what all share.
        questions: that were answered.
        answers: what the tuned model wrote.
    """
    scored = read_probes(bench, TUNED, ZERO_SHOT)
    picks = [choice_in(text, question) for text, question in zip(answers, questions, strict=True)]
    right = [float(pick == question.gold) for pick, question in zip(picks, questions, strict=True)]
    same = [float(scored[q.id].correct) for q in questions]
    return {
        "n": len(questions),
        "names_a_choice": float(np.mean([pick is not None for pick in picks])),
        "right_in_words": float(np.mean(right)),
        "right_by_scores": float(np.mean(same)),
    }


def choice_in(text: str, question: Question) -> int | None:
    """Returns the choice that an answer in words names, or None.

    It names one by beginning with its letter (``B.``, ``(B)``, ``Answer: B``), or by holding the text of exactly one choice, case aside; of
    choices that are part of another one that is held, only the longest counts.

    Example:
        >>> choice_in("B. a bee", Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1))
        1
    """
    start = _STARTS_WITH_LETTER.match(text.strip())
    if start and (place := ord(start[1]) - ord("A")) < len(question.choices):
        return place
    choices = [choice.lower() for choice in question.choices]
    held = [i for i, choice in enumerate(choices) if choice in text.lower()]
    longest = [i for i in held if not any(choices[i] in choices[j] for j in held if j != i)]
    return longest[0] if len(longest) == 1 else None
