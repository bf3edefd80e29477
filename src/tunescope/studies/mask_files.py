"""The masks of a run: ``masks/<arm>.safetensors`` says which entries an arm of method ``sparse`` moves."""

from __future__ import annotations

from pathlib import Path

from tunescope.errors import IntegrityError
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Selection
from tunescope.select import Mask


def mask_path(run: RunFolder, arm: str) -> Path:
    """Returns where the mask of an arm is."""
    return run.path / "masks" / f"{arm}.safetensors"


def mask_of(run: RunFolder, arm: str, selection: Selection) -> Mask | None:
    """Returns the mask that `engine.prepare` needs with a selection; None for the methods that take none.

    Args:
        run: the run folder.
        arm: name of the arm.
        selection: what it moves.

    Raises:
        IntegrityError: the file is missing, damaged, or holds another mask than the selection was made with.
    """
    if selection.method != "sparse":
        return None
    path = mask_path(run, arm)
    mask = Mask.load(path)
    if mask.sha256 != selection.mask_sha256:
        raise IntegrityError(
            f"{path}: is another mask ({mask.sha256[:12]}) than the one of the plan ({selection.mask_sha256[:12] or 'none'}); put it back, or "
            "start again in another output_dir"
        )
    return mask
