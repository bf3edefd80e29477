"""How fast tunescope is, against the tools that one would use instead; see ``docs/benchmarks.md``."""
