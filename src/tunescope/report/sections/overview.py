"""The first screen: verdict, how sure, money, main risk, next step."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from tunescope.report import charts, sentences
from tunescope.report.select_results import focus_arm, headline
from tunescope.report.source import RunSource
from tunescope.report.tables import TEST_ROLES, Section
from tunescope.report.wording import NONE, Words
from tunescope.runs.records import MoneyLine, Risk, Verdict

SURE, FAIRLY_SURE = 0.95, 0.80  # shares of resamplings from which the words "high" and "fair" are used
KEY = "overview"


def section(run: RunSource, words: Words) -> Section:
    """Returns the first screen; without a verdict it says what the run does hold."""
    verdict = run.verdict
    title = _title(verdict, run, words)
    reasons = [sentences.reason(row, words) for row in verdict.reasons] if verdict else []
    steps = [sentences.step(row, words) for row in verdict.next_steps] if verdict else []
    cards = (
        [_sure(verdict, words), _money(run, words), _main_risk(run, words), _next_step(steps, words)] if verdict else []
    )
    content = {
        "decision": verdict.decision if verdict else "none",
        "headline": title,
        "lead": reasons[0] if reasons else _lead_without_verdict(run, words),
        "cards": cards,
        "reasons": reasons,
        "steps": steps,
        "chart": _chart(run, words),
        "chart_note": words("overview.chart_note"),
        "alarm": alarm(run, words),
    }
    facts = {
        "headline": title,
        "decision": content["decision"],
        "arm": verdict.arm if verdict else None,
        "confidence": verdict.confidence if verdict else None,
        "reasons": reasons,
        "next_steps": steps,
        "cards": {card["key"]: {"value": card["value"], "text": card["text"]} for card in cards},
        "verdict": verdict.to_dict() if verdict else None,
    }
    return Section(KEY, words("overview.title"), content, facts=facts)


def _title(verdict: Verdict | None, run: RunSource, words: Words) -> str:
    if verdict is None:
        return words("overview.no_verdict")
    known = f"overview.{verdict.decision}" + ("_arm" if verdict.arm else "")
    return words(known, arm=words.arm(verdict.arm)) if known in words else verdict.decision.replace("_", " ")


def _lead_without_verdict(run: RunSource, words: Words) -> str:
    tuned = run.tuned_arms
    if tuned:
        return words("overview.only_tuning", arms=words.listing([words.arm(arm) for arm in tuned]))
    return words("overview.nothing_yet")


def alarm(run: RunSource, words: Words) -> str:
    """Returns what a run that did not end well says above everything else."""
    state = run.status.get("state", "done")
    if state == "done":
        return ""
    key = f"state.{state}"
    stage, error = str(run.status.get("stage") or NONE), str(run.status.get("error") or NONE)
    return words(key, stage=stage, error=error) if key in words else str(state)


def _card(key: str, value: str, label: str, text: str, words: Words) -> dict[str, str]:
    return {"key": key, "title": words(f"card.{key}"), "value": value, "label": label, "text": text}


def _sure(verdict: Verdict | None, words: Words) -> dict[str, str]:
    share = verdict.confidence if verdict else None
    if verdict is None or share is None:
        return _card("sure", words("sure.unknown"), "", words("sure.unknown_text"), words)
    level = "high" if share >= SURE else "fair" if share >= FAIRLY_SURE else "low"
    key = "sure.untuned_text" if verdict.decision == "do_not_tune" else "sure.text"
    text = words(key, share=words.share(share), arm=words.arm(verdict.arm or NONE))
    return _card("sure", words.share(share), words(f"sure.{level}"), text, words)


def _line(verdict: Verdict, arm: str | None) -> MoneyLine | None:
    return next((line for line in verdict.money if line.arm == arm), None)


def _money(run: RunSource, words: Words) -> dict[str, str]:
    verdict = run.verdict
    row = (
        next((row for row in verdict.reasons if row.get("code") in ("money", "money_negative")), None)
        if verdict
        else None
    )
    months = words.number(run.setting("business.horizon_months", (row or {}).get("months")))
    if verdict is not None and verdict.arm is None:
        return _card("money", words("money_card.open"), "", words("money_card.open_text"), words)
    if verdict is None or (row is None and _line(verdict, verdict.arm) is None):
        return _card("money", NONE, "", words("money_card.unknown"), words)
    if row is None:
        line = _line(verdict, verdict.arm)
        assert line is not None
        net = words.money_interval(line.net_low, line.net_high)
        text = words("money_card.net", arm=words.arm(line.arm), months=months, interval=net)
        return _card("money", words.money_change(line.net_over_horizon), "", text, words)
    currency = row.get("currency") if isinstance(row.get("currency"), str) else None
    value = words.money_change(row.get("value"), currency)
    parts = [
        words("money_card.against", arm=words.arm(row.get("arm")), against=words.arm(row.get("against")), months=months)
    ]
    if "low" in row and "high" in row:
        parts.append(
            words(
                "money_card.interval",
                interval=words.money_interval(row["low"], row["high"], sign=True, currency=currency),
            )
        )
    line = _line(verdict, str(row.get("arm")))
    if line is not None:
        parts.append(break_even(line, run, words))
    return _card("money", value, "", words("format.sentences").join(parts), words)


def break_even(line: MoneyLine, run: RunSource, words: Words, *, short: bool = False) -> str:
    """Returns in words after how many requests an arm has earned its cost; `short` for a table."""
    form = "break_even.short_" if short else "break_even."
    requests = line.break_even_requests
    if requests is None:
        return words(form + "never")
    if requests <= 0:
        return words(form + "at_once")
    monthly = run.setting("business.requests_per_month")
    if isinstance(monthly, int | float) and monthly > 0:
        return words(form + "months", requests=words.count(requests), months=words.number(requests / monthly, 1))
    return words(form + "requests", requests=words.count(requests))


def _main_risk(run: RunSource, words: Words) -> dict[str, str]:
    """The gravest thing known about the recommended arm; the order is fixed and part of the report's promise."""
    verdict = run.verdict
    arm = verdict.arm if verdict else None
    if verdict is None or arm is None:
        return _card("risk", words("risk_card.undecided"), "", words("risk_card.undecided_text"), words)
    rows = {row.get("code"): row for row in verdict.reasons if row.get("arm") in (arm, None)}
    for code in ("guard_worse", "ood_loss"):
        if code in rows:
            return _card("risk", words(f"risk_card.{code}"), "", sentences.reason(rows[code], words), words)
    risks = {risk.role: risk for risk in run.risks if risk.arm == arm}
    for role in TEST_ROLES:
        risk = risks.get(role)
        if risk is not None and risk.coverage and (risk.human_share is None or risk.human_share >= 0.5):
            return _human_card(risk, words)
    if "ood_unclear" in rows:
        return _card("risk", words("risk_card.ood_unclear"), "", sentences.reason(rows["ood_unclear"], words), words)
    if headline(run, arm, "out_of_domain") is None:
        return _card("risk", words("risk_card.ood_unknown"), "", words("risk_card.ood_unknown_text"), words)
    if "in_domain" in risks and risks["in_domain"].coverage:
        return _human_card(risks["in_domain"], words)
    return _card("risk", words("risk_card.unknown"), "", words("risk_card.unknown_text"), words)


def _human_card(risk: Risk, words: Words) -> dict[str, str]:
    target, role = words.share(risk.target_error), words(f"role_on.{risk.role}")
    if risk.human_share is None:
        text = words("risk_card.human_never_text", error=target, role=role)
        return _card("risk", words("risk_card.human_never"), "", text, words)
    text = words("risk_card.human_text", share=words.share(risk.human_share), error=target, role=role)
    return _card("risk", words("risk_card.human", share=words.share(risk.human_share)), "", text, words)


def _next_step(steps: list[str], words: Words) -> dict[str, str]:
    if not steps:
        return _card("next", "", "", words("next_card.none"), words)
    more = words("next_card.more", count=words.count(len(steps) - 1)) if len(steps) > 1 else ""
    return _card("next", "", more, steps[0], words)


def _chart(run: RunSource, words: Words) -> Markup | None:
    """Quality of every arm in and out of domain, with intervals."""
    rows: list[list[charts.Dot]] = []
    focus = focus_arm(run) if run.verdict and run.verdict.arm else None
    for arm in run.arms:
        dots: list[charts.Dot] = []
        for role, colour, marker in zip(TEST_ROLES, (charts.BLUE, charts.ORANGE), ("o", "D"), strict=True):
            row = headline(run, arm, role)
            if row is not None:
                ends = (100 * row.value, 100 * row.low, 100 * row.high)
                dots.append(charts.Dot(arm, *ends, words.score(row.value), colour, arm == focus, marker))
        if dots:
            rows.append(dots)
    if not rows:
        return None
    ticks: dict[str, Any] = {"tick": words.number, "x_label": words("overview.chart_axis")}
    return charts.dots(
        [charts.Panel("", rows)],
        name="overview",
        title=words("overview.chart_title"),
        width=460,
        row_height=52,
        **ticks,
    )
