"""The table of contracts as fixtures."""

import pytest
from tiny_runs import FAMILIES, SELECTIONS


@pytest.fixture(params=FAMILIES)
def family(request):
    """The name of a family, as ``config.model_type`` has it."""
    return request.param


@pytest.fixture(params=SELECTIONS)
def kind(request):
    """A name in the table of what may move."""
    return request.param
