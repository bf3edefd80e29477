"""Rows packed end to end: nothing is padded, and what several rows begin with stands there once.

A packed row is a sequence of groups, each [prefix][own part of row 1]...[own part of row n]. Every own part attends to itself and to
its group's prefix and to nothing else, and its positions go on where the prefix ends. So each row is computed as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar, cast

import torch

from tunescope.models.sharing import sharing
from tunescope.models.transfer import moved

Made = TypeVar("Made")


class Row(Protocol):
    """What is read of an encoded example."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens before the answer."""

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Tokens of the answer, its end included."""


@dataclass(frozen=True)
class Tokens:
    """A row that is nothing but tokens.

    Attributes:
        prompt_ids: tokens before the answer.
        target_ids: tokens of the answer.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same tokens.

    Attributes:
        prefix_length: tokens of the common beginning; 0 = the rows have nothing in common.
        lengths: tokens of each row behind it, at least 1.
    """

    prefix_length: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Segments that attention computes together: own parts of rows of one group, or its prefix.

    Attributes:
        prefix: first token and one past the last token of what all segments may look back on.
        n_segments: how many there are.
        length: places of each; those behind its last token are filled up.
    """

    prefix: tuple[int, int]
    n_segments: int
    length: int


@dataclass(frozen=True)
class Layout:
    """Where everything stands in one packed row.

    Attributes:
        groups: in the order in which they stand there.

    Example:
        >>> layout = Layout((Group(3, (2, 1)), Group(0, (2,))))
        >>> layout.n_tokens, layout.positions.tolist()
        (8, [0, 1, 2, 3, 4, 3, 0, 1])
    """

    groups: tuple[Group, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of the packed row."""
        return sum(group.prefix_length + sum(group.lengths) for group in self.groups)

    @cached_property
    def positions(self) -> torch.Tensor:
        """(n_tokens,) position of each token in its own row, int64."""
        pieces = []
        for group in self.groups:
            pieces.append(torch.arange(group.prefix_length))
            pieces += [torch.arange(group.prefix_length, group.prefix_length + length) for length in group.lengths]
        return torch.cat(pieces) if pieces else torch.arange(0)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What attention computes together: segments of one group and of similar length.

        A segment is filled up to the next multiple of 16 (of 4 below 16), whatever stands beside it, so that its numbers do not depend
        on its neighbours. The places filled up lie behind its last token, where no real token looks.
        """
        return self._gathering[0]

    @property
    def gather(self) -> torch.Tensor:
        """(places of all parts,) the token that stands at each place; where it is filled up, `n_tokens`."""
        return self._gathering[1]

    @cached_property
    def scatter(self) -> torch.Tensor:
        """(n_tokens,) the place of each token."""
        found = torch.empty(self.n_tokens + 1, dtype=torch.long)
        found[self.gather] = torch.arange(len(self.gather))
        return found[:-1]

    def indices(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns, on a device and made once for all blocks: a real token for every place, which places are filled up, and `scatter`."""

        def make() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            filled = self.gather == self.n_tokens
            # The last token of its own segment: numbers that are not finite stay in the rows that they come from.
            real = torch.where(filled, 0, torch.arange(len(filled))).cummax(0).values
            index, is_filled, scatter = moved([self.gather[real], filled.long(), self.scatter], device)
            return index, is_filled.bool(), scatter

        return self.once(("indices", device), make)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Returns what is made for the first block that asks and serves all blocks of the pass."""
        if key not in self._made:
            self._made[key] = make()
        return cast("Made", self._made[key])

    @cached_property
    def _made(self) -> dict[Hashable, object]:
        return {}

    @cached_property
    def is_identity(self) -> bool:
        """True if every place holds the token of the same number: nothing is filled up, and nothing stands elsewhere."""
        return torch.equal(self.gather, torch.arange(self.n_tokens))

    @cached_property
    def _gathering(self) -> tuple[tuple[Part, ...], torch.Tensor]:
        found: dict[tuple[tuple[int, int], int], list[tuple[int, int]]] = {}
        start = 0
        for group in self.groups:
            prefix = (start, start + group.prefix_length)
            if group.prefix_length:
                found.setdefault(((start, start), _filled(group.prefix_length)), []).append(prefix)
            start += group.prefix_length
            for length in group.lengths:
                seen = prefix if group.prefix_length else (0, 0)
                found.setdefault((seen, _filled(length)), []).append((start, start + length))
                start += length
        parts = tuple(Part(prefix, len(segments), width) for (prefix, width), segments in found.items())
        pieces = [_places(segments, width, start) for (_, width), segments in found.items()]
        return parts, torch.cat(pieces) if pieces else torch.arange(0)


@dataclass(frozen=True)
class Packed:
    """Rows laid out for one pass.

    Attributes:
        layout: where everything stands.
        input_ids: (n_tokens,) int64.
        places: (sum of the rows' lengths,) for each token of each row, one row after the other, where it stands in the packed row.
        predictors: (n_targets,) where the state stands that predicts each target.
        targets: (n_targets,) tokens with a loss, row by row.
        owners: (n_targets,) number of the row.
    """

    layout: Layout
    input_ids: torch.Tensor
    places: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor

    @cached_property
    def sources(self) -> torch.Tensor:
        """(n_tokens,) the inverse of `places`: for each packed token one place in the rows, one row after the other, that holds it."""
        found = torch.empty(self.layout.n_tokens, dtype=torch.long)
        found[self.places] = torch.arange(len(self.places))
        return found

    def on(self, device: torch.device) -> OnDevice:
        """Returns what a pass needs on its device; all of it comes in one copy, once."""
        if device not in self._on:
            wanted = (
                self.input_ids,
                self.layout.positions,
                self.places,
                self.sources,
                self.predictors,
                self.predictors.unique(),
                self.targets,
            )
            self._on[device] = OnDevice(*moved(wanted, device))
        return self._on[device]

    @cached_property
    def _on(self) -> dict[torch.device, OnDevice]:
        return {}


@dataclass(frozen=True)
class OnDevice:
    """What a pass over a packed row needs on its device; all int64.

    Attributes:
        input_ids: as in `Packed`.
        positions: as in `Layout`.
        places: as in `Packed`.
        sources: as in `Packed`.
        predictors: as in `Packed`.
        needed: `predictors` in ascending order, each once.
        targets: as in `Packed`.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    sources: torch.Tensor
    predictors: torch.Tensor
    needed: torch.Tensor
    targets: torch.Tensor


def pack(rows: Sequence[Row], *, share: bool = True) -> Packed:
    """Lays rows out for one pass.

    Args:
        rows: encoded examples, none empty.
        share: False = no row shares its beginning with another.

    Returns:
        The packed row; targets are in the order of `rows`.

    Example:
        >>> from types import SimpleNamespace
        >>> rows = [SimpleNamespace(prompt_ids=(7,) * 20 + (i,), target_ids=(8, 9)) for i in range(3)]
        >>> pack(rows).layout.groups, pack(rows, share=False).layout.n_tokens
        ((Group(prefix_length=20, lengths=(3, 3, 3)),), 69)
    """
    ids = [tuple(row.prompt_ids) + tuple(row.target_ids) for row in rows]
    clusters = sharing(ids) if share else [(0, list(range(len(rows))))]
    groups: list[Group] = []
    packed: list[int] = []
    places = [torch.empty(0)] * len(rows)
    at = 0
    for prefix, members in clusters:
        ordered = sorted(members, key=lambda i: (-len(ids[i]), i))
        groups.append(Group(prefix, tuple(len(ids[i]) - prefix for i in ordered)))
        packed += ids[ordered[0]][:prefix] if ordered else ()
        shared = torch.arange(at, at + prefix)
        at += prefix
        for i in ordered:
            own = len(ids[i]) - prefix
            packed += ids[i][prefix:]
            places[i] = torch.cat([shared, torch.arange(at, at + own)])
            at += own
    predictors: list[torch.Tensor] = []
    targets: list[int] = []
    owners: list[int] = []
    for i, row in enumerate(rows):
        first = max(1, len(row.prompt_ids))  # nothing predicts a first token
        predictors.append(places[i][first - 1 : len(ids[i]) - 1])
        targets += ids[i][first:]
        owners += [i] * (len(ids[i]) - first)
    return Packed(
        layout=Layout(tuple(groups)),
        input_ids=torch.tensor(packed, dtype=torch.long),
        places=torch.cat(places).long() if places else torch.arange(0),
        predictors=torch.cat(predictors).long() if predictors else torch.arange(0),
        targets=torch.tensor(targets, dtype=torch.long),
        owners=torch.tensor(owners, dtype=torch.long),
    )


def passes(rows: Sequence[Row], batch_tokens: int, *, share: bool = True) -> list[list[int]]:
    """Cuts rows into passes of at most `batch_tokens` computed tokens; a longer row gets a pass of its own.

    Rows that share their beginning stay together where they fit, and a beginning that is computed once counts once. Among them the
    longest come first: attention computes rows of similar length together.

    Args:
        rows: encoded examples.
        batch_tokens: tokens per pass.
        share: as for `pack`.

    Returns:
        Numbers of the rows of each pass; every number once.

    Example:
        >>> from types import SimpleNamespace
        >>> rows = [SimpleNamespace(prompt_ids=(7,) * 20 + (i,), target_ids=(8, 9)) for i in range(6)]
        >>> passes(rows, 30), passes(rows, 50, share=False)
        ([[0, 1, 2], [3, 4, 5]], [[0, 1], [2, 3], [4, 5]])
    """
    ids = [tuple(row.prompt_ids) + tuple(row.target_ids) for row in rows]
    clusters = sharing(ids) if share else [(0, list(range(len(rows))))]
    cut: list[list[int]] = []
    tokens = 0
    for prefix, members in clusters:
        inside = False  # whether the running pass already holds this prefix
        for i in sorted(members, key=lambda i: (-len(ids[i]), i)):
            more = len(ids[i]) - (prefix if inside else 0)
            if not cut or tokens + more > batch_tokens:
                cut.append([])
                tokens, more = 0, len(ids[i])
            cut[-1].append(i)
            tokens += more
            inside = True
    return cut


def _filled(length: int) -> int:
    """The width at which a segment is computed."""
    step = 4 if length < 16 else 16
    return -(-length // step) * step


def _places(segments: Sequence[tuple[int, int]], width: int, n_tokens: int) -> torch.Tensor:
    index = torch.full((len(segments), width), n_tokens)
    for i, (first, stop) in enumerate(segments):
        index[i, : stop - first] = torch.arange(first, stop)
    return index.flatten()
