"""Risk: how often an arm is wrong when it is sure, and what share of answers a person should see."""

from __future__ import annotations

import itertools
import math

from markupsafe import Markup

from tunescope.report import charts
from tunescope.report.select_results import focus_arm
from tunescope.report.source import RunSource
from tunescope.report.tables import TEST_ROLES, Cell, Section, Table, absent, number
from tunescope.report.wording import Words
from tunescope.runs.records import Risk, Role

KEY = "risk"
N_BINS = 10


def section(run: RunSource, words: Words) -> Section:
    """Returns calibration, risk–coverage and the human share of each arm."""
    if not run.risks:
        return absent(KEY, words, "risk.json")
    reliability = _reliability_chart(run, words)
    content = {
        "meaning": _meaning(run, words),
        "coverage": _coverage_chart(run, words),
        "coverage_table": _coverage_table(run, words),
        "reliability": reliability,
        "reliability_note": words("risk.reliability_note" if reliability else "risk.no_reliability"),
        "reliability_table": _reliability_table(run, words),
        "chosen": _chosen(run, words),
        "tables": [_table(run, role, words) for role in TEST_ROLES if any(risk.role == role for risk in run.risks)],
    }
    return Section(KEY, words("risk.title"), content, facts={"risks": [risk.to_dict() for risk in run.risks]})


def _meaning(run: RunSource, words: Words) -> str:
    arm = focus_arm(run)
    parts = []
    for role in TEST_ROLES:
        risk = next((risk for risk in run.risks if (risk.arm, risk.role) == (arm, role)), None)
        if risk is None or not risk.coverage:  # no label task: there is no confidence to speak of
            continue
        values = {"arm": words.arm(arm), "role": words(f"role.{role}"), "error": words.share(risk.target_error)}
        if risk.human_share is None:
            parts.append(words("risk.never", **values))
        else:
            parts.append(words("risk.human", share=words.share(risk.human_share), **values))
            if risk.checked_error is not None:
                kept = _kept(risk.checked_error, risk.checked_high, risk.target_error)
                interval = words.interval(risk.checked_low, risk.checked_high, words.share)
                n = words.count(risk.n_checked)
                parts.append(words(f"risk.{kept}", checked=words.share(risk.checked_error), n=n, interval=interval))
    return words("format.sentences").join(parts) or words("risk.no_meaning")


def _kept(error: float, high: float | None, target: float) -> str:
    """Whether the rule did what it promises; a low error in a handful of answers does not show it."""
    if error > target:
        return "missed"
    return "held" if high is not None and high <= target else "unsure"


def _table(run: RunSource, role: Role, words: Words) -> Table:
    rows = sorted((risk for risk in run.risks if risk.role == role), key=lambda risk: _place(run, risk.arm))
    target = words.share(rows[0].target_error)
    head = [
        words(f"risk.{name}", error=target)
        for name in ("arm", "n", "ece", "area", "threshold", "human_share", "checked", "collapse", "unrelated")
    ]
    body = [
        [
            Cell(risk.arm),
            number(words.count(risk.n)),
            number(words.number(risk.ece, 3)),
            number(words.number(risk.area, 3)),
            number(words.share(risk.threshold)),
            _human_share(risk, words),
            number(words.share(risk.checked_error), _checked_hint(risk, words)),
            number(words.share(risk.collapse_rate)),
            number(words.share(risk.unrelated_rate)),
        ]
        for risk in rows
    ]
    return Table(words("risk.caption", role=words(f"role.{role}")), head, body)


def _human_share(risk: Risk, words: Words) -> Cell:
    if not risk.coverage:
        return number(words("not_measured"))
    return number(words("risk.unreachable") if risk.human_share is None else words.share(risk.human_share))


def _checked_hint(risk: Risk, words: Words) -> str:
    if risk.checked_error is None or risk.checked_low is None:
        return ""
    return words(
        "risk.checked_hint",
        n=words.count(risk.n_checked),
        interval=words.interval(risk.checked_low, risk.checked_high, words.share),
    )


def _chosen(run: RunSource, words: Words) -> str:
    """On what the thresholds of the arms were chosen."""
    found = {risk.chosen_on: risk.n_chosen for risk in run.risks if risk.chosen_on}
    texts = [words(f"risk.chosen_{place}", n=words.count(n)) for place, n in found.items()]
    return words("format.sentences").join(texts)


def _place(run: RunSource, arm: str) -> int:
    return run.arms.index(arm) if arm in run.arms else len(run.arms)


def _lines(run: RunSource, role: Role) -> list[Risk]:
    rows = [risk for risk in run.risks if risk.role == role and risk.coverage and len(risk.coverage) == len(risk.risk)]
    return sorted(rows, key=lambda risk: _place(run, risk.arm))


def _coverage_chart(run: RunSource, words: Words) -> Markup | None:
    focus = focus_arm(run)
    panes = []
    for role in TEST_ROLES:
        lines = [
            charts.Curve(
                risk.arm,
                risk.coverage,
                risk.risk,
                charts.arm_colour(risk.arm, run.arms),
                width=2.8 if risk.arm == focus else 1.6,
            )
            for risk in _lines(run, role)
        ]
        if lines:
            panes.append((words(f"role.{role}"), lines))
    if not panes:
        return None
    target = next(risk.target_error for risk in run.risks)
    return charts.curves(
        panes,
        name="coverage",
        title=words("risk.coverage_title"),
        x_label=words("risk.coverage_x"),
        y_label=words("risk.coverage_y"),
        x_tick=words.share,
        y_tick=words.share,
        line_at=target,
    )


def _coverage_table(run: RunSource, words: Words) -> Table | None:
    """Error rate at some coverages: the chart in numbers."""
    wanted = (0.2, 0.4, 0.6, 0.8, 1.0)
    body = []
    for role in TEST_ROLES:
        for risk in _lines(run, role):
            nearest = [min(range(len(risk.coverage)), key=lambda i: abs(risk.coverage[i] - share)) for share in wanted]
            body.append([Cell(risk.arm, words(f"role.{role}")), *(number(words.share(risk.risk[i])) for i in nearest)])
    if not body:
        return None
    return Table(
        words("risk.coverage_caption"),
        [words("risk.arm"), *(words("risk.kept", share=words.share(share)) for share in wanted)],
        body,
    )


def reliability(run: RunSource, arm: str, role: Role) -> list[tuple[float, float]]:
    """Returns (mean confidence, share right) of equal-mass bins, least confident first.

    Only where the samples file holds every example behind the arm's risk numbers; a part of them would mislead.
    """
    risk = next((risk for risk in run.risks if (risk.arm, risk.role) == (arm, role)), None)
    pairs = []
    for sample in run.samples:
        answer = sample.answers.get(arm) if sample.role == role else None
        sure = answer.get("confidence") if isinstance(answer, dict) else None
        if isinstance(answer, dict) and isinstance(sure, int | float) and math.isfinite(sure):
            pairs.append((float(sure), float(answer.get("score") or 0.0)))
    if risk is None or len(pairs) != risk.n or len(pairs) < 5 * N_BINS:
        return []
    pairs.sort()
    edges = [round(i * len(pairs) / N_BINS) for i in range(N_BINS + 1)]
    bins = [pairs[low:high] for low, high in itertools.pairwise(edges)]
    return [(sum(sure for sure, _ in part) / len(part), sum(right for _, right in part) / len(part)) for part in bins]


def _reliability_chart(run: RunSource, words: Words) -> Markup | None:
    focus = focus_arm(run)
    arms = [arm for arm in dict.fromkeys(("nothing", focus)) if arm in run.arms]
    panes = []
    for role in TEST_ROLES:
        lines = []
        for arm in arms:
            points = reliability(run, str(arm), role)
            if points:
                x, y = zip(*points, strict=True)
                lines.append(
                    charts.Curve(
                        str(arm), x, y, charts.arm_colour(str(arm), run.arms), marker="o" if arm == focus else "s"
                    )
                )
        if lines:
            panes.append((words(f"role.{role}"), lines))
    if not panes:
        return None
    return charts.curves(
        panes,
        name="reliability",
        title=words("risk.reliability_title"),
        x_label=words("risk.reliability_x"),
        y_label=words("risk.reliability_y"),
        x_tick=words.share,
        y_tick=words.share,
        same_scale=True,
    )


def _reliability_table(run: RunSource, words: Words) -> Table | None:
    """The confidence diagram in numbers: share right (and mean confidence) in each bin."""
    body = []
    for role in TEST_ROLES:
        for arm in dict.fromkeys(("nothing", focus_arm(run))):
            points = reliability(run, str(arm), role)
            if points:
                cells = [
                    number(words.share(right), words("risk.sure_of", share=words.share(sure))) for sure, right in points
                ]
                body.append([Cell(str(arm), words(f"role.{role}")), *cells])
    if not body:
        return None
    bins = [words.count(i + 1) for i in range(N_BINS)]
    return Table(words("risk.reliability_caption"), [words("risk.arm"), *bins], body)
