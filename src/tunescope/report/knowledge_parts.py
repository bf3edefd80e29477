"""The knowledge study in sentences, tables and pictures; the sections of both kinds of report are put together from these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

from tunescope.report.canvas import clean
from tunescope.report.charts import BLUE, ORANGE
from tunescope.report.knowledge import ALL, After, Before, ChanceRow, Intervention
from tunescope.report.knowledge_charts import (
    GREEN,
    PALE,
    SHAPES,
    CountRow,
    Point,
    ScatterWords,
    ShareRow,
    ShareWords,
    count_bars,
    scatter,
    share_rows,
)
from tunescope.report.tables import Cell, Mark, Table, number
from tunescope.report.wording import NONE, Words

T = TypeVar("T")
MOST_ROWS = 70
MOST_ADVICE = 24


def roles_of(found: Mapping[str, Any]) -> list[str]:
    """Returns the roles, without ``*``."""
    return [role for role in found if role != ALL]


def without_double(rows: Sequence[T]) -> Sequence[T]:
    """Returns the rows of a role without the last one, over all domains, where there is one domain only."""
    return rows if len(rows) != 2 else rows[:1]


def domain_name(name: str, words: Words) -> str:
    """Returns a domain's name; ``*`` in words."""
    return words("knowledge.all") if name == ALL else clean(name.replace("_", " "))


def accuracy_chart(before: Before, words: Words) -> Markup:
    """Returns the picture of what the base knows, domain by domain, with chance."""
    rows: list[ShareRow] = []
    several = len(roles_of(before.chance)) > 1
    for role in roles_of(before.chance):
        if several:
            rows.append(ShareRow(words(f"knowledge_role.{role}")))
        rows += [_share_row(row, words) for row in without_double(before.chance[role])[:MOST_ROWS]]
    said = ShareWords(words("knowledge.clear"), words("knowledge.unclear"), words("knowledge.chance"), words.share)
    return share_rows(rows, name="knowledge-accuracy", words=said).inline(words("knowledge.chart_accuracy"))


def _share_row(row: ChanceRow, words: Words) -> ShareRow:
    ends = words.interval(row.low, row.high, words.share)
    tip = words(
        "knowledge.tip",
        domain=domain_name(row.domain, words),
        value=words.share(row.accuracy),
        interval=ends,
        chance=words.share(row.chance),
        n=words.count(row.n),
    )
    text = f"{words.share(row.accuracy)} ({ends})"
    return ShareRow(
        domain_name(row.domain, words), row.accuracy, row.low, row.high, row.chance, row.state == "above", text, tip
    )


def probe_meaning(before: Before, words: Words) -> str:
    """Returns what the probe says, in two or three sentences."""
    row = before.overall
    values = {
        "share": words.share(row.accuracy),
        "interval": words.interval(row.low, row.high, words.share),
        "chance": words.share(row.chance),
        "n": words.count(row.n),
    }
    parts = [words(f"knowledge.probe_{row.state}", **values)]
    domains = [r for role in roles_of(before.chance) for r in before.chance[role][:-1]]
    above = sum(r.state == "above" for r in domains)
    if len(domains) > 1:
        parts.append(words("knowledge.domains_above", count=words.count(above), total=words.count(len(domains))))
    total = before.calibration[ALL]
    gap = total.confidence - total.accuracy
    key = "sure_right" if abs(gap) < 0.05 else "over_sure" if gap > 0 else "under_sure"
    parts.append(
        words(f"knowledge.{key}", confidence=words.share(total.confidence), accuracy=words.share(total.accuracy))
    )
    return words("format.sentences").join(parts)


def probe_table(before: Before, words: Words) -> Table:
    """Returns accuracy, chance and groups per domain."""
    body = []
    for role in roles_of(before.chance):
        body.append([Cell(words(f"knowledge_role.{role}"))])
        counts = {row.domain: row for row in before.groups[role]}
        for row in without_double(before.chance[role]):
            group = counts[row.domain]
            state: Mark = {"above": "better", "below": "worse"}.get(row.state, "noise")  # type: ignore[assignment]
            # The p-value is that of being above chance.
            p = "" if row.state == "below" else words("knowledge.p", p=p_value(row.p_adjusted, words))
            against = Cell(words(f"knowledge_state.{row.state}"), p, state)
            body.append(
                [
                    Cell(domain_name(row.domain, words)),
                    number(words.count(row.n)),
                    number(words.share(row.accuracy), words.interval(row.low, row.high, words.share)),
                    number(words.share(row.chance)),
                    against,
                    number(words.share(row.mean_confidence)),
                    number(words.count(group.harmonious)),
                    number(words.count(group.incompatible)),
                    number(words.count(group.unsure)),
                ]
            )
    names = ("domain", "n", "right", "chance", "against", "confidence", "harmonious", "incompatible", "unsure")
    return Table(words("knowledge.table"), [words(f"knowledge.{name}") for name in names], body)


def advice(before: Before, words: Words) -> list[str]:
    """Returns what to collect, a sentence per code."""
    return [_sentence(f"knowledge_collect.{code.get('code')}", code, words) for code in before.advice[:MOST_ADVICE]]


def reasons(after: After, words: Words) -> list[str]:
    """Returns what the judgement rests on, a sentence per code."""
    return [_sentence(f"knowledge_reason.{code.get('code')}", code, words) for code in after.reasons]


def _sentence(key: str, code: Mapping[str, Any], words: Words) -> str:
    """The sentence of a code with its numbers; a code this version does not know is shown with its numbers."""
    name = str(code.get("code", NONE))
    values = {other: _value(name, other, value, words) for other, value in code.items() if other != "code"}
    if key in words:
        try:
            return words(key, **values)
        except KeyError:  # a number is lacking: another version wrote it
            pass
    numbers = words("format.comma").join(f"{other}: {text}" for other, text in values.items())
    return words("unknown_code", code=name.replace("_", " "), numbers=numbers)


_SHARES = ("share", "low", "high", "value", "accuracy", "chance", "expected", "base_confidence", "tuned_confidence")
_NOT_SHARES = ("consistency", "kl")  # codes whose numbers are on scales of their own


def _value(code: str, name: str, value: Any, words: Words) -> str:
    if value is None:
        return NONE
    if name == "domain":
        return domain_name(str(value), words)
    if name.startswith("p_"):
        return p_value(value, words)
    if name.endswith("confidence") or (name in _SHARES and code not in _NOT_SHARES):
        return words.share(value)
    if isinstance(value, float):
        return words.number(value, 2)
    return words.count(value) if isinstance(value, int) else str(value)


def p_value(value: Any, words: Words) -> str:
    """Returns a p-value, three decimals; smaller ones as such."""
    if isinstance(value, float | int) and 0 <= value < 0.001:
        return words("knowledge.tiny")
    return words.number(value, 3)


def transition_chart(after: After, words: Words) -> Markup:
    """Returns the bars of known, learned, lost and unknown."""
    rows = []
    for role in roles_of(after.transitions) or list(after.transitions):
        for row in without_double(after.transitions[role])[:MOST_ROWS]:
            counts = (row.kept, row.learned, row.lost, row.still_unknown)
            label = f"{words(f'knowledge_role.{role}')}: {domain_name(row.domain, words)}"
            names = ("kept", "learned", "lost", "unknown")
            told = [f"{words(f'knowledge.{n}')} {words.count(c)}" for n, c in zip(names, counts, strict=True)]
            rows.append(CountRow(label, counts, f"{label}{words('format.colon')}{words('format.comma').join(told)}"))
    kinds = [
        (words("knowledge.kept"), BLUE),
        (words("knowledge.learned"), GREEN),
        (words("knowledge.lost"), ORANGE),
        (words("knowledge.unknown"), PALE),
    ]
    drawn = count_bars(rows, kinds, name="knowledge-transitions", number=words.count)
    return drawn.inline(words("knowledge.chart_transitions"))


def transition_meaning(after: After, words: Words) -> str:
    """Returns what became of the questions, and what that says."""
    row = after.overall
    values = {name: words.count(getattr(row, name)) for name in ("n", "kept", "lost", "learned", "still_unknown")}
    change = row.change
    ends = words.interval(change.get("low"), change.get("high"), words.points)
    key = "change_clear" if row.p_value < 1 - words.confidence else "change_noise"
    parts = [words("knowledge.moved", **values)]
    parts.append(
        words(
            f"knowledge.{key}", change=words.points(change.get("value")), interval=ends, p=p_value(row.p_value, words)
        )
    )
    return words("format.sentences").join(parts)


def transition_table(after: After, words: Words) -> Table:
    """Returns the counts with their intervals, and how near both models are."""
    body = []
    for role in roles_of(after.transitions) or list(after.transitions):
        body.append([Cell(words(f"knowledge_role.{role}"))])
        near = {row.domain: row for row in after.agreement[role]}
        for row in without_double(after.transitions[role]):
            close = near[row.domain]
            body.append(
                [
                    Cell(domain_name(row.domain, words)),
                    number(words.count(row.kept)),
                    number(words.count(row.lost), _interval(row.lost_share, words)),
                    number(words.count(row.learned), _interval(row.learned_share, words)),
                    number(words.count(row.still_unknown)),
                    number(words.points(row.change.get("value")), _interval(row.change, words, points=True)),
                    number(words.number(close.consistency, 2)),
                    number("∞" if close.kl is None else words.number(close.kl, 3)),
                ]
            )
    names = ("domain", "kept", "lost", "learned", "unknown", "change", "consistency", "kl")
    return Table(words("knowledge.transitions"), [words(f"knowledge.{name}") for name in names], body)


def _interval(values: Mapping[str, Any], words: Words, *, points: bool = False) -> str:
    low, high = values.get("low"), values.get("high")
    if low is None or high is None:
        return ""
    ends = words.interval(low, high, words.points if points else words.share)
    return ends if points else f"{words.share(values.get('value'))} ({ends})"


def agreement_chart(after: After, words: Words) -> Markup | None:
    """Returns consistency against accuracy, a point per domain; None with fewer than three."""
    roles = roles_of(after.agreement) or list(after.agreement)
    points = [
        Point(
            row.consistency,
            row.tuned_accuracy,
            words(f"knowledge_role.{role}"),
            SHAPES[0],
            words(
                "knowledge.point",
                name=domain_name(row.domain, words),
                x=words.number(row.consistency, 2),
                y=words.share(row.tuned_accuracy),
                base=words.share(row.base_accuracy),
            ),
        )
        for role in roles
        for row in after.agreement[role][:-1]
    ]
    if len(points) < 3:
        return None
    drawn = scatter(points, name="knowledge-agreement", words=_scatter_words(words, []))
    return drawn.inline(words("knowledge.chart_agreement"))


def _scatter_words(words: Words, shapes: list[tuple[str, str]]) -> ScatterWords:
    return ScatterWords(
        words("knowledge.x_consistency"),
        words("knowledge.y_accuracy"),
        shapes,
        lambda value: words.number(value, 2),
        words.share,
    )


def sets_chart(found: Intervention, words: Words) -> Markup:
    """Returns consistency against accuracy, a point per set, seed and test."""
    shapes = dict(zip(found.tests, SHAPES, strict=False))
    points = [
        Point(
            row.consistency,
            row.tuned_accuracy,
            set_name(row.set, words),
            shapes.get(row.test, SHAPES[0]),
            words(
                "knowledge.point",
                name=f"{set_name(row.set, words)}, {words(f'knowledge_role.{row.test}')}",
                x=words.number(row.consistency, 2),
                y=words.share(row.tuned_accuracy),
                base=words.share(row.base_accuracy),
            ),
        )
        for row in found.rows
    ]
    legend = [(shape, words(f"knowledge_role.{test}")) for test, shape in shapes.items()]
    drawn = scatter(points, name="knowledge-sets", words=_scatter_words(words, legend))
    return drawn.inline(words("knowledge.chart_sets"))


def set_name(name: str, words: Words) -> str:
    """Returns the name of a tuning set as a reader sees it."""
    if name.startswith("mix-"):
        return words("knowledge_set.mix", share=words.share(float(name.removeprefix("mix-"))))
    return words.get(f"knowledge_set.{name}", name)
