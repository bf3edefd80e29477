"""Sample data and settings that ship with tunescope: the tickets, policies and incident logs of a fictional pump maker."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def quickstart_config() -> Path:
    """Returns the settings file that `tunescope quickstart` runs."""
    return FOLDER / "en" / "quickstart.yaml"
