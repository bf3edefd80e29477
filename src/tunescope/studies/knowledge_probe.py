"""Ask a model all questions and keep every probability; and what the answers of the base say before anything is tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunescope import evaluate, knowledge, metrics
from tunescope.config import Config
from tunescope.knowledge import Probe, Question
from tunescope.studies.bench import Bench
from tunescope.studies.knowledge_inputs import Asked, form_of, header_of
from tunescope.studies.progress import Progress, ticker

PROBES = "probe.jsonl"
BASE = "base"
TUNED = "tuned"
FEW_SHOT, ZERO_SHOT = "few_shot", "zero_shot"
CHUNK = 256  # questions between two writes: what a kill costs at most


def ask_few_shot(bench: Bench, model: Any, asked: Asked, progress: Progress) -> dict[str, list[Probe]]:
    """Asks the base everything after demonstrations; what stands in ``probe.jsonl`` already is not asked again.

    Returns:
        Role -> probes, in the order of the questions.

    Raises:
        DataError: the demonstrations do not fit with the longest question.
    """

    def ask(domain: str, questions: Sequence[Question], done: Callable[[int], None]) -> list[Probe]:
        return ask_domain(bench, model, asked, domain, questions, done)

    return _ask(bench, BASE, FEW_SHOT, asked.questions, ask, progress)


def ask_domain(
    bench: Bench,
    model: Any,
    asked: Asked,
    domain: str,
    questions: Sequence[Question],
    done: Callable[[int], None] = lambda n: None,
) -> list[Probe]:
    """Asks questions of one domain after its demonstrations, by letters or by the texts of the answers as the settings say."""
    form, tokens = form_of(bench.config, asked, domain), bench.config.evaluation.batch_tokens
    if asked.lettered:
        return evaluate.few_shot(model, bench.chat.tokenizer, questions, form, batch_tokens=tokens, done=done)
    per_byte = bench.config.knowledge.ask == "text_per_byte"
    return evaluate.by_text(
        model, bench.chat.tokenizer, questions, form, per_byte=per_byte, batch_tokens=tokens, done=done
    )


def ask_in_chat(
    bench: Bench, model: Any, name: str, questions: dict[str, tuple[Question, ...]], progress: Progress
) -> dict[str, list[Probe]]:
    """Asks a model questions one by one in its chat format, without demonstrations, by letters or by text as the settings say.

    Args:
        bench: what all share.
        model: the model.
        name: of the model in ``probe.jsonl``.
        questions: role -> questions.
        progress: told about every question.
    """
    ask_how = bench.config.knowledge.ask

    def ask(domain: str, some: Sequence[Question], done: Callable[[int], None]) -> list[Probe]:
        headers, tokens = [header_of(bench.config, domain)] * len(some), bench.config.evaluation.batch_tokens
        if ask_how == "letters":
            return evaluate.zero_shot(model, bench.chat, some, headers, batch_tokens=tokens, done=done)
        per_byte = ask_how == "text_per_byte"
        return evaluate.zero_shot_by_text(
            model, bench.chat, some, headers, per_byte=per_byte, batch_tokens=tokens, done=done
        )

    return _ask(bench, name, ZERO_SHOT, questions, ask, progress)


def _ask(
    bench: Bench,
    name: str,
    how: str,
    questions: Any,
    ask: Callable[[str, Sequence[Question], Callable[[int], None]], list[Probe]],
    progress: Progress,
) -> dict[str, list[Probe]]:
    known = read_probes(bench, name, how)
    wanted = [(role, question) for role, some in questions.items() for question in some]
    progress.stage(f"{name}: ask {'with demonstrations' if how == FEW_SHOT else 'in the chat format'}", len(wanted))
    progress.advance(sum(question.id in known for _, question in wanted))
    for domain in sorted({question.domain for _, question in wanted}):
        lacking = [(role, q) for role, q in wanted if q.domain == domain and q.id not in known]
        for start in range(0, len(lacking), CHUNK):
            chunk = lacking[start : start + CHUNK]
            probes = ask(domain, [question for _, question in chunk], ticker(progress))
            rows = [
                {"model": name, "how": how, "role": role, **probe.to_dict()}
                for (role, _), probe in zip(chunk, probes, strict=True)
            ]
            bench.run.append_jsonl(PROBES, rows)
            known |= {probe.id: probe for probe in probes}
    return {role: [known[question.id] for question in some] for role, some in questions.items()}


def read_probes(bench: Bench, name: str, how: str) -> dict[str, Probe]:
    """Returns what ``probe.jsonl`` holds of one model, by id of the question."""
    rows = bench.run.read_jsonl(PROBES)
    return {row["id"]: Probe.from_dict(row) for row in rows if (row["model"], row["how"]) == (name, how)}


def before(config: Config, asked: Asked, base: dict[str, list[Probe]]) -> dict[str, Any]:
    """Returns what the probe of the base says: chance, calibration, groups and advice, as plain values.

    Args:
        config: the settings.
        asked: what was asked.
        base: role -> probes.
    """
    everything = [probe for probes in base.values() for probe in probes]
    return {
        "how": "few_shot" if asked.lettered else "text",
        "demonstrations": config.knowledge.demonstrations,
        "threshold": config.knowledge.threshold,
        "chance": {role: _chance(config, probes) for role, probes in (*base.items(), ("*", everything))},
        "calibration": {role: calibration(probes) for role, probes in (*base.items(), ("*", everything))},
        "groups": {role: groups(config, probes) for role, probes in (*base.items(), ("*", everything))},
        "advice": [dict(code) for code in _advice(config, asked, everything)],
    }


def groups(config: Config, probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """Returns how many questions of each domain are harmonious, incompatible and unsure; all together last, as ``*``."""
    found = knowledge.group(probes, threshold=config.knowledge.threshold)
    kinds = ("harmonious", "incompatible", "unsure")
    of = {name: kind for kind in kinds for name in getattr(found, kind)}
    domains = [*sorted({probe.domain for probe in probes}), "*"]
    return [
        {"domain": domain}
        | {kind: sum(of[p.id] == kind for p in probes if domain in (p.domain, "*")) for kind in kinds}
        for domain in domains
    ]


def calibration(probes: Sequence[Probe]) -> dict[str, Any]:
    """Returns how far the model's confidence can be trusted: calibration error and risk-coverage curve."""
    sure = np.array([probe.confidence for probe in probes])
    right = np.array([float(probe.correct) for probe in probes])
    curve = metrics.risk_coverage(sure, right)
    return {
        "n": len(probes),
        "accuracy": float(right.mean()),
        "confidence": float(sure.mean()),
        "ece": metrics.expected_calibration_error(sure, right),
        "coverage": list(curve.coverage),
        "risk": list(curve.risk),
        "area": curve.area,
    }


def _chance(config: Config, probes: Sequence[Probe]) -> list[dict[str, Any]]:
    level = config.evaluation.confidence
    return [row.to_dict() for row in knowledge.chance_table(probes, alpha=1 - level, confidence=level)]


def _advice(config: Config, asked: Asked, base: Sequence[Probe]) -> Sequence[Any]:
    return knowledge.advise(
        asked.everything,
        base,
        threshold=config.knowledge.threshold,
        behaviour_examples=config.knowledge.behaviour_examples,
        alpha=1 - config.evaluation.confidence,
        confidence=config.evaluation.confidence,
    )
