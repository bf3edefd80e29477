"""The layer map of a model that was tuned in its upper third alone: what lies below is read once for it and its base."""

from __future__ import annotations

from benchmarks.rows.layer_map import BESIDE, OURS, PEERS, TARGET, sides

__all__ = ["BESIDE", "OURS", "PEERS", "SIDES", "TARGET", "TITLE"]

TITLE = "layer map, base and a model tuned in the top third of its blocks"
SIDES = sides(1 / 3)
