"""The report: one self-contained page from a run folder, several runs side by side, and pictures of a layer map as files.

In English or Japanese. A leaf: it reads run folders, and nothing imports it but the command line. It imports no torch.
"""

from tunescope.report.map_figures import write_map_figures
from tunescope.report.side_by_side import compare
from tunescope.report.single import build

__all__ = ["build", "compare", "write_map_figures"]
