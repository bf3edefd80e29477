"""What was found of tuning on one task and testing on others, checked on one's own models: it appears, it does not, or cannot be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunescope.metrics import Difference, crossed_difference
from tunescope.runs.records import Role

Floats = NDArray[np.float64]
Shots = Literal["zero", "few"]
Mode = Literal["base", "ft", "fticl", "half"]
Answer = Literal["appears", "does not appear", "cannot tell"]
_COLLAPSED = 0.5


@dataclass(frozen=True)
class Measured:
    """One way of tuning on one task, as it did on one test task: all seeds on the same examples.

    Attributes:
        scores: (n_seeds, n_examples), in [0, 1].
        collapsed: (n_seeds, n_examples) of 0 and 1: the answer is a label of another task; None where labels are scored.
        unrelated: (n_seeds, n_examples) of 0 and 1: the answer has nothing to do with the instruction; None where labels are scored.
    """

    scores: Floats
    collapsed: Floats | None = None
    unrelated: Floats | None = None


@dataclass(frozen=True)
class Crossed:
    """What every model did on every task.

    Attributes:
        families: task -> whether it is a classification task; in order.
        measured: (tuned on, mode, shots, tested on, role) -> what was measured; ("", "base", ...) is the untuned model.
        moved: (tuned on, mode) -> mean absolute change of the weights, one number a seed.
        margin: differences below this are no difference worth having: what separates "does not appear" from "cannot tell".
        settings: n_bootstrap, confidence and seed of the intervals.
    """

    families: Mapping[str, bool]
    measured: Mapping[tuple[str, Mode, Shots, str, Role], Measured]
    moved: Mapping[tuple[str, Mode], Sequence[float]]
    margin: float = 0.05
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def tasks(self, *, classification: bool) -> list[str]:
        """Returns the tasks of one kind."""
        return [task for task, kind in self.families.items() if kind == classification]


@dataclass(frozen=True)
class Finding:
    """What one's own models say about one published finding.

    Attributes:
        number: as in the list of `check`.
        claim: the finding in one line.
        answer: appears, does not appear, or cannot tell.
        effect: the number that decides, or None where nothing was measured for it.
        low: lower end of its interval, or None.
        high: upper end of it, or None.
        what: what the number is.
        details: further numbers.
    """

    number: int
    claim: str
    answer: Answer
    effect: float | None
    low: float | None
    high: float | None
    what: str
    details: Mapping[str, float]


def check(crossed: Crossed) -> list[Finding]:
    """Checks the six findings one by one.

    1. A model tuned on classification collapses to its labels on generation tasks.
    2. In-domain quality of paraphrase identification grows with the data (here: with twice the data, of the tasks tuned on half as well).
    3. Tuning on one generation task destroys another, and tuning with in-context examples rescues it.
    4. Weights move less with in-context examples.
    5. In-context examples in tuning do not help classification.
    6. Classification tuning holds out of domain, generation tuning loses there.

    A claim of a difference *appears* where its interval is above 0, and *does not* where the interval is below the margin. A claim of no
    difference *appears* where the interval is below the margin, and *does not* where it is above 0. Everything else *cannot be told*. The
    tuned model is measured as it was tuned: without examples in the prompt, or with them. Finding 1 asks whether most answers are labels.

    Args:
        crossed: what every model did on every task.

    Returns:
        Six findings, in this order; one for which nothing was measured cannot be told.

    Source:
        Yang et al. (2024); the findings are theirs, the rules of the answer ours. Finding 3 compares as they do, the base with examples
        in its prompt with the tuned model without; its details have the loss when both are asked without.
    """
    return [
        _collapse(crossed),
        _growth(crossed),
        _rescue(crossed),
        _movement(crossed),
        _no_help(crossed),
        _transfer(crossed),
    ]


def verdict_of(low: float, high: float, margin: float, *, claims_none: bool = False) -> Answer:
    """Returns what an interval says about a claim.

    Args:
        low: lower end of the interval of the difference, in the direction of the claim.
        high: upper end.
        margin: smallest difference worth having, at least 0.
        claims_none: the claim is that there is no such difference.

    Example:
        >>> verdict_of(0.1, 0.3, 0.02), verdict_of(-0.2, 0.01, 0.02), verdict_of(-0.1, 0.1, 0.02)
        ('appears', 'does not appear', 'cannot tell')
        >>> verdict_of(-0.2, 0.01, 0.02, claims_none=True)
        'appears'
    """
    there, absent = ("does not appear", "appears") if claims_none else ("appears", "does not appear")
    return there if low > 0 else absent if high < margin else "cannot tell"  # type: ignore[return-value]


def _collapse(crossed: Crossed) -> Finding:
    claim = "a model tuned on classification collapses to its labels on generation tasks"
    pairs = [(s, t) for s in crossed.tasks(classification=True) for t in crossed.tasks(classification=False)]
    tuned = _gather(crossed, pairs, "ft", "zero", ("in_domain",), lambda m: m.collapsed)
    half = {key: np.full((1, values.shape[1]), _COLLAPSED) for key, values in tuned.items()}
    scores = _gather(crossed, pairs, "ft", "zero", ("in_domain",), lambda m: m.scores)
    base = _gather(crossed, pairs, "base", "zero", ("in_domain",), lambda m: m.scores)
    details = {"score": _level(scores), "score of the base": _level(base)}
    what = "share of answers that are labels of another task, minus one half"
    found = _between(crossed, tuned, half)
    return _finding(1, claim, found, 0.0, what, details | {"collapse rate": _level(tuned)})


def _growth(crossed: Crossed) -> Finding:
    claim = "in-domain quality of paraphrase identification grows with twice the data"
    own = [(task, task) for task in crossed.families]
    half = _gather(crossed, own, "half", "zero", ("in_domain",), lambda m: m.scores)
    whole = _gather(crossed, own, "ft", "zero", ("in_domain",), lambda m: m.scores)
    whole = {key: values for key, values in whole.items() if key in half}
    details = {"half of the data": _level(half), "all of it": _level(whole)}
    return _finding(
        2, claim, _between(crossed, whole, half), crossed.margin, "score with all data minus with half", details
    )


def _rescue(crossed: Crossed) -> Finding:
    claim = "tuning on one generation task destroys another, and in-context examples in tuning rescue it"
    free = crossed.tasks(classification=False)
    pairs = [(s, t) for s in free for t in free if s != t]

    def levels(mode: Mode, shots: Shots) -> dict[tuple[str, str], Floats]:
        return _gather(crossed, pairs, mode, shots, ("in_domain",), lambda m: m.scores)

    plain, shown = levels("ft", "zero"), levels("fticl", "few")
    lost = _between(crossed, levels("base", "few"), plain)
    rescued = _between(crossed, shown, plain)
    details = {
        "base, examples in the prompt": _level(levels("base", "few")),
        "base": _level(levels("base", "zero")),
        "tuned": _level(plain),
        "tuned, examples in the prompt": _level(levels("ft", "few")),
        "tuned with examples": _level(shown),
    }
    if lost is None or rescued is None:
        return _finding(3, claim, None, crossed.margin, "rescue", details)
    details |= {"loss": lost.value, "loss, low": lost.low, "loss, high": lost.high}
    alike = _between(crossed, levels("base", "zero"), plain)
    if alike is not None:  # what the examples in the base's prompt were worth is not lost by tuning
        details |= {"loss, asked alike": alike.value, "asked alike, low": alike.low, "asked alike, high": alike.high}
    both = _finding(
        3,
        claim,
        rescued,
        crossed.margin,
        "tuned with examples minus tuned without, on the other generation task",
        details,
    )
    first = verdict_of(lost.low, lost.high, crossed.margin)
    return dataclasses.replace(both, answer=_and(first, both.answer))


def _movement(crossed: Crossed) -> Finding:
    claim = "weights move less with in-context examples in tuning"
    ratios = [
        float(np.log(with_examples / without))
        for task in crossed.families
        for without, with_examples in zip(
            crossed.moved.get((task, "ft"), ()), crossed.moved.get((task, "fticl"), ()), strict=False
        )
        if without > 0 and with_examples > 0
    ]
    details = {
        f"{task}, {mode}": float(np.mean(values))
        for (task, mode), values in crossed.moved.items()
        if len(values) and mode != "half"
    }
    what = "log of the ratio of mean absolute changes, without examples over with them"
    if len(ratios) < 2:
        return Finding(4, claim, "cannot tell", None, None, None, what, details)
    from scipy.stats import t

    mean, error = -float(np.mean(ratios)), float(np.std(ratios, ddof=1) / np.sqrt(len(ratios)))
    width = error * float(t.ppf((1 + float(crossed.settings.get("confidence", 0.95))) / 2, len(ratios) - 1))
    low, high = mean - width, mean + width
    return Finding(
        4, claim, verdict_of(low, high, crossed.margin), mean, low, high, what, details | {"models": float(len(ratios))}
    )


def _no_help(crossed: Crossed) -> Finding:
    claim = "in-context examples in tuning do not help classification"
    own = [(task, task) for task in crossed.tasks(classification=True)]
    plain = _gather(crossed, own, "ft", "zero", ("in_domain",), lambda m: m.scores)
    shown = _gather(crossed, own, "fticl", "few", ("in_domain",), lambda m: m.scores)
    outside = _between(
        crossed,
        _gather(crossed, own, "fticl", "few", ("out_of_domain",), lambda m: m.scores),
        _gather(crossed, own, "ft", "zero", ("out_of_domain",), lambda m: m.scores),
    )
    details = {"tuned": _level(plain), "tuned with examples": _level(shown)}
    if outside is not None:
        details |= {
            "out of domain": outside.value,
            "out of domain, low": outside.low,
            "out of domain, high": outside.high,
        }
    found = _between(crossed, shown, plain)
    what = "in-domain score of tuning with examples minus without"
    return _finding(5, claim, found, crossed.margin, what, details, claims_none=True)


def _transfer(crossed: Crossed) -> Finding:
    claim = "classification tuning holds out of domain, generation tuning loses there"
    gains = {}
    for kind in (True, False):
        own = [(task, task) for task in crossed.tasks(classification=kind)]
        tuned = _gather(crossed, own, "ft", "zero", ("out_of_domain",), lambda m: m.scores)
        base = _gather(crossed, own, "base", "zero", ("out_of_domain",), lambda m: m.scores)
        gains[kind] = _between(crossed, tuned, base)
    holds, loses = gains[True], gains[False]
    details: dict[str, float] = {}
    for name, gain in (("classification", holds), ("generation", loses)):
        if gain is not None:
            details |= {name: gain.value, f"{name}, low": gain.low, f"{name}, high": gain.high}
    if holds is None or loses is None:
        return _finding(6, claim, None, crossed.margin, "loss of generation tuning out of domain", details)
    first = verdict_of(-holds.high, -holds.low, crossed.margin, claims_none=True)
    second = verdict_of(-loses.high, -loses.low, crossed.margin)
    what = "out of domain, score of generation tuning minus that of the base"
    return Finding(6, claim, _and(first, second), loses.value, loses.low, loses.high, what, details)


def _and(first: Answer, second: Answer) -> Answer:
    """What two parts of a claim say together: one that does not appear decides."""
    if "does not appear" in (first, second):
        return "does not appear"
    return "appears" if first == second == "appears" else "cannot tell"


def _gather(
    crossed: Crossed,
    pairs: Iterable[tuple[str, str]],
    mode: Mode,
    shots: Shots,
    roles: Iterable[Role],
    of: Callable[[Measured], Floats | None],
) -> dict[tuple[str, str], Floats]:
    """(tuned on, test file) -> values, of the pairs of tasks that were measured; the base counts as every model."""
    found = {}
    for source, test in pairs:
        for role in roles:
            measured = crossed.measured.get(("" if mode == "base" else source, mode, shots, test, role))
            values = of(measured) if measured is not None else None
            if values is not None and values.size:
                found[source, f"{test} {role}"] = values
    return found


def _between(
    crossed: Crossed, a: Mapping[tuple[str, str], Floats], b: Mapping[tuple[str, str], Floats]
) -> Difference | None:
    """The difference over the pairs that both have; None where there are none."""
    both = [key for key in a if key in b]
    if not both:
        return None
    return crossed_difference({key: a[key] for key in both}, {key: b[key] for key in both}, **crossed.settings)


def _level(values: Mapping[tuple[str, str], Floats]) -> float:
    """Mean over the pairs; not a number where there are none."""
    return float(np.mean([v.mean() for v in values.values()])) if values else float("nan")


def _finding(
    number: int,
    claim: str,
    found: Difference | None,
    margin: float,
    what: str,
    details: Mapping[str, float],
    *,
    claims_none: bool = False,
) -> Finding:
    told = {name: value for name, value in details.items() if np.isfinite(value)}
    if found is None:
        return Finding(number, claim, "cannot tell", None, None, None, what, told)
    answer = verdict_of(found.low, found.high, margin, claims_none=claims_none)
    return Finding(number, claim, answer, found.value, found.low, found.high, what, told)
