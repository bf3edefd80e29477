"""A small model of every family, and the same model computed by transformers alone as the reference."""

import pytest
from contract import FAMILIES, make_prompts

from tunescope.testing import tiny_model


@pytest.fixture(params=FAMILIES)
def family(request):
    """The name of a family, as ``config.model_type`` has it."""
    return request.param


@pytest.fixture
def model(family):
    """A float32 model of three blocks; the text of the tests is longer than gemma's window of 16."""
    return tiny_model(family, n_layers=3)


@pytest.fixture
def reference(family):
    """The same weights with transformers' own attention."""
    plain = tiny_model(family, n_layers=3)
    plain.set_attn_implementation("eager")
    return plain


@pytest.fixture
def prompts():
    """Rows of different length that begin with the same 24 tokens."""
    return make_prompts(rows=7, shared=24)
