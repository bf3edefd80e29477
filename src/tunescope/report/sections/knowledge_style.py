"""Style or substance: which words of the tuned model the base would not have chosen, and whether words and scores agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunescope.report.checked import is_number, mapping
from tunescope.report.source import RunSource
from tunescope.report.tables import Cell, Section, Table, number
from tunescope.report.wording import Words

KEY = "knowledge_style"
_MOST_TOKENS = 24


def section(run: RunSource, words: Words) -> Section:
    """Returns the shares of tokens, and answers in words beside scored ones."""
    found = run.knowledge.after if run.knowledge else None
    if found is None or found.style is None:
        return Section(
            KEY, words("knowledge_style.title"), None, words("knowledge_style.absent"), {"missing": ["style"]}
        )
    path = run.folder / "knowledge.json"
    style = found.style
    tokens = mapping(style.get("stylistic_tokens"), path)
    content = {
        "meaning": _meaning(style, found.written, words),
        "table": _table(style, words),
        "tokens": [
            f"{token.strip() or token!r} ({words.count(count)})" for token, count in list(tokens.items())[:_MOST_TOKENS]
        ],
        "written": words(
            "knowledge_style.written",
            n=words.count(found.written.get("n")),
            words=words.share(found.written.get("right_in_words")),
            scores=words.share(found.written.get("right_by_scores")),
            names=words.share(found.written.get("names_a_choice")),
        )
        if found.written
        else "",
    }
    return Section(KEY, words("knowledge_style.title"), content, facts={"style": dict(style), "written": found.written})


def _value(style: Mapping[str, Any], name: str) -> Any:
    row = style.get(name)
    return row.get("value") if isinstance(row, Mapping) else None


def _meaning(style: Mapping[str, Any], written: Mapping[str, Any] | None, words: Words) -> str:
    shifted, stylistic = _value(style, "shifted"), _value(style, "stylistic")
    if not is_number(shifted):
        return words("knowledge_style.nothing")
    parts = [words("knowledge_style.shifted", share=words.share(shifted))]
    if is_number(stylistic):
        parts.append(words("knowledge_style.of_these", share=words.share(stylistic)))
    if written and is_number(written.get("right_in_words")) and is_number(written.get("right_by_scores")):
        gap = abs(written["right_in_words"] - written["right_by_scores"])
        parts.append(words("knowledge_style.apart" if gap > 0.1 else "knowledge_style.together"))
    return words("format.sentences").join(parts)


def _table(style: Mapping[str, Any], words: Words) -> Table:
    body = []
    for name in ("unshifted", "marginal", "shifted", "stylistic"):
        row = style.get(name)
        row = row if isinstance(row, Mapping) else {}
        ends = words.interval(row.get("low"), row.get("high"), words.share) if is_number(row.get("low")) else ""
        body.append([Cell(words(f"knowledge_style.rank_{name}")), number(words.share(row.get("value")), ends)])
    caption = words(
        "knowledge_style.caption",
        answers=words.count(style.get("n_answers")),
        tokens=words.count(style.get("n_tokens")),
    )
    return Table(caption, [words("knowledge_style.kind"), words("knowledge_style.share")], body)
