"""Questions put to a model: the published form of the prompt, the probabilities of a naive pass, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunescope.data import ChatFormat
from tunescope.errors import DataError, ModelError
from tunescope.evaluate import FewShot, choices, few_shot, letter_format, zero_shot
from tunescope.evaluate.choices import chat_example, plain_ids, show
from tunescope.knowledge import Probe, Question
from tunescope.testing import byte_tokenizer, tiny_model

ASKED = [
    Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1),
    Question("2", "zoo", "What swims far out at sea?", ("a hen", "a cod", "an ox", "an ant"), 1),
    Question("3", "zoo", "What hums?", ("a fly", "a log", "a pan"), 0),
]
SHOWN = (
    Question("d", "zoo", "What barks?", ("a dog", "a fish"), 0),
    Question("e", "zoo", "What purrs?", ("a pig", "a cat"), 1),
)
FORM = FewShot("About the zoo.", SHOWN)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def naive(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token, by one bare pass."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def close(found: Probe, expected: torch.Tensor) -> None:
    assert found.probabilities == pytest.approx(torch.softmax(expected, 0).tolist(), abs=1e-5)


def test_the_prompt_has_the_published_form() -> None:
    assert FewShot("Header.", SHOWN[:1]).prompt(ASKED[0]) == (
        "Header.\n\nWhat barks?\nA. a dog\nB. a fish\nAnswer:A. a dog\n\nWhat flies?\nA. a cow\nB. a bee\nAnswer:"
    )


def test_few_shot_is_the_softmax_over_the_letters_of_a_bare_pass(model: Any) -> None:
    tokenizer = byte_tokenizer()
    for found, question in zip(few_shot(model, tokenizer, ASKED, FORM), ASKED, strict=True):
        logs = naive(model, tokenizer(FORM.prompt(question))["input_ids"])
        letters = [tokenizer("ABCD"[i])["input_ids"][0] for i in range(len(question.choices))]
        close(found, logs[letters])
        assert (found.id, found.gold, found.choices) == (question.id, question.gold, question.choices)


@pytest.mark.parametrize("batch_tokens", [1, 200, 10_000])
def test_no_probability_depends_on_the_batch_or_the_order(model: Any, batch_tokens: int) -> None:
    whole = {p.id: p.probabilities for p in few_shot(model, byte_tokenizer(), ASKED, FORM)}
    other = few_shot(model, byte_tokenizer(), ASKED[::-1], FORM, batch_tokens=batch_tokens)
    for probe in other:
        assert probe.probabilities == pytest.approx(whole[probe.id], abs=1e-6)


def test_a_long_prefix_makes_batches_smaller_and_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [p.probabilities for p in few_shot(model, byte_tokenizer(), ASKED, FORM)]
    sizes: list[int] = []
    longest = max(len(byte_tokenizer()(FORM.prompt(q))["input_ids"]) for q in ASKED)
    monkeypatch.setattr(choices, "_KEPT_TOKENS", longest)  # room for one row
    again = few_shot(model, byte_tokenizer(), ASKED, FORM, done=sizes.append)
    assert sizes == [1, 1, 1]
    for probe, before in zip(again, whole, strict=True):
        assert probe.probabilities == pytest.approx(before, abs=1e-6)


def test_zero_shot_is_the_softmax_over_the_letters_after_the_chat_prompt(model: Any) -> None:
    chat = ChatFormat(byte_tokenizer())
    found = zero_shot(model, chat, ASKED, ["Choose."] * 3)
    for probe, question in zip(found, ASKED, strict=True):
        ids = chat.prompt_ids([{"role": "user", "content": f"Choose.\n\n{show(question)}"}])
        letters = [chat.answer_ids("ABCD"[i])[0] for i in range(len(question.choices))]
        close(probe, naive(model, ids)[letters])


def test_zero_shot_asks_what_tuning_trains(model: Any) -> None:
    chat = ChatFormat(byte_tokenizer())
    row = chat.encode(chat_example(ASKED[0], "Choose.", 1))
    assert chat.decode(row.prompt_ids).endswith("Choose.\n\nWhat flies?\nA. a cow\nB. a bee<end><assistant>")
    assert chat.decode(row.target_ids) == "B. a bee<end>"
    found = zero_shot(model, chat, ASKED[:1], ["Choose."])[0]
    letters = [chat.answer_ids(letter)[0] for letter in "AB"]
    close(found, naive(model, list(row.prompt_ids))[letters])


def test_a_context_stands_before_the_question_only_where_it_is_asked_for() -> None:
    question = Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1, context="Bees fly.")
    assert show(question) == "What flies?\nA. a cow\nB. a bee"
    assert show(question, context=True) == "Bees fly.\n\nWhat flies?\nA. a cow\nB. a bee"
    assert chat_example(question, "H", 0, context=True, explanation="As all know.").targets == (
        "A. a cow\nAs all know.",
    )


def test_an_instruction_without_questions_asks_nothing(model: Any) -> None:
    assert few_shot(model, byte_tokenizer(), [], FORM) == zero_shot(model, ChatFormat(byte_tokenizer()), [], []) == []


def merged(*pairs: tuple[str, str]) -> Any:
    """A byte tokenizer that joins some pairs of characters to one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([*alphabet, *("".join(pair) for pair in pairs)])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=list(pairs)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_the_space_before_a_letter_is_chosen_by_the_tokenizer() -> None:
    assert letter_format(byte_tokenizer(), 4).separator == ""
    joined = letter_format(merged((":", "A")), 26)
    assert (joined.separator, joined.lead) == (" ", " ")
    spaced = merged((":", "A"), ("Ġ", "A"), ("Ġ", "B"))
    found = letter_format(spaced, 2)
    assert ([spaced.decode([i]) for i in found.letter_ids], found.lead) == ([" A", " B"], "")


def test_letters_that_are_no_tokens_of_their_own_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot be asked by letters"):
        letter_format(merged(("A", ".")), 2)
    with pytest.raises(DataError, match="27 choices; allowed: 2 to 26"):
        letter_format(byte_tokenizer(), 27)


def test_the_begin_of_text_token_stands_where_the_tokenizer_puts_it() -> None:
    assert plain_ids(byte_tokenizer(), "AB") == byte_tokenizer()("AB")["input_ids"]

    class Begins:
        bos_token_id = 2

        def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [*([2] if add_special_tokens else []), *map(ord, text)]}

    assert plain_ids(Begins(), "AB") == [2, 65, 66]


def test_a_demonstration_that_is_asked_is_leakage(model: Any) -> None:
    with pytest.raises(DataError, match="leakage"):
        few_shot(model, byte_tokenizer(), [*ASKED, SHOWN[0]], FORM)


def test_demonstrations_that_do_not_fit_are_named_with_how_many_would(model: Any) -> None:
    short = tiny_model()
    short.config.max_position_embeddings = 150
    with pytest.raises(
        DataError, match=r"domain 'zoo': 2 demonstrations \(\d+ tokens\) .* the context holds 150: use at most 1$"
    ):
        few_shot(short, byte_tokenizer(), ASKED, FORM)
    short.config.max_position_embeddings = 40
    with pytest.raises(DataError, match=r"the longest question has .* the context holds 40"):
        few_shot(short, byte_tokenizer(), ASKED, FORM)
    with pytest.raises(DataError, match=r"question '2' has .* the model reads at most 40"):
        zero_shot(short, ChatFormat(byte_tokenizer()), ASKED, ["Choose."] * 3)
