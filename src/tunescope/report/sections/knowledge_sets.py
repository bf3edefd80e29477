"""The intervention study: what tuning on known, unknown and self-made answers does to the answers."""

from __future__ import annotations

from tunescope.report import knowledge_parts as parts
from tunescope.report.knowledge import ALL, Intervention, Share
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Mark, Section, Table, number
from tunescope.report.wording import NONE, Words

KEY = "knowledge_sets"
REFERENCE = "incompatible"


def section(run: RunSource, words: Words) -> Section:
    """Returns the comparison as a table, and consistency against accuracy."""
    found = run.knowledge.intervention if run.knowledge else None
    if found is None:
        return Section(
            KEY, words("knowledge_sets.title"), None, words("knowledge_sets.absent"), {"missing": ["intervention"]}
        )
    content = {
        "meaning": _meaning(found, words),
        "table": _table(found, words),
        "chart": parts.sets_chart(found, words),
        "note": words("knowledge_sets.note"),
        "facts": _facts(found, words),
    }
    return Section(KEY, words("knowledge_sets.title"), content, facts=dict(found.raw))


def _meaning(found: Intervention, words: Words) -> str:
    sentences = []
    if found.order and ALL in found.order_holds:
        names = words("knowledge_sets.then").join(parts.set_name(name, words) for name in found.order)
        key = "order_holds" if found.order_holds[ALL] else "order_fails"
        probability = words.share(found.order_probability.get(ALL))
        sentences.append(words(f"knowledge_sets.{key}", order=names, probability=probability))
    for name in ("harmonious", "self_aligning", "contextualised"):
        gap = found.against(name, REFERENCE)
        if gap is None or gap.value is None or gap.low is None or gap.high is None:
            continue
        key = "better" if gap.low > 0 else "worse" if gap.high < 0 else "same"
        values = {"gap": words.points(gap.value), "interval": words.interval(gap.low, gap.high, words.points)}
        sentences.append(words(f"knowledge_sets.{key}", name=words.arm(parts.set_name(name, words)), **values))
    if found.partial is not None:
        sentences.append(words("knowledge_sets.partial", value=words.number(found.partial, 2)))
    return words("format.sentences").join(sentences) or words("knowledge_sets.nothing")


def _table(found: Intervention, words: Words) -> Table:
    head = [words("knowledge_sets.set"), *(words(f"knowledge_role.{test}") for test in found.tests)]
    head += [words("knowledge_sets.gap"), words("knowledge.consistency"), words("knowledge.kl")]
    base = [number(words.share(found.base.get(test))) for test in found.tests]
    body = [[Cell(words("knowledge_sets.base")), *base, number(NONE), number(NONE), number(NONE)]]
    for name in found.sets:
        mine = [row for row in found.rows if row.set == name]
        kls = [row.kl for row in mine if row.kl is not None]
        cells = [_share(found.accuracy[name, test], words) for test in found.tests]
        near = sum(row.consistency for row in mine) / len(mine) if mine else None
        kl = sum(kls) / len(kls) if kls and len(kls) == len(mine) else None
        gap = _gap(found.against(name, REFERENCE), words) if name != REFERENCE else number(NONE)
        body.append(
            [Cell(parts.set_name(name, words)), *cells, gap, number(words.number(near, 2)), number(words.number(kl, 3))]
        )
    return Table(words("knowledge_sets.caption"), head, body)


def _share(share: Share, words: Words) -> Cell:
    return number(words.share(share.value), words.interval(share.low, share.high, words.share))


def _gap(share: Share | None, words: Words) -> Cell:
    if share is None or share.value is None or share.low is None or share.high is None:
        return number(NONE)
    mark: Mark = "better" if share.low > 0 else "worse" if share.high < 0 else "noise"
    ends = words.interval(share.low, share.high, words.points)
    return Cell(ends, "", mark, words(f"mark.{mark}", change=words.points(share.value)), "n")


def _facts(found: Intervention, words: Words) -> list[str]:
    facts = found.facts
    lines = [
        words(
            "knowledge_sets.sizes",
            size=words.count(facts.get("group_size")),
            general=words.count(facts.get("general")),
            seeds=words.listing([str(seed) for seed in facts.get("seeds") or ()]),
        )
    ]
    explained = facts.get("explanations") or {}
    used = "used" if explained.get("used") else str(explained.get("why") or "setting")
    lines.append(words.get(f"knowledge_explained.{used}", used))
    if not facts.get("contextualised"):
        lines.append(words("knowledge_sets.no_context"))
    return lines
