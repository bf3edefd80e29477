"""Which weights may move: from scores, at random with the same budget, or by name."""

from tunescope.select.choose import budget_layers, choose_random, choose_top, match_layers

__all__ = ["budget_layers", "choose_random", "choose_top", "match_layers"]
