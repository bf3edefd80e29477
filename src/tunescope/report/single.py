"""The report of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunescope import __version__
from tunescope.report.page import render, write_json, write_text
from tunescope.report.sections import IN_ORDER, KNOWLEDGE_IN_ORDER, MAP_IN_ORDER, STREAM_IN_ORDER
from tunescope.report.source import RunSource, read_run
from tunescope.report.wording import Words
from tunescope.runs.records import SCHEMA_VERSION

# Study with a page of its own -> title, footer, sections; every other study is shown as a proof of concept.
PAGES = {
    "map": ("map.report", "map.footer", MAP_IN_ORDER),
    "knowledge": ("knowledge.report", "knowledge.footer", KNOWLEDGE_IN_ORDER),
    "learn": ("stream.report", "stream.footer", STREAM_IN_ORDER),
}


def build(run_folder: Path, *, lang: str | None = None) -> Path:
    """Builds ``report.html`` and ``report.json`` in a run folder.

    The page is one file that needs no network. A part that the run does not hold becomes a sentence that says so.
    The same folder always gives the same bytes.

    Args:
        run_folder: the run folder; its other files are only read.
        lang: ``en`` or ``ja``; the config's language where it is not given.

    Returns:
        Path of the page.

    Raises:
        RunError: no run folder, a broken file, a run from a newer tunescope, or the page cannot be written.
        UserError: there is no such language.
    """
    run = read_run(run_folder)
    words = words_of(run, lang)
    title, footer, order = PAGES.get(run.study, ("page.report", "page.footer", IN_ORDER))
    own = run.study in PAGES  # such a run may stand without data of its own
    sections = [part.section(run, words) for part in order if part.KEY != "data" or run.data or not own]
    study = {"title": title, "footer": footer}
    shown = {"run": run.name, "sections": sections, "facts": page_facts(run), "study": study}
    page = render("report.html.j2", words, lang=words.lang, **shown)
    path = run_folder / "report.html"
    write_json(run_folder / "report.json", _facts(run, words, {section.key: section for section in sections}))
    write_text(path, page)
    return path


def words_of(run: RunSource, lang: str | None) -> Words:
    """Returns the words of a run: its language unless another is asked for, its currency, its level of intervals."""
    level = run.setting("evaluation.confidence", 0.95)
    return Words(
        lang or str(run.setting("language", "en")),
        currency=str(run.setting("business.currency", "EUR")),
        confidence=level if isinstance(level, float) else 0.95,
    )


def page_facts(run: RunSource) -> list[tuple[str, str]]:
    """Returns what identifies a run, for the line above its verdict: (key, value)."""
    started = str(run.environment.get("started") or run.status.get("started") or "")
    facts = [
        ("model", str(run.model.get("name") or run.setting("model", ""))),
        (
            "device",
            str(run.environment.get("cpu") or "")
            if run.environment.get("device") == "cpu"
            else str(run.environment.get("gpu") or run.environment.get("device") or ""),
        ),
        ("seed", str(run.environment.get("seed", run.setting("seed", "")))),
        ("date", started[:10]),
    ]
    return [(key, value) for key, value in facts if value]


def _facts(run: RunSource, words: Words, sections: dict[str, Any]) -> dict[str, Any]:
    """The report for programs: the same content as the page, numbers unrounded."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tunescope": __version__,
        "run": run.name,
        "language": words.lang,
        "currency": words.currency,
        "status": dict(run.status),
        "missing_files": list(run.missing),
        **{key: section.facts for key, section in sections.items()},
    }
