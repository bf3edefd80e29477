"""What this run did not measure: said plainly, so that silence is not read as a good sign."""

from __future__ import annotations

from tunescope.report.source import RunSource
from tunescope.report.tables import Section
from tunescope.report.wording import Words

KEY = "gaps"


def section(run: RunSource, words: Words) -> Section:
    """Returns the questions to which the run has no answer."""
    arms = set(run.arms)
    gaps = [] if run.knowledge is not None and run.knowledge.after is not None else ["knowledge"]
    if not run.data_curves:
        gaps.append("data_amount")
    if not run.reworded:
        gaps.append("rephrasing")
    if not any(row.role == "out_of_domain" for row in run.results):
        gaps.append("out_of_domain")
    if not any(row.role == "guard" for row in run.results):
        gaps.append("guard")
    if run.actual and all(cost.energy_kwh is None for cost in run.actual.values()):
        gaps.append("energy")
    if "full" not in arms:
        gaps.append("full")
    if len({row.seed for row in run.results if row.seed is not None}) == 1:
        gaps.append("seeds")
    content = {"gaps": [words(f"gaps.{gap}") for gap in gaps], "meaning": words("gaps.meaning")}
    return Section(KEY, words("gaps.title"), content, facts={"not_measured": gaps})
