"""How much an instruction says that others do not: InsInfo."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tunescope.errors import UserError


def instruction_information(tags: Sequence[Sequence[str]]) -> list[float]:
    """Returns the InsInfo of every instruction: over its distinct tags the sum of ln(N / f_t).

    N is the number of instructions given, f_t how many of them carry tag t. So give those of all tasks so far, the current one
    included, and compute it anew at every stage. Many tags, and rare ones, mean much information; a tag that all carry says nothing.

    Args:
        tags: one list of tags per instruction; a tag that occurs twice in a list counts once.

    Returns:
        One number per instruction, in nats, at least 0; 0 for an instruction without tags.

    Raises:
        UserError: the tags of an instruction are one text instead of a list.

    Source:
        Wang et al., InsCL, NAACL 2024 (arXiv 2403.11435), InsInfo; natural logarithm as in the released code.

    Example:
        >>> [round(x, 3) for x in instruction_information([["translate", "law"], ["translate"], ["translate"], []])]
        [1.674, 0.288, 0.288, 0.0]
    """
    for row, given in enumerate(tags):
        if isinstance(given, str):
            raise UserError(
                f"tags of instruction {row} are the text {given[:50]!r}; give a list of tags, it may hold one or none"
            )
    distinct = [dict.fromkeys(given) for given in tags]
    carried = Counter(tag for given in distinct for tag in given)
    gain = {tag: math.log(len(distinct) / count) for tag, count in carried.items()}
    return [math.fsum(gain[tag] for tag in given) for given in distinct]
