"""The report: one self-contained page from a run folder, in English or Japanese, and several runs side by side.

A leaf: it reads run folders, and nothing imports it but the command line. It imports no torch.
"""

from tunescope.report.side_by_side import compare
from tunescope.report.single import build

__all__ = ["build", "compare"]
