"""Stop strings: where an answer ends, in its text and while it is generated.

An answer ends where a stop string is complete for the first time, and is cut before it; of two that are complete at the same character the
longer one counts. Said of characters and not of tokens, that is the same however the text is cut into tokens and whoever generated it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence

_UNREADABLE = "\ufffd"
_MARGIN = 4  # tokens: a character holds up to four bytes, and some tokenizers take the space of the first one for none


def cut(text: str, stops: Sequence[str]) -> str:
    r"""Returns a text up to its stop string, or whole.

    Args:
        text: an answer, with whatever came behind its end.
        stops: stop strings, none empty.

    Example:
        >>> cut("Pump stopped.\n\nUser: thanks", ["\n\n", "User:"])
        'Pump stopped.'
        >>> cut("a b c", ["b c", " c", "c"])
        'a '
    """
    found = [(text.find(stop), len(stop)) for stop in stops if stop in text]
    if not found:
        return text
    first_end = min(start + length for start, length in found)
    return text[: min(start for start, length in found if start + length == first_end)]


def ends_at(
    decode: Callable[[Sequence[int]], str], stops: Sequence[str], *, hidden: Collection[int] = ()
) -> Callable[[Sequence[int]], bool]:
    r"""Returns a function that says of tokens whether their text holds a stop string, quickly enough to be asked after each.

    Only the end of the text is looked at: a stop string of n bytes, completed by the last token, lies in the last n + 1 tokens that stand
    for at least a byte each. What is found there is looked up in the whole text, so that the answer is exact; and so is a part that begins
    inside a character, which some tokenizers make unreadable as a whole.

    Args:
        decode: token ids to the text that `cut` would get.
        stops: stop strings, none empty; without any the function always returns False.
        hidden: tokens that `decode` leaves out.

    Example:
        >>> from tunescope.testing import byte_tokenizer
        >>> tokenizer = byte_tokenizer()
        >>> over = ends_at(tokenizer.decode, ["。"])
        >>> ids = tokenizer("停止。")["input_ids"]
        >>> [over(ids[:n]) for n in (len(ids) - 1, len(ids))]
        [False, True]
    """
    if not stops:
        return lambda ids: False
    needed = max(len(stop.encode("utf-8", "surrogatepass")) for stop in stops) + 1 + _MARGIN

    def over(ids: Sequence[int]) -> bool:
        last = list(itertools.islice((i for i in reversed(ids) if i not in hidden), needed))
        near = decode(last[::-1])
        if _UNREADABLE not in near and not any(stop in near for stop in stops):
            return False
        whole = decode(ids)
        return any(stop in whole for stop in stops)

    return over
