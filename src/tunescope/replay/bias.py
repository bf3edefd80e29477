"""Whether what is kept looks like what it was kept from."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from tunescope.errors import UserError, did_you_mean
from tunescope.runs.records import Record

FOUR_FIFTHS = 0.8


@dataclasses.dataclass(frozen=True)
class BiasRow(Record):
    """One value of one attribute, in the pool and among the kept.

    Attributes:
        attribute: for example ``language``.
        within: the part of the pool that is compared, for example a task; empty for all.
        value: for example ``ja``.
        n_pool: examples in that part of the pool with this value.
        n_kept: kept ones among them.
        pool_share: their share in that part of the pool, in [0, 1].
        kept_share: their share among the kept of that part, in [0, 1].
        p: two-sided exact probability of a table at least as unlikely, were the kept drawn at random; None where it was not tested.
        flagged: whether it is a shift.
    """

    attribute: str
    within: str
    value: str
    n_pool: int
    n_kept: int
    pool_share: float
    kept_share: float
    p: float | None
    flagged: bool


def bias_table(
    attributes: Mapping[str, Sequence[str]],
    kept: Sequence[bool],
    *,
    within: Mapping[str, Sequence[str]] | None = None,
    alpha: float = 0.05,
    min_count: int = 20,
) -> list[BiasRow]:
    """Compares the kept examples with the pool they come from, value by value, and flags shifts.

    The test asks whether the kept could be a random draw from the pool: Fisher's exact test (hypergeometric, two-sided) per value, Bonferroni
    over all values tested. A value is tested if the compared part of the pool holds at least `min_count` examples with it, and neither all
    nor none of that part is kept. A shift is flagged if p x tests < `alpha` *and* the kept share is below 4/5 or above 5/4 of the pool's: large
    pools make differences certain that nobody would mind.

    A policy that replays distant tasks more shifts ``task`` on purpose; the table shows by how much. Use `within` for what must not be
    confused with that: labels inside their task.

    Args:
        attributes: name -> one value per example of the pool.
        kept: for each example of the pool whether it is kept.
        within: name of an attribute -> one part per example (for example its task), inside which that attribute is compared.
        alpha: chance of one wrong flag in the whole table, in (0, 1).
        min_count: examples that a value needs in the pool to be tested, at least 1.

    Returns:
        Rows by attribute (in the order given), part and value.

    Raises:
        UserError: lengths differ, `within` names another attribute, or a setting is out of range.

    Source:
        The four-fifths rule is that of the US Uniform Guidelines on Employee Selection Procedures, section 4 D.

    Example:
        >>> rows = bias_table({"language": ["en"] * 60 + ["ja"] * 40}, [True] * 30 + [False] * 70)
        >>> [(row.value, row.pool_share, row.kept_share, row.flagged) for row in rows]
        [('en', 0.6, 1.0, True), ('ja', 0.4, 0.0, True)]
    """
    within = within or {}
    _check(attributes, kept, within, alpha, min_count)
    rows: list[BiasRow] = []
    for attribute, values in attributes.items():
        parts = within.get(attribute, [""] * len(kept))
        pool, chosen = Counter(zip(parts, values, strict=True)), Counter()  # type: ignore[var-annotated]
        chosen.update(pair for pair, keep in zip(zip(parts, values, strict=True), kept, strict=True) if keep)
        n_pool = Counter(parts)
        n_kept = Counter(part for part, keep in zip(parts, kept, strict=True) if keep)
        for part, value in sorted(pool):
            a, b = chosen[part, value], pool[part, value]
            p = _p(a, b, n_kept[part], n_pool[part]) if b >= min_count else None
            share = a / n_kept[part] if n_kept[part] else 0.0
            rows.append(BiasRow(attribute, part, value, b, a, b / n_pool[part], share, p, False))
    n_tests = sum(row.p is not None for row in rows)
    return [dataclasses.replace(row, flagged=_is_shift(row, n_tests, alpha)) for row in rows]


def _is_shift(row: BiasRow, n_tests: int, alpha: float) -> bool:
    if row.p is None or row.p * n_tests >= alpha:
        return False
    return not FOUR_FIFTHS <= row.kept_share / row.pool_share <= 1 / FOUR_FIFTHS


def _p(kept_with: int, pool_with: int, kept: int, pool: int) -> float | None:
    """Fisher's exact test; None where all or none is kept, or all have the value: nothing could differ."""
    if kept in (0, pool) or pool_with == pool:
        return None
    from scipy.stats import fisher_exact

    dropped = pool_with - kept_with
    table = [[kept_with, kept - kept_with], [dropped, pool - kept - dropped]]
    return float(fisher_exact(table).pvalue)


def _check(
    attributes: Mapping[str, Sequence[str]],
    kept: Sequence[bool],
    within: Mapping[str, Sequence[str]],
    alpha: float,
    min_count: int,
) -> None:
    for name, values in [*attributes.items(), *within.items()]:
        if len(values) != len(kept):
            raise UserError(
                f"attribute {name!r}: {len(values)} values for {len(kept)} examples; give one per example of the pool"
            )
    unknown = [name for name in within if name not in attributes]
    if unknown:
        raise UserError(
            f"within names {unknown[0]!r}, which is no attribute{did_you_mean(unknown[0], list(attributes))}"
        )
    if not 0 < alpha < 1 or min_count < 1:
        raise UserError(f"alpha {alpha} and min_count {min_count}: alpha must be between 0 and 1, min_count at least 1")
