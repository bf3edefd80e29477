"""Which questions a model knows, which it gets wrong for sure, and which it is unsure about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tunescope.errors import DataError, UserError
from tunescope.knowledge.questions import Probe, by_key, check_probes, shuffled
from tunescope.runs.records import Record


@dataclass(frozen=True)
class Grouping(Record):
    """Ids of the questions of each group, in the order of the probes.

    Attributes:
        threshold: a top probability has to be above it.
        harmonious: sure and right: tuning on the right answer asks for nothing new.
        incompatible: sure and wrong: the right answer contradicts what the model holds.
        unsure: top probability not above the threshold, or shared by several choices.
    """

    threshold: float
    harmonious: tuple[str, ...]
    incompatible: tuple[str, ...]
    unsure: tuple[str, ...]


@dataclass(frozen=True)
class EqualGroups(Record):
    """Equally many harmonious and incompatible questions, domain by domain.

    Attributes:
        harmonious: ids.
        incompatible: ids; the self-aligning and contextualised sets use the same ones.
        per_domain: domain -> questions in each of the two groups; domains that give none are left out.
    """

    harmonious: tuple[str, ...]
    incompatible: tuple[str, ...]
    per_domain: Mapping[str, int]

    @property
    def size(self) -> int:
        """Questions in each group."""
        return len(self.harmonious)


def group(probes: Sequence[Probe], *, threshold: float) -> Grouping:
    """Puts every question into one of three groups by what the model thinks of it.

    Args:
        probes: of one model (the base, with demonstrations).
        threshold: the top probability has to be above it, in [0, 1). Below 1/2, several choices can be top; then the question is unsure.

    Returns:
        The groups; every id is in exactly one.

    Raises:
        DataError: if the probes cannot be used (see `check_probes`).
        UserError: if the threshold is out of range.

    Source:
        Ren et al. 2024 (arXiv 2402.18243): top probability above 0.5. The paper drops the others; here they are named.

    Example:
        >>> chances = {"1": (0.9, 0.1), "2": (0.3, 0.7), "3": (0.5, 0.5)}
        >>> found = group([Probe(i, "it", ("a", "b"), 0, p) for i, p in chances.items()], threshold=0.5)
        >>> found.harmonious, found.incompatible, found.unsure
        (('1',), ('2',), ('3',))
    """
    check_probes(probes)
    if not 0 <= threshold < 1:
        raise UserError(
            f"threshold is {threshold}: it is a probability that the top choice has to be above, use 0 to below 1"
        )
    found: dict[str, list[str]] = {"harmonious": [], "incompatible": [], "unsure": []}
    for each in probes:
        found[_group_of(each, threshold)].append(each.id)
    return Grouping(threshold, *(tuple(found[name]) for name in ("harmonious", "incompatible", "unsure")))


def equal_groups(
    probes: Sequence[Probe],
    *,
    threshold: float,
    size: int | None = None,
    only: Collection[str] | None = None,
    seed: int,
) -> EqualGroups:
    """Draws equally many harmonious and incompatible questions, as many of each from every domain.

    So the groups differ in what the model knew, and not in what they are about. The order of the probes does not matter, and with the
    same seed a larger size contains the smaller one's questions of every domain.

    Args:
        probes: of the base.
        threshold: as in `group`.
        size: questions in each group, at least 1; None: as many as there are. Spread over the domains in proportion to what each can
            give, the remainder to the largest fractions.
        only: ids that may become incompatible (those with a context, say); None: all.
        seed: of the draw.

    Returns:
        The groups.

    Raises:
        DataError: if the probes cannot be used, or no domain (or fewer than `size` questions) has both kinds.
        UserError: if the threshold or the size is out of range.

    Example:
        >>> probes = [Probe(str(i), "it", ("a", "b"), 0, (0.9, 0.1) if i < 3 else (0.2, 0.8)) for i in range(8)]
        >>> equal_groups(probes, threshold=0.5, seed=0).per_domain
        {'it': 3}
    """
    if size is not None and size < 1:
        raise UserError(f"size is {size}: ask for at least 1 question in each group, or None for all")
    found = group(probes, threshold=threshold)
    harmonious, incompatible = set(found.harmonious), set(found.incompatible)
    if only is not None:
        incompatible &= set(only)
    known = by_key((each for each in probes if each.id in harmonious), lambda each: each.domain)
    wrong = by_key((each for each in probes if each.id in incompatible), lambda each: each.domain)
    room = {domain: min(len(known[domain]), len(wrong[domain])) for domain in known if domain in wrong}
    total = sum(room.values())
    if not total or (size or 0) > total:
        counts = Counter({"harmonious": len(harmonious), "incompatible": len(incompatible)})
        raise DataError(
            f"asked for {size or 'any'} questions in each group, there are {total} in domains with both kinds "
            f"({counts['harmonious']} harmonious, {counts['incompatible']} incompatible in all): ask for fewer, lower the threshold "
            "or add questions"
        )
    share = _in_proportion(room, total if size is None else size)
    return EqualGroups(
        tuple(each.id for domain, n in share.items() for each in shuffled(known[domain], seed, "harmonious")[:n]),
        tuple(each.id for domain, n in share.items() for each in shuffled(wrong[domain], seed, "incompatible")[:n]),
        {domain: n for domain, n in share.items() if n},
    )


def _group_of(each: Probe, threshold: float) -> str:
    if each.answer is None or each.confidence <= threshold:
        return "unsure"
    return "harmonious" if each.correct else "incompatible"


def _in_proportion(room: Mapping[str, int], size: int) -> dict[str, int]:
    """Returns shares of `size` in proportion to the room of each, in whole numbers; size is at most all the room."""
    total = sum(room.values())
    shares = {name: size * n // total for name, n in room.items()}
    by_fraction = sorted(room, key=lambda name: (-(size * room[name] % total), name))
    for name in by_fraction[: size - sum(shares.values())]:
        shares[name] += 1
    return shares
