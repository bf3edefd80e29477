"""Turn examples into token ids with the model's own chat template, the same way for training and for inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunescope.data.example import Example, Message
from tunescope.errors import DataError, ModelError

_PROBE = "tunescope-probe"


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        prompt_ids: everything the model reads before it answers.
        target_ids: the answer with its end-of-turn token; only these have a loss.
        example: where it came from.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    example: Example

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


class ChatFormat:
    """A tokenizer's chat template, taken apart once: what stands before an answer, and what ends it.

    A tokenizer without a template gets plain text: prompt, blank line, answer, end-of-text token.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Raises:
        ModelError: the template cannot be used, or there is no token that ends an answer.

    Example:
        >>> from tunescope.testing import byte_tokenizer
        >>> chat = ChatFormat(byte_tokenizer())
        >>> chat.decode(chat.prompt_ids([{"role": "user", "content": "Hi"}]))
        '<user>Hi<end><assistant>'
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.templated = bool(getattr(tokenizer, "chat_template", None))
        self._system_as_user = False
        self._start: list[int] = []
        if not self.templated:
            if tokenizer.eos_token_id is None:
                raise ModelError(
                    "the tokenizer has neither a chat template nor an end-of-text token, so an answer could not end"
                )
            self._before, self._after = "", tokenizer.eos_token
            # A template writes the begin-of-text token itself; without one it is the tokenizer that puts it there.
            first = tokenizer("x")["input_ids"][:1]
            self._start = first if first == [tokenizer.bos_token_id] else []
        else:
            self._before, self._after = self._probe()
        after_ids = self._ids(self._after)
        if len(after_ids) != 1:
            raise ModelError(
                f"the chat template ends an answer with {self._after!r}, which is not a single token; it cannot be used"
            )
        self.end_id: int = after_ids[0]
        self.stop_ids: tuple[int, ...] = tuple(
            dict.fromkeys(i for i in (self.end_id, tokenizer.eos_token_id) if i is not None)
        )

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Returns the token ids of a chat up to the point where the model answers."""
        return [*self._start, *self._ids(self._render(messages) + self._before)]

    def target_ids(self, target: str) -> list[int]:
        """Returns the token ids of an answer, its end-of-turn token included."""
        return [*self.answer_ids(target), self.end_id]

    def answer_ids(self, target: str) -> list[int]:
        """Returns the token ids of an answer without the end-of-turn token."""
        return self._ids(target)

    @property
    def hidden_ids(self) -> frozenset[int]:
        """The control tokens that ``decode(ids, special=False)`` leaves out."""
        if not hasattr(self, "_hidden"):
            added = self.tokenizer.added_tokens_decoder
            self._hidden = frozenset(i for i, token in added.items() if token.special)
        return self._hidden

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """Returns the text of token ids; with ``special=False`` control tokens are left out."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text

    def encode(self, example: Example, *, demonstrations: Sequence[Example] = ()) -> Encoded:
        """Encodes one example with its first target.

        Raises:
            DataError: a text contains one of the model's control tokens, which would end the turn inside the data.
        """
        messages = example.messages(demonstrations)
        for text in [m["content"] for m in messages] + list(example.targets):
            marker = self.control_token_in(text)
            if marker:
                raise DataError(
                    f"{example.file}:{example.line}: the text contains {marker!r}, a control token of this model; it "
                    "would end the turn inside the data. Remove or rewrite it"
                )
        return Encoded(tuple(self.prompt_ids(messages)), tuple(self.target_ids(example.targets[0])), example)

    def control_token_in(self, text: str) -> str | None:
        """Returns the first control token of the tokenizer that stands in a text, or None."""
        return next((token for token in self._control_tokens() if token in text), None)

    def _control_tokens(self) -> list[str]:
        if not hasattr(self, "_controls"):
            added = self.tokenizer.added_tokens_decoder.values()
            tokens = {str(token) for token in added if token.special} | set(self.tokenizer.all_special_tokens)
            self._controls = sorted(token for token in tokens if token.strip())
        return self._controls

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def as_taken(self, messages: Sequence[Message]) -> list[Message]:
        """Returns a chat as this template takes it: where it knows no system message, that one opens the first user turn."""
        chat = list(messages)
        if self._system_as_user and chat and chat[0]["role"] == "system":
            joined = "\n\n".join(m["content"] for m in chat[:2])
            chat = [{"role": "user", "content": joined}, *chat[2:]]
        return chat

    def _render(self, messages: Sequence[Message], *, prompt: bool = True) -> str:
        if not self.templated:
            return "".join(message["content"] + "\n\n" for message in messages)
        chat = self.as_taken(messages)
        # enable_thinking is Qwen3's switch; templates that do not know it ignore it.
        text: str = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
        )
        return text

    def _probe(self) -> tuple[str, str]:
        """Finds what the template puts between the generation prompt and an answer, and the token after the answer."""
        question = [{"role": "user", "content": "x"}]
        try:
            prompt = self._render(question)
            whole = self._render([*question, {"role": "assistant", "content": _PROBE}], prompt=False)
        except Exception as error:  # jinja2 and the template itself raise their own kinds
            raise ModelError(
                f"the model's chat template cannot be rendered ({str(error).splitlines()[0][:160]})"
            ) from None
        try:
            self._system_as_user = _PROBE not in self._render([{"role": "system", "content": _PROBE}, *question])
        except Exception:  # Gemma 1/2, early Mistral: "System role not supported"
            self._system_as_user = True
        start = whole.find(_PROBE)
        if start < 0:
            raise ModelError("the model's chat template leaves the answer out; it cannot be used for tuning")
        before = whole[len(prompt) : start] if whole.startswith(prompt) else ""
        after = whole[start + len(_PROBE) :]
        ends = [(after.find(token), token) for token in self._control_tokens() if token in after]
        if ends:
            return before, min(ends)[1]
        if self.tokenizer.eos_token is None:
            raise ModelError("the chat template marks no end of an answer and the tokenizer has no end-of-text token")
        return before, self.tokenizer.eos_token


def token_pieces(chat: ChatFormat, encoded: Encoded) -> list[tuple[str, bool]]:
    """Returns (text of the token, has a loss) for every token: the rendered row with its loss mask."""
    parts = ((encoded.prompt_ids, False), (encoded.target_ids, True))
    return [(chat.decode([i]), loss) for ids, loss in parts for i in ids]
