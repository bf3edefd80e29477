"""Samples side by side, chosen by a stated rule: worst cases, best cases, and an even draw."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tunescope.report.select_results import focus_arm
from tunescope.report.source import RunSource
from tunescope.report.tables import Section, absent
from tunescope.report.wording import NONE, Words, shorten
from tunescope.runs.records import Sample

KEY = "samples"
DEFAULT_SHOWN = 24
LONG = 320  # characters from which a text is folded
LIMIT = 6000  # characters of one text that the report carries at most


def section(run: RunSource, words: Words) -> Section:
    """Returns the chosen samples with every arm's answer."""
    if not run.samples:
        return absent(KEY, words, "samples.jsonl")
    arm = focus_arm(run)
    against = _reference(run, arm)
    wanted = run.setting("evaluation.samples", DEFAULT_SHOWN)
    groups = choose(run.samples, arm, against, wanted if isinstance(wanted, int) else DEFAULT_SHOWN)
    names = {"arm": words.arm(arm), "against": words.arm(against)}
    shown = [
        {
            "name": words(f"samples.{name}"),
            "hint": words(f"samples.{name}_hint", **names),
            "samples": [_view(sample, run, arm, words) for sample in rows],
        }
        for name, rows in groups
        if rows
    ]
    rule = words("samples.rule", total=words.count(len(run.samples)), **names)
    facts = {name: [sample.id for sample in rows] for name, rows in groups}
    return Section(KEY, words("samples.title"), {"rule": rule, "groups": shown}, facts=facts)


def _reference(run: RunSource, arm: str | None) -> str:
    """What the followed arm is held against: `nothing`, or the first other arm."""
    others = [name for name in run.arms if name != arm]
    return "nothing" if "nothing" in others else others[0] if others else NONE


def choose(samples: Sequence[Sample], arm: str | None, against: str, wanted: int) -> list[tuple[str, list[Sample]]]:
    """Chooses samples: a third worst cases, a third best cases, the rest drawn evenly.

    Worst are the examples on which `arm` scores furthest below `against` and, among equals, is wrong most confidently;
    best the other way round; both of each task in turn. The draw follows a hash of the ids, so that no outcome has a
    say in it.

    Args:
        samples: all samples of the run.
        arm: the arm that the report follows, or None.
        against: the arm it is held against.
        wanted: number of samples in all, at least 0.

    Returns:
        (``worst`` | ``best`` | ``drawn``, samples) in this order; none appears twice.
    """
    scored = [row for row in samples if row.role != "guard" and math.isfinite(_score(row, arm))]
    third = wanted // 3
    bad = [row for row in scored if _score(row, arm) < 1 and _gap(row, arm, against) <= 0]
    bad.sort(key=lambda row: (_gap(row, arm, against), -_confidence(row, arm), _score(row, arm), row.id))
    worst = _in_turn(bad)[:third]
    good = [row for row in scored if _gap(row, arm, against) > 0 and row not in worst]
    good.sort(key=lambda row: (-_gap(row, arm, against), -_score(row, arm), row.id))
    best = _in_turn(good)[:third]
    taken = {id(row) for row in (*worst, *best)}
    rest = sorted((row for row in samples if id(row) not in taken), key=_draw)
    return [("worst", worst), ("best", best), ("drawn", rest[: wanted - len(worst) - len(best)])]


def _in_turn(samples: Sequence[Sample]) -> list[Sample]:
    """The first of each task, then the second of each, and so on."""
    seen: dict[str, int] = {}
    places = []
    for sample in samples:
        places.append(seen.get(sample.task, 0))
        seen[sample.task] = places[-1] + 1
    return [sample for _, sample in sorted(zip(places, samples, strict=True), key=lambda pair: pair[0])]


def _draw(sample: Sample) -> str:
    return hashlib.sha256(f"{sample.task}\0{sample.dataset}\0{sample.id}".encode(errors="replace")).hexdigest()


def _answer(sample: Sample, arm: str | None) -> Mapping[str, Any]:
    answer = sample.answers.get(arm or "")
    return answer if isinstance(answer, Mapping) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _score(sample: Sample, arm: str | None) -> float:
    return _number(_answer(sample, arm).get("score"))


def _gap(sample: Sample, arm: str | None, against: str) -> float:
    """How much better the arm scored than the one it is held against; 0 where that one has no answer."""
    other = _score(sample, against)
    return _score(sample, arm) - other if math.isfinite(other) else 0.0


def _confidence(sample: Sample, arm: str | None) -> float:
    sure = _number(_answer(sample, arm).get("confidence"))
    return sure if math.isfinite(sure) else 0.0


def _text(text: str, words: Words) -> dict[str, Any]:
    """A text with what the template needs to fold it."""
    cut = words("samples.cut", count=words.count(len(text))) if len(text) > LIMIT else ""
    return {
        "text": text[:LIMIT],
        "cut": cut,
        "long": len(text) > LONG,
        "start": shorten(" ".join(text[:LONG].split()), 140),
    }


def _view(sample: Sample, run: RunSource, focus: str | None, words: Words) -> dict[str, Any]:
    answers = []
    for arm in dict.fromkeys([*run.arms, *sample.answers]):
        answer = _answer(sample, arm)
        if not answer:
            continue
        flags = [words.get(f"flag.{flag}", str(flag).replace("_", " ")) for flag in answer.get("flags") or ()]
        guard = sample.role == "guard"
        value = _number(answer.get("score"))
        answers.append(
            {
                "arm": arm,
                "focus": arm == focus,
                "answer": _text(str(answer.get("text", "")), words),
                "empty": not str(answer.get("text", "")).strip(),
                "score": words.loss(value) if guard else words.score(value),
                "right": ""
                if guard or not math.isfinite(value)
                else "right"
                if value >= 1
                else "wrong"
                if value <= 0
                else "partly",
                "confidence": words.share(answer.get("confidence")) if answer.get("confidence") is not None else "",
                "flags": flags,
            }
        )
    return {
        "id": sample.id,
        "where": words("samples.where", task=sample.task, role=words(f"role.{sample.role}"), id=sample.id),
        "prompt": _text(sample.prompt, words),
        "references": [_text(text, words) for text in sample.references],
        "answers": answers,
    }
