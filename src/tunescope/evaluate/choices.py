"""Questions with choices, put to a model: few-shot as plain text, zero-shot in its chat format, or by the text of each answer.

In the first two a choice stands for its letter, and its probability is the softmax over the letters' logits at the last position. The
third reads no letters: it compares the probabilities of the answers' texts.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunescope.data import ChatFormat, Example
from tunescope.errors import DataError, ModelError
from tunescope.knowledge import Probe, Question, check_demonstrations, check_fit, choice_probabilities, probe
from tunescope.models import bare, common_prefix, continuation_logprobs

LETTERS = string.ascii_uppercase
ANSWER = "Answer:"
# What stands between `Answer:` and the letter, and how much of it the prompt ends with: as published; a token for a space with its letter; or
# a space of its own.
_FORMS = (("", ""), (" ", ""), (" ", " "))
_KEPT_TOKENS = 65_536  # tokens whose keys and values a batch may keep: about 1.5 GB for SmolLM2-135M
_ANY = "What?\nA. x\nB. y\n"


@dataclass(frozen=True)
class LetterFormat:
    """How letters follow ``Answer:`` in the tokens of a model.

    Attributes:
        separator: what stands between ``Answer:`` and the letter.
        lead: the part of it that belongs to the prompt and not to the letter's token.
        letter_ids: token of each letter, from A.
    """

    separator: str
    lead: str
    letter_ids: tuple[int, ...]


def letter_format(tokenizer: Any, n_letters: int) -> LetterFormat:
    """Finds how the prompt has to end for the next token to be a letter, and which tokens the letters are.

    A tokenizer may have one token for ``:A`` or for a space with a letter. The published form ``Answer:A. text`` is taken where each
    letter is a token of its own after it, else ``Answer: A. text``.

    Args:
        tokenizer: a Hugging Face tokenizer.
        n_letters: most choices of any question, 2 to 26.

    Raises:
        DataError: there are more choices than letters.
        ModelError: in neither form is every letter a token of its own.

    Example:
        >>> from tunescope.testing import byte_tokenizer
        >>> found = letter_format(byte_tokenizer(), 3)
        >>> found.separator, byte_tokenizer().decode(found.letter_ids)
        ('', 'ABC')
    """
    if not 1 <= n_letters <= len(LETTERS):
        raise DataError(f"a question has {n_letters} choices; allowed: 2 to {len(LETTERS)}, one letter each")
    for separator, lead in _FORMS:
        before = _ids(tokenizer, _ANY + ANSWER + lead)
        tokens = []
        for letter in LETTERS[:n_letters]:
            whole = _ids(tokenizer, f"{_ANY}{ANSWER}{separator}{letter}. x")
            start = whole[: len(before) + 1]
            if start[:-1] == before and tokenizer.decode(start).endswith(f"{ANSWER}{separator}{letter}"):
                tokens.append(start[-1])
        if len(set(tokens)) == n_letters:
            return LetterFormat(separator, lead, tuple(tokens))
    raise ModelError(
        f"the tokenizer has no token of its own for each of the letters A to {LETTERS[n_letters - 1]} after {ANSWER!r}, with or without a "
        "space; this model cannot be asked by letters"
    )


def show(question: Question, *, context: bool = False, lettered: bool = True) -> str:
    r"""Returns a question with its lettered choices, a line each, or without them.

    Args:
        question: what to show.
        context: put its background before it, with an empty line between.
        lettered: show the choices.

    Example:
        >>> show(Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1))
        'What flies?\nA. a cow\nB. a bee'
    """
    choices = question.choices if lettered else ()
    lines = [question.text, *(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))]
    background = f"{question.context}\n\n" if context and question.context else ""
    return background + "\n".join(lines)


def answer_text(question: Question, choice: int) -> str:
    """Returns a choice as it is written as an answer.

    Example:
        >>> answer_text(Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1), 1)
        'B. a bee'
    """
    return f"{LETTERS[choice]}. {question.choices[choice]}"


@dataclass(frozen=True)
class FewShot:
    """The part of a probe that all questions of a domain share.

    Attributes:
        header: first line.
        demonstrations: shown with their answers.
        separator: between ``Answer:`` and what follows.
        lead: the part of the separator with which the prompt ends.
        lettered: choices are shown with letters; otherwise question and answer alone.
    """

    header: str
    demonstrations: tuple[Question, ...] = ()
    separator: str = ""
    lead: str = ""
    lettered: bool = True

    def blocks(self) -> list[str]:
        """Returns the demonstrations as text, each with the empty line after it."""
        return [f"{self._ask(d)}{self.separator}{self._answer(d)}\n\n" for d in self.demonstrations]

    def prompt(self, question: Question) -> str:
        """Returns the whole prompt of a question, up to where the model answers."""
        return f"{self.header}\n\n{''.join(self.blocks())}{self._ask(question)}{self.lead}"

    def _ask(self, question: Question) -> str:
        return f"{show(question, lettered=self.lettered)}\n{ANSWER}"

    def _answer(self, question: Question) -> str:
        assert question.gold is not None
        return answer_text(question, question.gold) if self.lettered else question.choices[question.gold]


def few_shot(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    shown: FewShot,
    *,
    batch_tokens: int = 2048,
    done: Callable[[int], None] = lambda n: None,
) -> list[Probe]:
    """Asks the questions of one domain after demonstrations, as plain text without a chat template.

    Header and demonstrations are the same for all questions, so the model reads them once.

    Args:
        model: the model, PEFT-wrapped or not.
        tokenizer: its tokenizer.
        questions: of one domain; none may be among the demonstrations.
        shown: header and demonstrations; `separator` and `lead` are replaced by what this tokenizer needs.
        batch_tokens: tokens per forward pass; changes speed and memory, no probability.
        done: called with the number of questions finished.

    Returns:
        One probe per question, in order.

    Raises:
        DataError: a demonstration is asked as well, a question cannot be used, or the prompt is longer than the model reads, with
            how many demonstrations fit.
        ModelError: the letters are no tokens of their own.

    Source:
        Ren et al. (2024), arXiv 2402.18243, section 3.1: header, five demonstrations, softmax over the letters. Ours takes the same form
        for any number of choices and chooses between ``Answer:A`` and ``Answer: A`` by the tokenizer.

    Example:
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> asked = Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1)
        >>> found = few_shot(tiny_model(), byte_tokenizer(), [asked], FewShot("About the zoo."))
        >>> len(found[0].probabilities), round(sum(found[0].probabilities), 6)
        (2, 1.0)
    """
    if not questions:
        return []
    check_demonstrations(shown.demonstrations, questions)
    letters = letter_format(tokenizer, max(len(q.choices) for q in (*questions, *shown.demonstrations)))
    form = FewShot(shown.header, shown.demonstrations, letters.separator, letters.lead)
    check_context(model, tokenizer, questions, form)
    prompts = [plain_ids(tokenizer, form.prompt(question)) for question in questions]
    return _by_letter(model, questions, prompts, letters.letter_ids, batch_tokens, done)


def check_context(model: Any, tokenizer: Any, questions: Sequence[Question], form: FewShot) -> None:
    """Refuses prompts that are longer than the model reads, before anything slow.

    Raises:
        DataError: with the numbers, and how many demonstrations fit.
    """
    most = getattr(bare(model).config, "max_position_embeddings", None)
    if most is None or not questions:
        return
    alone = dataclasses.replace(form, demonstrations=())
    lengths = [len(_ids(tokenizer, alone.prompt(q))) for q in questions]
    answers = 1 if form.lettered else max(len(_ids(tokenizer, text)) for q in questions for text in q.choices) + 1
    blocks = [len(_ids(tokenizer, block)) for block in form.blocks()]
    try:
        check_fit(blocks, max(lengths) + len(_start(tokenizer)) + answers, context_tokens=int(most))
    except DataError as error:
        raise DataError(f"domain {questions[0].domain!r}: {problem}" for problem in error.problems) from None


def zero_shot(
    model: Any,
    chat: ChatFormat,
    questions: Sequence[Question],
    headers: Sequence[str],
    *,
    context: bool = False,
    batch_tokens: int = 2048,
    done: Callable[[int], None] = lambda n: None,
) -> list[Probe]:
    """Asks questions one at a time in the model's chat format, as a user would.

    Args:
        model: the model, PEFT-wrapped or not.
        chat: its chat format.
        questions: what to ask.
        headers: instruction of each question.
        context: show the background of questions that have one.
        batch_tokens: tokens per forward pass.
        done: called with the number of questions finished.

    Returns:
        One probe per question, in order.

    Raises:
        DataError: a text holds a control token of the model, or a prompt is longer than the model reads.
        ModelError: an answer does not begin with its letter as a token of its own.

    Example:
        >>> from tunescope.testing import byte_tokenizer, tiny_model
        >>> asked = Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1)
        >>> found = zero_shot(tiny_model(), ChatFormat(byte_tokenizer()), [asked], ["Choose."])
        >>> found[0].id, len(found[0].probabilities)
        ('1', 2)
    """
    if not questions:
        return []
    tokens = _chat_letters(chat, max(len(q.choices) for q in questions))
    prompts = [
        chat.encode(chat_example(q, h, 0, context=context)).prompt_ids for q, h in zip(questions, headers, strict=True)
    ]
    check_chat_lengths(model, questions, [len(prompt) + 1 for prompt in prompts])
    return _by_letter(model, questions, prompts, tokens, batch_tokens, done)


def check_chat_lengths(model: Any, questions: Sequence[Question], lengths: Sequence[int]) -> None:
    """Refuses questions that are longer in the chat format, their answer included, than the model reads.

    Raises:
        DataError: names the longest one.
    """
    most = getattr(bare(model).config, "max_position_embeddings", None)
    tokens, question = max(zip(lengths, questions, strict=True), key=lambda pair: pair[0], default=(0, None))
    if most is not None and question is not None and tokens > most:
        raise DataError(
            f"question {question.id!r} has {tokens} tokens with its answer in the chat format, the model reads at most {most}; "
            "shorten it or its context"
        )


def chat_example(
    question: Question,
    header: str,
    choice: int,
    *,
    context: bool = False,
    explanation: str = "",
    lettered: bool = True,
) -> Example:
    """Returns a question with one choice as its answer, as it is tuned on and asked in the chat format.

    Args:
        question: what is asked.
        header: the instruction.
        choice: index of the choice that is the answer, right or not.
        context: show the background of the question.
        explanation: written after the answer, on a line of its own.
        lettered: the choices are shown with letters, and the answer has its letter; otherwise the question stands alone, and the answer is
            the text of the choice.

    Example:
        >>> chat_example(Question("1", "zoo", "What flies?", ("a cow", "a bee"), 1), "Choose.", 0).targets
        ('A. a cow',)
    """
    shown = show(question, context=context, lettered=lettered)
    target = answer_text(question, choice) if lettered else question.choices[choice]
    if explanation:
        target = f"{target}\n{explanation}"
    return Example(question.id, question.domain, header, shown, (target,), file=question.source)


def _by_letter(
    model: Any,
    questions: Sequence[Question],
    prompts: Sequence[Sequence[int]],
    letter_ids: Sequence[int],
    batch_tokens: int,
    done: Callable[[int], None],
) -> list[Probe]:
    longest, shared = max(map(len, prompts)), common_prefix(prompts) if len(prompts) > 1 else 0
    # Every row of a batch keeps the keys and values of the demonstrations too, which `batch_tokens` does not count.
    room = _KEPT_TOKENS * (longest - shared) // longest
    logs = continuation_logprobs(
        model,
        prompts,
        [[token] for token in letter_ids],
        batch_tokens=max(1, min(batch_tokens, room)),
        float32_head=True,
        done=done,
    )
    return [
        probe(question, choice_probabilities(row[: len(question.choices)].numpy()))
        for question, row in zip(questions, logs, strict=True)
    ]


def _chat_letters(chat: ChatFormat, n_letters: int) -> tuple[int, ...]:
    """The first token of an answer that begins with each letter."""
    if n_letters > len(LETTERS):
        raise DataError(f"a question has {n_letters} choices; allowed: 2 to {len(LETTERS)}, one letter each")
    answers = [chat.answer_ids(f"{letter}. x") for letter in LETTERS[:n_letters]]
    tokens = [ids[0] for ids in answers]
    if len(set(tokens)) < n_letters or any(
        chat.decode([token]).strip() != letter for token, letter in zip(tokens, LETTERS, strict=False)
    ):
        raise ModelError(
            "an answer such as 'A. text' does not begin with its letter as a token of its own in this tokenizer; this model cannot be asked "
            "by letters"
        )
    return tuple(tokens)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Returns the tokens of plain text, with the begin-of-text token where the tokenizer puts one.

    Example:
        >>> from tunescope.testing import byte_tokenizer
        >>> byte_tokenizer().decode(plain_ids(byte_tokenizer(), "Hi"))
        'Hi'
    """
    return _start(tokenizer) + _ids(tokenizer, text)


def _start(tokenizer: Any) -> list[int]:
    """The begin-of-text token where the tokenizer puts one before plain text."""
    first: list[int] = tokenizer("x")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []
