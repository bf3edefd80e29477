"""Stop strings: exact in characters, however the text is cut into tokens, however rows are batched; a stopped row costs no more steps."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunescope.data import ChatFormat, Example
from tunescope.evaluate import Answering, answer, cut, ends_at
from tunescope.models import greedy
from tunescope.testing import byte_tokenizer, tiny_model

PIECES = ("a", "ab", "\n", "\n\n", "。", "画面", "😀", "é", "End", ":")


def merging_tokenizer() -> Any:
    """One whose tokens hold several characters, and parts of one: what lies before and behind a stop string is in the same token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("Ċ", "Ċ"), ("ĊĊ", "a"), ("ãĢ", "Ĥ"), ("ã", "Ģ"), ("E", "n"), ("En", "d"), ("ab", "End")]
    merges.sort(key=lambda pair: pair[0] == "ãĢ")  # a merge may use only what stands before it
    vocab = {symbol: i for i, symbol in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", additional_special_tokens=["<note>"])


def metaspace_tokenizer() -> Any:
    """As of Llama 2 and Gemma: a space is part of the word behind it, bytes stand for rare characters, the first space is none."""
    words = ["▁a", "ab", "▁", "a", "b", "End", ":", "<0x0A>", "é", "画", "面"]
    rare = [f"<0x{byte:02X}>" for byte in sorted({*"。😀".encode(), 0x0A})]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*words, *rare, "E", "n", "d"]))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", additional_special_tokens=["<note>"])


TOKENIZERS = {"bytes": byte_tokenizer(), "merging": merging_tokenizer(), "metaspace": metaspace_tokenizer()}


def naive_cut(text: str, stops: tuple[str, ...]) -> str:
    """Character by character, as it would be typed."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - len(max(done, key=len))]
    return text


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.sets(st.sampled_from(PIECES), max_size=4))
def test_an_answer_is_cut_where_a_stop_string_is_first_complete(text: str, stops: set[str]) -> None:
    assert cut(text, sorted(stops)) == naive_cut(text, tuple(stops))


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.data())
def test_the_end_is_found_at_the_token_that_completes_it(kind: str, data: st.DataObject) -> None:
    """Against decoding everything after every token: any tokens, half characters and control tokens among them."""
    tokenizer = TOKENIZERS[kind]
    chat_ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    typed = tokenizer("".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=8))), add_special_tokens=False)
    ids = [*chat_ids, *typed["input_ids"]]
    stops = data.draw(st.lists(st.sampled_from((*PIECES, "ab\n\n", "\n\nab", "画面。")), max_size=3))
    hidden = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    def decode(some: Any) -> str:
        return tokenizer.decode(list(some), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    over = ends_at(decode, stops, hidden=hidden)
    found = next((n for n in range(len(ids) + 1) if over(ids[:n])), None)
    assert found == next((n for n in range(len(ids) + 1) if any(s in decode(ids[:n]) for s in stops)), None)


def test_a_stop_string_behind_many_control_tokens_is_still_found() -> None:
    tokenizer = byte_tokenizer()
    end, a, b = tokenizer("<user>ab")["input_ids"]
    chat = ChatFormat(tokenizer)
    over = ends_at(lambda ids: chat.decode(ids, special=False), ["ab"], hidden=chat.hidden_ids)
    assert over([a, *[end] * 50, b])
    assert not over([a, *[end] * 50])


# In generation

EXAMPLES = tuple(
    Example(str(i), "log", "Sum up.", f"{'pump ' * i}stopped {i}", ("pump",), file="log.jsonl", line=i)
    for i in range(1, 12)
)
FREE = Answering("rouge_l", max_new_tokens=24)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(byte_tokenizer())


def texts(model: Any, chat: ChatFormat, how: Answering) -> list[str]:
    return [given.text for given in answer(model, chat, EXAMPLES, how)]


def stops_in(raw: list[str]) -> tuple[str, str]:
    """Two texts of two characters that the model writes: some answers hold one, some hold none, some do early and some late."""
    pairs = {text[i : i + 2] for text in raw for i in range(1, len(text) - 1)} - {""}
    usable = [
        p for p in sorted(pairs) if "\ufffd" not in p and p.strip() == p and 0 < sum(p in t for t in raw) < len(raw)
    ]
    assert len(usable) > 1
    return usable[0], usable[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stopped_answer_is_the_unstopped_one_cut_whatever_the_batch(chat: ChatFormat, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype, d_model=96)
    whole = texts(model, chat, FREE)
    stops = stops_in(whole)
    wanted = [cut(text, stops).strip() for text in whole]
    assert 0 < sum(a != b for a, b in zip(whole, wanted, strict=True)) < len(whole)
    stopping = dataclasses.replace(FREE, stop=stops)
    for batch_tokens in (1, 120, 700, 100_000):
        assert texts(model, chat, dataclasses.replace(stopping, batch_tokens=batch_tokens)) == wanted


def test_a_stopped_row_is_not_continued_and_did_not_hit_the_limit(chat: ChatFormat) -> None:
    model = tiny_model(d_model=96)
    prompts = [chat.encode(e).prompt_ids for e in EXAMPLES]
    free = dict(itertools.chain.from_iterable(greedy(model, prompts, stop_ids=chat.stop_ids, max_new_tokens=24)))
    lengths = {i: 3 + i % 5 for i in free}
    found = dict(
        itertools.chain.from_iterable(
            greedy(
                model,
                prompts,
                stop_ids=chat.stop_ids,
                max_new_tokens=24,
                ended=lambda index, ids: len(ids) == lengths[index],
            )
        )
    )
    for index, row in found.items():
        assert row.ids == free[index].ids[: lengths[index]]
        assert not row.hit_limit


def test_a_stop_string_completed_by_the_last_allowed_token_is_no_cut_off_answer(chat: ChatFormat) -> None:
    model = tiny_model(d_model=96)
    [given] = answer(model, chat, EXAMPLES[:1], FREE)
    stop = given.text[:2]
    ids = chat.answer_ids(given.text[: len(stop)])
    prompts = [chat.encode(EXAMPLES[0]).prompt_ids]
    over = ends_at(lambda some: chat.decode(some, special=False), [stop])
    [[(_, row)]] = greedy(
        model, prompts, stop_ids=chat.stop_ids, max_new_tokens=len(ids), ended=lambda _, some: over(some)
    )
    assert not row.hit_limit and chat.decode(row.ids) == stop


def test_what_is_known_is_left_out_and_the_rest_keeps_its_bits(chat: ChatFormat) -> None:
    from tunescope.evaluate import answer_batches

    model = tiny_model(d_model=96)
    for how in (
        dataclasses.replace(FREE, batch_tokens=300),
        Answering("accuracy", ("pump", "belt", "pumps"), batch_tokens=300),
    ):
        batches = list(answer_batches(model, chat, EXAMPLES, how))
        assert len(batches) > 2
        whole = dict(itertools.chain.from_iterable(batches))
        for n in range(len(batches) + 1):
            known = {i for batch in batches[:n] for i, _ in batch}
            rest = list(answer_batches(model, chat, EXAMPLES, how, known=known))
            assert rest == batches[n:]
        some = {batches[0][0][0], batches[1][0][0]}  # of a batch that was not known as a whole
        rest = dict(itertools.chain.from_iterable(answer_batches(model, chat, EXAMPLES, how, known=some)))
        assert rest == {i: given for i, given in whole.items() if i not in some}
