"""Answers of a model that somebody serves, scored as if they had been generated here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from tunescope.data import ChatFormat, Example
from tunescope.errors import ModelError
from tunescope.evaluate.answers import Answering, Batch, prompts_of, scored
from tunescope.models.endpoint import Reply

Ask = Callable[[Sequence[Sequence[Mapping[str, str]]]], Iterator[tuple[list[int], Reply]]]
"""Asks chats, and gives the indices of equal ones with their answer, as `ChatEndpoint.replies` does."""


def served_batches(
    ask: Ask,
    chat: ChatFormat,
    examples: Sequence[Example],
    how: Answering,
    *,
    answered_by: str,
    known: Collection[int] = (),
) -> Iterator[Batch]:
    r"""Answers in words as `answer_batches` does, by a server: the same system message, demonstrations and question, as a chat.

    The server puts its own template around the chat and should generate greedily; both are its part, and neither can be seen from here.

    Args:
        ask: sends the chats, for example ``ChatEndpoint(...).replies``.
        chat: chat format of the model here.
        examples: what to answer, with references.
        how: metric, demonstrations and stop strings; without labels.
        answered_by: kept with every answer.
        known: indices of examples whose answers the caller has; they are not asked.

    Yields:
        Answers with the index of their example, as they come; together every index once, those of `known` left out.

    Raises:
        ModelError: the model here has no chat template, so that it is not asked by chat either; or the server gives no answer.
        DataError: a demonstration is among the examples, or a text holds a control token of the model.

    Example:
        >>> from tunescope.testing import byte_tokenizer
        >>> example = Example("1", "sum", "Sum up.", "The pump stopped.", ("pump stopped",))
        >>> def shout(chats): return iter([([0], Reply(chats[0][-1]["content"].upper(), cut_off=False))])
        >>> [[(_, given)]] = served_batches(shout, ChatFormat(byte_tokenizer()), [example], Answering("rouge_l"), answered_by="shout")
        >>> given.text, given.answered_by
        ('SUM UP.\n\nTHE PUMP STOPPED.', 'shout')
    """
    if not chat.templated:
        raise ModelError(
            "the model has no chat template, so the arms here are asked by plain text, and a server asks by chat: leave generation.endpoint out, "
            "or use a model with a chat template"
        )
    prompts_of(chat, examples, how)  # the same texts are refused as here
    open_places = [i for i in range(len(examples)) if i not in known]
    chats = [chat.as_taken(examples[i].messages(how.shown(examples[i]))) for i in open_places]
    for places, reply in ask(chats) if chats else ():
        rows = [open_places[place] for place in places]
        yield [
            (i, scored(examples[i], how, reply.text, hit_limit=reply.cut_off, answered_by=answered_by)) for i in rows
        ]
