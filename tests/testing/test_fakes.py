"""The public fakes: every family, the same each time, and what tunescope saves it can load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunescope import models
from tunescope.data import ChatFormat, Example
from tunescope.testing import byte_tokenizer, save_tiny, tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@given(text=st.text())
def test_every_text_survives_the_tokenizer_byte_by_byte(tokenizer, text: str) -> None:
    for marker in ("<end>", "<system>", "<user>", "<assistant>"):
        text = text.replace(marker, "")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_control_tokens_are_one_token_each(tokenizer) -> None:
    ids = tokenizer("<user>a<end><assistant>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<end>")


def test_the_chat_template_is_one_that_tunescope_takes(tokenizer) -> None:
    encoded = ChatFormat(tokenizer).encode(Example("1", "t", "Q", "", ("A",), system="S"))
    assert tokenizer.decode(encoded.prompt_ids) == "<system>S<end><user>Q<end><assistant>"
    assert tokenizer.decode(encoded.target_ids) == "A<end>"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_has_the_vocabulary_of_the_tokenizer(family: str, tokenizer) -> None:
    model = tiny_model(family)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.config.pad_token_id == model.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_as_asked_and_frozen(family: str) -> None:
    model = tiny_model(family, n_layers=3, d_model=48, dtype=torch.bfloat16)
    assert len(models.blocks(model)) == 3
    assert model.config.hidden_size == 48
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_model_and_another_seed_another(family: str) -> None:
    torch.manual_seed(99)  # what went before does not matter
    first, again, other = (dict(tiny_model(family, seed=s).named_parameters()) for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_token_depends_on_an_earlier_one_and_not_the_other_way_round(family: str) -> None:
    model = tiny_model(family)
    a, b = torch.arange(40, 60)[None], torch.arange(40, 60)[None]
    b[0, 10] = 99
    with torch.no_grad():
        x, y = model(input_ids=a).logits[0], model(input_ids=b).logits[0]
    torch.testing.assert_close(x[:10], y[:10])
    assert all(not torch.equal(x[i], y[i]) for i in range(10, 20))


def test_gemma_looks_back_no_further_than_its_window() -> None:
    model = tiny_model("gemma3_text", n_layers=1)
    a, b = torch.full((1, 40), 65), torch.full((1, 40), 65)
    b[0, 0] = 99
    with torch.no_grad():
        x, y = model(input_ids=a).logits[0], model(input_ids=b).logits[0]
    assert not torch.equal(x[15], y[15])
    torch.testing.assert_close(x[16:], y[16:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_to_the_same_answers(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "new" / "folder", family=family, seed=3)
    loaded = models.load(str(folder), dtype="float32")
    ids = torch.arange(60, 80)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, tiny_model(family, seed=3)(input_ids=ids).logits)
    assert loaded.info.n_layers == 2
    assert ChatFormat(loaded.tokenizer).end_id == 256


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="family 'gpt2' is not known; allowed: llama, qwen2, qwen3, gemma3_text"):
        tiny_model("gpt2")
