"""What a layer map says, in sentences: bands, reasons against them, proposals and their price."""

from __future__ import annotations

import re

from tunescope.report.block_ranges import block_ranges
from tunescope.report.layer_map import LayerMap, Proposal
from tunescope.report.wording import NONE, Words
from tunescope.runs.records import Bands

NOT_FOUND = "no transition band found: "
# What `layers.find_bands` says against a band -> key of its sentence here; its evidence in brackets stays in report.json.
REASONS = (
    (r"two breaks explain the profiles no better than (?P<rival>.+?) \(criterion .*\)", "no_better"),
    (r"signals with random phases do as well with p (?P<p>[\d.]+), at most (?P<level>[\d.]+) wanted", "chance"),
    (
        r"a boundary stays within one block in only (?P<share>\d+%) of the resamples, (?P<wanted>\d+%) wanted",
        "unstable",
    ),
    (r"(?P<blocks>\d+) blocks, at least (?P<wanted>\d+) are needed", "few_blocks"),
    (r"(?P<tasks>\d+) tasks with different profiles, at least (?P<wanted>\d+) are needed.*", "few_tasks"),
    (r"the median and the spread are the same in every block", "flat"),
    (r"the tuned model is the base below block\.(?P<start>\d+)", "same_below"),
    (r"the median similarity does not rise in it", "no_rise"),
    (r"the spread over tasks does not shrink in it", "no_shrink"),
    (r"the median goes on changing above it", "restless"),
    (r"g does not rise in it", "gain_flat"),
    (r"g is above 0 below it", "gain_below"),
    (r"g is not above 0 after it", "gain_after"),
)
RIVALS = (
    (r"a constant", "constant"),
    (r"a straight line", "line"),
    (r"a smooth curve of degree \d+", "curve"),
    (r"one break in level", "level"),
    (r"one break in slope", "slope"),
    (r"a bump", "bump"),
    (r"a bump on a straight line", "bump_line"),
)


def reasons(bands: Bands, words: Words) -> list[str]:
    """Returns what speaks against a band, one clause each; a clause this version does not know stays as it was recorded.

    Example:
        >>> why = "no transition band found: g does not rise in it; 5 moons (best candidate block.1 to block.3: p 0.4)"
        >>> reasons(Bands(False, why, ("block.0",)), Words("en"))
        ['the gain does not rise in it', '5 moons']
    """
    text = bands.why.removeprefix(NOT_FOUND)
    text = re.sub(r" \(best candidate .*\)$", "", text, flags=re.DOTALL)
    return [_clause(part, words) for part in text.split("; ") if part.strip()]


def listed_reasons(bands: Bands, words: Words, most: int | None = None) -> str:
    """Returns what speaks against a band as one text; with `most`, only the first ones."""
    return words("format.semicolon").join(reasons(bands, words)[:most]) or NONE


def _clause(text: str, words: Words) -> str:
    for pattern, key in REASONS:
        match = re.fullmatch(pattern, text)
        if match:
            found = match.groupdict()
            if "rival" in found:
                rivals = (name for rival, name in RIVALS if re.fullmatch(rival, found["rival"]))
                found["rival"] = words.get(f"map_rival.{next(rivals, '')}", found["rival"])
            return words(f"map_reason.{key}", **found)
    return text


def headline(found: LayerMap, words: Words) -> str:
    """Returns what the map says in one short sentence."""
    bands = found.bands
    if bands is None:
        return words("map.unasked", count=words.count(len(found.shown)))
    if bands.found and bands.boundaries:
        return words("map.found", blocks=block_ranges(bands.transition) or NONE)
    return words("map.not_found")


def lead(found: LayerMap, words: Words) -> str:
    """Returns the two sentences below the headline: what it rests on, and what is proposed at what price."""
    return words("format.sentences").join([meaning(found, words, most_reasons=2), best_proposal(found, words)])


def meaning(found: LayerMap, words: Words, *, most_reasons: int | None = None) -> str:
    """Returns what the bands say, or what speaks against them, the first reasons first."""
    bands = found.bands
    if bands is None:
        return words("map.unasked_because")
    count = words.count(bands.n_tasks or len(found.shown))
    if not (bands.found and bands.boundaries):
        return words("map.not_found_because", count=count, reasons=listed_reasons(bands, words, most_reasons))
    start, end = bands.boundaries
    key = "map.found_mossa" if found.with_signs else "map.found_other"
    shared = block_ranges(bands.shared) or NONE
    return words(key, count=count, shared=shared, start=words.count(start), end=words.count(end))


def best_proposal(found: LayerMap, words: Words) -> str:
    """Returns the first proposal with its price."""
    if not found.proposals:
        return words("map.no_proposals")
    first = found.proposals[0]
    name, blocks = proposal_name(first, words), block_ranges(first.layers)
    if first.relative_cost is None:
        return words("map.best_unpriced", name=name, blocks=blocks)
    return words("map.best", name=name, blocks=blocks, cost=words.share(first.relative_cost))


def proposal_name(proposal: Proposal, words: Words) -> str:
    """Returns the name of the rule behind a proposal, as a reader sees it."""
    return words.get(f"map_proposal.{proposal.name}", proposal.name.replace("_", " "))


def proposal_why(proposal: Proposal, words: Words) -> str:
    """Returns why these blocks are proposed; for a rule this version does not know, what was recorded."""
    return words.get(f"map_proposal_why.{proposal.name}", proposal.why)
