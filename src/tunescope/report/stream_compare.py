"""Several streams on one page: which policy keeps most, and how little memory does as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope import metrics
from tunescope.errors import RunError
from tunescope.metrics import Difference
from tunescope.report.page import render, write_text
from tunescope.report.single import words_of
from tunescope.report.source import RunSource
from tunescope.report.stream import Stream, read_stream
from tunescope.report.tables import Cell, Mark, Table, number
from tunescope.report.wording import NONE, Words

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StreamRun:
    """One run of a stream.

    Attributes:
        name: unique on the page.
        run: its folder.
        stream: its stream.
        scores: (task, id) -> score of the test example after the last stage.
    """

    name: str
    run: RunSource
    stream: Stream
    scores: Mapping[tuple[str, str], float]

    @property
    def setting(self) -> tuple[object, tuple[str, ...]]:
        """Seed and order: policies are compared under the same ones where there are any."""
        return self.run.setting("seed"), self.stream.order


def compare_streams(named: Mapping[str, RunSource], *, out: Path, lang: str | None = None) -> Path:
    """Writes one page with several streams side by side.

    Args:
        named: unique name -> run, each of the study ``learn``.
        out: the page to write; an older one is replaced.
        lang: ``en`` or ``ja``; the first run's language where it is not given.

    Returns:
        `out`.

    Raises:
        RunError: a run has no stream yet, or the page cannot be written.
        UserError: there is no such language.
    """
    runs = [_read(name, run) for name, run in named.items()]
    words = words_of(runs[0].run, lang)
    comparable = _comparable(runs)
    pairs = policy_pairs(runs) if comparable else {}
    page = render(
        "stream_compare.html.j2",
        words,
        lang=words.lang,
        headline=words("stream_compare.headline", count=words.count(len(runs))),
        meaning=words("stream_compare.meaning" if comparable else "stream_compare.not_comparable"),
        advice=_advice(runs, pairs, words) if comparable else [],
        runs=_runs(runs, words),
        policies=_policies(runs, words) if comparable else None,
        pairs=_pairs(pairs, words),
    )
    write_text(out, page)
    return out


def _read(name: str, run: RunSource) -> StreamRun:
    found = read_stream(run.folder)
    if found is None:
        raise RunError(f"{run.folder}: has no stream.json, the run did not get that far; continue it with --resume")
    last = found.rows[-1].arm
    scores = {
        (sample.task, sample.id): float(sample.answers[last]["score"])
        for sample in run.samples
        if sample.role == "in_domain" and last in sample.answers
    }
    return StreamRun(name, run, found, scores)


def _comparable(runs: Sequence[StreamRun]) -> bool:
    """Whether all runs scored the same tasks on the same examples."""
    versions = [{task.name: task.version for task in run.stream.tasks} for run in runs]
    return (
        all(one == versions[0] for one in versions)
        and all(run.scores.keys() == runs[0].scores.keys() for run in runs)
        and bool(runs[0].scores)
    )


def policy_pairs(runs: Sequence[StreamRun]) -> dict[tuple[str, str], Difference]:
    """Compares every two policies on the same test examples, under seeds and orders that both have.

    Args:
        runs: that score the same examples.

    Returns:
        (first, second) -> mean over tasks of the first minus the second, the better one first. A policy with several runs enters with the
        mean of each example over them, so the interval knows the examples and not the luck of seeds and orders.
    """
    by_policy: dict[str, list[StreamRun]] = {}
    for run in runs:
        by_policy.setdefault(_label(run), []).append(run)
    found = {}
    names = list(by_policy)
    keys = sorted(runs[0].scores)
    strata = [task for task, _ in keys]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            mine, other = _matched(by_policy[first], by_policy[second])
            gap = metrics.paired_difference(_mean(mine, keys), _mean(other, keys), strata=strata)
            if gap.value >= 0:
                found[first, second] = gap
            else:
                found[second, first] = metrics.paired_difference(_mean(other, keys), _mean(mine, keys), strata=strata)
    return found


def _label(run: StreamRun) -> str:
    """What distinguishes runs besides seed and order: policy, what is repeated, what is kept."""
    budget = run.run.setting("replay.budget_per_task")
    limit = run.run.setting("replay.memory_examples") or run.run.setting("replay.memory_bytes")
    policy = run.stream.policy
    if policy in ("none", "joint"):
        return policy
    return f"{policy} {budget}" + (f"/{limit}" if limit else "")


def _matched(first: Sequence[StreamRun], second: Sequence[StreamRun]) -> tuple[list[StreamRun], list[StreamRun]]:
    both = {run.setting for run in first} & {run.setting for run in second}
    if not both:
        return list(first), list(second)
    return [r for r in first if r.setting in both], [r for r in second if r.setting in both]


def _mean(runs: Sequence[StreamRun], keys: Sequence[tuple[str, str]]) -> Floats:
    means: Floats = np.mean([[run.scores[key] for key in keys] for run in runs], axis=0)
    return means


def _name(label: str, words: Words) -> str:
    policy, _, amount = label.partition(" ")
    name = words.get(f"policy.{policy}", policy)
    return f"{name} ({amount})" if amount else name


def _advice(runs: Sequence[StreamRun], pairs: Mapping[tuple[str, str], Difference], words: Words) -> list[str]:
    said = []
    labels = list(dict.fromkeys(_label(run) for run in runs))
    sequential = [label for label in labels if label != "joint"]
    if len(sequential) > 1:
        best = max(sequential, key=lambda label: sum(first == label for first, second in pairs if second in sequential))
        seconds = [(second, gap) for (first, second), gap in pairs.items() if first == best and second in sequential]
        if seconds:
            second, gap = min(seconds, key=lambda item: item[1].value)
            key = "stream_compare.best_clear" if gap.decides else "stream_compare.best_unclear"
            said.append(words(key, best=_name(best, words), second=_name(second, words), **_numbers(gap, words)))
    randoms = [label for label in labels if label.partition(" ")[0] == "random"]
    if not randoms:
        said.append(words("stream_compare.no_random"))
    for (first, second), gap in pairs.items():
        other = first if second in randoms else second if first in randoms else ""
        if not other or other in randoms or other in ("joint", "none"):
            continue
        sign = 1 if second in randoms else -1
        reading = words("stream_compare.beyond" if gap.decides else "stream_compare.inside")
        low, high = sorted((sign * gap.low, sign * gap.high))
        shown = {"points": words.points(sign * gap.value), "interval": words.interval(low, high, words.points)}
        said.append(words("stream_compare.beats_random", policy=_name(other, words), reading=reading, **shown))
    said += _least_memory(runs, words)
    if len({run.setting for run in runs}) == 1:
        said.append(words("stream_compare.one_seed"))
    return said


def _numbers(gap: Difference, words: Words) -> dict[str, str]:
    return {"points": words.points(gap.value), "interval": words.interval(gap.low, gap.high, words.points)}


def _least_memory(runs: Sequence[StreamRun], words: Words) -> list[str]:
    """The run that keeps least among those whose average is within the noise of the best one."""
    rows = [run for run in runs if not run.stream.joint]
    kept = {run.name: int(run.stream.memory.get("examples", 0)) for run in rows}
    if len(set(kept.values())) < 2:
        return []
    keys = sorted(rows[0].scores)
    strata = [task for task, _ in keys]
    gaps = {run.name: _mean([run], keys) for run in rows}
    best = max(rows, key=lambda run: float(_macro(gaps[run.name], strata)))
    within = []
    for run in rows:
        gap = metrics.paired_difference(gaps[run.name], gaps[best.name], strata=strata)
        if not gap.decides:
            within.append((kept[run.name], run.name, gap))
    count, name, gap = min(within, key=lambda item: item[:2])
    return [words("stream_compare.least_memory", run=name, kept=words.count(count), **_numbers(gap, words))]


def _macro(values: Floats, strata: Sequence[str]) -> float:
    tasks = np.array(strata)
    return float(np.mean([values[tasks == task].mean() for task in dict.fromkeys(strata)]))


def _runs(runs: Sequence[StreamRun], words: Words) -> Table:
    names = ("run", "policy", "order", "seed", "budget", "kept")
    head = [words(f"stream_compare.{name}") for name in names] + [
        words(f"measure.{name}") for name in ("average", "forgetting", "relative_gain")
    ]
    body = []
    for run in runs:
        stream = run.stream
        gain = stream.last_gain
        body.append(
            [
                Cell(run.name),
                Cell(words.get(f"policy.{stream.policy}", stream.policy)),
                Cell(f"{stream.order[0]} … {stream.order[-1]}"),
                number(str(run.run.setting("seed", NONE))),
                number(words.count(run.run.setting("replay.budget_per_task"))),
                number(words.count(stream.memory.get("examples"))),
                _measure(stream.measure("average"), words.score, words),
                _measure(stream.measure("forgetting"), words.points, words),
                _measure(gain, lambda value: words.number(value, 1) + "%", words),
            ]
        )
    return Table(words("stream_compare.runs_caption"), head, body)


def _measure(found: Mapping[str, Any] | None, writer: Any, words: Words) -> Cell:
    if not found:
        return number(NONE)
    return number(writer(found["value"]), words.interval(found["low"], found["high"], writer))


def _policies(runs: Sequence[StreamRun], words: Words) -> Table:
    """Mean and range over the runs of each policy."""
    by_policy: dict[str, list[StreamRun]] = {}
    for run in runs:
        by_policy.setdefault(_label(run), []).append(run)
    head = [words("stream_compare.policy"), words("stream_compare.count")] + [
        words(f"measure.{name}") for name in ("average", "forgetting", "relative_gain")
    ]
    body = []
    for label, mine in by_policy.items():
        averages = [m["value"] for run in mine if (m := run.stream.measure("average"))]
        lost = [m["value"] for run in mine if (m := run.stream.measure("forgetting"))]
        gains = [run.stream.last_gain["value"] for run in mine if run.stream.last_gain]
        cells = [(averages, words.score), (lost, words.points), (gains, lambda value: words.number(value, 1) + "%")]
        body.append(
            [
                Cell(_name(label, words)),
                number(words.count(len(mine))),
                *(_spread(values, writer, words) for values, writer in cells),
            ]
        )
    return Table(words("stream_compare.policies_caption"), head, body)


def _spread(values: Sequence[float], writer: Any, words: Words) -> Cell:
    if not values:
        return number(NONE)
    ends = words("stream_compare.spread", low=writer(min(values)), high=writer(max(values))) if len(values) > 1 else ""
    return number(writer(sum(values) / len(values)), ends)


def _pairs(pairs: Mapping[tuple[str, str], Difference], words: Words) -> Table | None:
    if not pairs:
        return None
    head = [words(f"stream_compare.{name}") for name in ("first", "second", "difference")]
    body = []
    for (first, second), gap in pairs.items():
        mark: Mark = "noise" if not gap.decides else "better" if gap.value > 0 else "worse"
        cell = Cell(
            words.interval(gap.low, gap.high, words.points),
            mark=mark,
            note=words(f"mark.{mark}", change=words.points(gap.value)),
            css="n",
        )
        body.append([Cell(_name(first, words)), Cell(_name(second, words)), cell])
    return Table(words("stream_compare.pairs_caption"), head, body)
