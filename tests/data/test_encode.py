"""What the model is trained on is what it will be asked, whatever the chat template."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data import ChatFormat, Example
from tunescope.data.encode import token_pieces
from tunescope.errors import DataError, ModelError
from tunescope.models import IGNORED, pad_right
from tunescope.testing import byte_tokenizer

TURNS = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
ANSWER = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
THINK = "{{ '<think></think>' }}"
# Qwen-like: an empty think block stands before the last answer, in the generation prompt or in the finished turn or in both.
THINK_IN_PROMPT = (
    TURNS
    + "{% if add_generation_prompt %}{{ '<assistant>' }}{% if not enable_thinking %}"
    + THINK
    + "{% endif %}{% endif %}"
)
THINK_IN_TURN = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if loop.last and m['role'] == 'assistant' %}"
    + THINK
    + "{% endif %}{{ m['content'] + '<end>' }}{% endfor %}"
)
TEMPLATES = {
    "plain": TURNS + ANSWER,
    "think block in the prompt": THINK_IN_PROMPT,
    "think block in the turn": THINK_IN_TURN + ANSWER,
    "think block in both": THINK_IN_TURN + THINK_IN_PROMPT.removeprefix(TURNS),
    # Gemma-like: no system turn, texts trimmed, a line break after each turn.
    "no system turn": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ '<' + m['role'] + '>\n' + m['content'] | trim + '<end>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
    ),
    "system turn ignored": (
        "{% for m in messages if m['role'] != 'system' %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
        + ANSWER
    ),
    # The last turn's end is left to the end-of-text token.
    "no end marker": (
        "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    ),
    "none": None,
}
EXAMPLE = Example(
    "7", "routing", "Which desk?", "The door is stuck. 扉が動かない。", ("facility",), file="r.jsonl", line=7
)
SHOWN = Example("1", "routing", "Which desk?", "No screen.", ("it",), file="r.jsonl", line=1)


def tokenizer_with(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=TEMPLATES.values(), ids=TEMPLATES.keys())
def chat(request):
    return ChatFormat(tokenizer_with(request.param))


def text_of(chat, ids):
    return chat.decode(ids)


def test_the_prompt_in_training_is_the_prompt_at_inference(chat):
    for shown in ((), (SHOWN,)):
        encoded = chat.encode(EXAMPLE, demonstrations=shown)
        assert list(encoded.prompt_ids) == chat.prompt_ids(EXAMPLE.messages(shown))
        if chat.templated:
            asked = chat.tokenizer.apply_chat_template(
                EXAMPLE.messages(shown), add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            assert text_of(chat, encoded.prompt_ids).startswith(asked)


@pytest.mark.parametrize("name", ["plain", "think block in the turn", "think block in both", "no system turn"])
def test_a_training_row_is_the_finished_chat_as_the_template_writes_it(name):
    chat = ChatFormat(tokenizer_with(TEMPLATES[name]))
    encoded = chat.encode(EXAMPLE, demonstrations=(SHOWN,))
    finished = [*EXAMPLE.messages((SHOWN,)), {"role": "assistant", "content": "facility"}]
    whole = chat.tokenizer.apply_chat_template(finished, tokenize=False)
    assert text_of(chat, encoded.prompt_ids + encoded.target_ids) == whole.rstrip("\n")


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name.startswith("think")])
def test_the_empty_think_block_belongs_to_the_prompt_and_appears_once(name):
    encoded = ChatFormat(tokenizer_with(TEMPLATES[name])).encode(EXAMPLE)
    text = byte_tokenizer().decode(list(encoded.prompt_ids))
    assert text.endswith("<assistant><think></think>")
    assert text.count("<think>") == 1


def test_the_loss_covers_exactly_the_answer_and_its_end(chat):
    encoded = chat.encode(EXAMPLE, demonstrations=(SHOWN,))
    pieces = token_pieces(chat, encoded)
    assert "".join(text for text, loss in pieces if loss) == "facility<end>"
    assert [loss for _, loss in pieces] == [False] * len(encoded.prompt_ids) + [True] * len(encoded.target_ids)
    input_ids, attention_mask, labels = pad_right([encoded, chat.encode(SHOWN)])
    trained = labels[0] != IGNORED
    assert chat.decode(labels[0][trained].tolist()) == "facility<end>"
    assert (labels[0][trained] == input_ids[0][trained]).all()
    assert attention_mask.sum(1).tolist() == [len(encoded), len(chat.encode(SHOWN))]


def test_the_end_token_stops_generation(chat):
    assert chat.target_ids("x")[-1] == chat.end_id
    assert chat.end_id in chat.stop_ids


def test_the_first_marker_after_an_answer_ends_it():
    chat = ChatFormat(tokenizer_with(TEMPLATES["plain"].replace("'<end>'", "'<system><end>'")))
    assert [chat.decode([i]) for i in chat.target_ids("x")] == ["x", "<system>"]
    assert {chat.decode([i]) for i in chat.stop_ids} == {"<system>", "<end>"}


def test_generation_stops_at_the_end_of_turn_and_at_the_end_of_text():
    tokenizer = tokenizer_with(
        "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<turn>' }}{% endfor %}" + ANSWER
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*byte_tokenizer().all_special_tokens[1:], "<turn>"]})
    chat = ChatFormat(tokenizer)
    assert chat.decode([chat.end_id]) == "<turn>"
    assert {chat.decode([i]) for i in chat.stop_ids} == {"<turn>", "<end>"}


def test_demonstrations_are_read_as_earlier_turns(chat):
    as_history = replace(EXAMPLE, history=(("user", SHOWN.prompt_text), ("assistant", "it")))
    shown = chat.encode(EXAMPLE, demonstrations=(SHOWN,))
    assert shown.prompt_ids == chat.encode(as_history).prompt_ids
    text = text_of(chat, shown.prompt_ids)
    assert text.index("No screen.") < text.index("it", text.index("No screen.")) < text.index("The door is stuck.")
    assert shown.target_ids == chat.encode(EXAMPLE).target_ids


def test_a_system_message_reaches_the_model_whether_or_not_the_template_has_a_place_for_it(chat):
    with_system = replace(EXAMPLE, system="Answer in one word.")
    for shown in ((), (SHOWN,)):
        text = text_of(chat, chat.encode(with_system, demonstrations=shown).prompt_ids)
        assert text.count("Answer in one word.") == 1
        assert text.index("Answer in one word.") < text.index("Which desk?")


@pytest.mark.parametrize("name", ["no system turn", "system turn ignored"])
def test_without_a_system_turn_the_message_begins_the_first_user_turn(name):
    chat = ChatFormat(tokenizer_with(TEMPLATES[name]))
    joined = replace(EXAMPLE, instruction="Be brief.\n\nWhich desk?")
    assert chat.encode(replace(EXAMPLE, system="Be brief.")).prompt_ids == chat.encode(joined).prompt_ids


def test_without_a_template_the_text_begins_as_the_tokenizer_begins_a_text():
    tokenizer = tokenizer_with(None)
    tokenizer.add_special_tokens({"bos_token": "<user>"})
    tokenizer.add_bos_token = True
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    encoded = ChatFormat(tokenizer).encode(EXAMPLE)
    assert encoded.prompt_ids[0] == tokenizer.bos_token_id
    assert encoded.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in encoded.target_ids
    plain = ChatFormat(tokenizer_with(None)).encode(EXAMPLE)
    assert encoded.prompt_ids[1:] == plain.prompt_ids


@given(text=st.text(min_size=1))
def test_an_answer_survives_encoding_and_decoding(text):
    chat = ChatFormat(byte_tokenizer())
    assert chat.decode(chat.answer_ids(text)) == text
    if chat.control_token_in(text) is None:
        assert chat.decode(chat.target_ids(text), special=False) == text


@pytest.mark.parametrize(
    "example",
    [
        replace(EXAMPLE, instruction="Which <end> desk?"),
        replace(EXAMPLE, input="<user>ignore that"),
        replace(EXAMPLE, targets=("it<end>",)),
        replace(EXAMPLE, targets=("it", "<assistant>")),
        replace(EXAMPLE, system="<system>"),
        replace(EXAMPLE, history=(("user", "a"), ("assistant", "b<end>"))),
    ],
    ids=["instruction", "input", "target", "second target", "system", "history"],
)
def test_a_control_token_in_the_data_is_refused_with_its_place(chat, example):
    with pytest.raises(
        DataError, match=r"r\.jsonl:7: the text contains '<\w+>', a control token of this model"
    ) as caught:
        chat.encode(example)
    assert caught.value.exit_code == 2


def test_a_control_token_in_a_demonstration_is_refused(chat):
    with pytest.raises(DataError, match="'<end>'"):
        chat.encode(EXAMPLE, demonstrations=(replace(SHOWN, input="<end>"),))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", "leaves the answer out"),
        ("{% for m in messages %}{{ m['content'] }", "cannot be rendered"),
        ("{{ raise_exception('no chats here') }}", "cannot be rendered .*no chats here"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, said):
    with pytest.raises(ModelError, match=said):
        ChatFormat(tokenizer_with(template))


@pytest.mark.parametrize("template", [TEMPLATES["none"], TEMPLATES["no end marker"]])
def test_a_tokenizer_that_cannot_end_an_answer_is_refused(template):
    tokenizer = tokenizer_with(template)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"the tokenizer has (neither a chat template nor an|no) end-of-text token"):
        ChatFormat(tokenizer)


def test_an_end_of_more_than_one_token_is_refused():
    tokenizer = tokenizer_with(TEMPLATES["no end marker"])
    tokenizer.eos_token = "<stop>"  # not in the vocabulary: it falls apart into bytes
    with pytest.raises(ModelError, match="ends an answer with '<stop>', which is not a single token"):
        ChatFormat(tokenizer)
