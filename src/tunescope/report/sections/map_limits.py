"""What a map can and cannot say."""

from __future__ import annotations

from tunescope.report.source import RunSource
from tunescope.report.tables import Section, absent
from tunescope.report.wording import Words

KEY = "map_limits"


def section(run: RunSource, words: Words) -> Section:
    """Returns both lists; what this kind of map in particular cannot say stands first."""
    found = run.layer_map
    if found is None:
        return absent(KEY, words, "layers.json")
    can = [words(f"map_limits.can_{key}") for key in ("compare", "group", "propose")]
    cannot = [words(f"map_limits.cannot_{key}") for key in ("prove", found.mode, "store", "extend")]
    return Section(KEY, words("map_limits.title"), {"can": can, "cannot": cannot}, facts={"can": can, "cannot": cannot})
