"""Words and numbers as a reader sees them, in English or Japanese.

The sentences live in ``text/en.yaml`` and ``text/ja.yaml``; this module fills them in. Every number passes through
one of the methods here, so that rounding, units and signs are the same everywhere in a report.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from tunescope.errors import UserError, did_you_mean

LANGUAGES = ("en", "ja")
NONE = "—"
_NEXT_UNIT = 1000 / 1024  # no "1,020 MiB"
NO_DECIMALS = ("JPY", "KRW", "円", "¥", "￥")  # currencies without a minor unit
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, direction and other characters that show nothing
KEPT = {"\n", "\t", "\u200d", "\ufe0f"}  # line breaks, and what joins an emoji


@functools.cache
def load_texts(lang: str) -> Mapping[str, str]:
    """Returns all sentences of a language by dotted key.

    Raises:
        UserError: there is no such language.

    Example:
        >>> load_texts("en")["decision.tune"]
        'Tune'
    """
    if lang not in LANGUAGES:
        hint = did_you_mean(lang, LANGUAGES)
        raise UserError(f"language {lang!r} is not available{hint}; allowed: {', '.join(LANGUAGES)}")
    text = resources.files(__package__).joinpath("text", f"{lang}.yaml").read_text(encoding="utf-8")
    flat: dict[str, str] = {}

    def flatten(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                flatten(f"{name}.", value)
            else:
                flat[name] = str(value)

    flatten("", yaml.safe_load(text))
    return flat


def visible(text: str) -> str:
    r"""Returns the text with characters that would stay unseen written out, so that nothing hides from the reader.

    Example:
        >>> visible("bell\x07 and \u202eturned")
        'bell␇ and [U+202E]turned'
    """
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    if char in KEPT or unicodedata.category(char) not in INVISIBLE:
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"[U+{code:04X}]"


def shorten(text: str, limit: int) -> str:
    """Returns the text cut to `limit` characters, with an ellipsis where something is left out.

    Example:
        >>> shorten("abcdef", 4)
        'abc…'
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Words:
    """Sentences and number formats of one report.

    Args:
        lang: ``en`` or ``ja``.
        currency: shown with every amount.
        confidence: level of all intervals, in (0, 1).

    Raises:
        UserError: there is no such language.

    Example:
        >>> words = Words("en", currency="EUR", confidence=0.95)
        >>> words.points(0.114), words.money(-1234.6), words.duration(75)
        ('+11.4', 'EUR −1,235', '1 min 15 s')
    """

    def __init__(self, lang: str, *, currency: str = "EUR", confidence: float = 0.95) -> None:
        self.lang = lang
        self.currency = currency
        self.confidence = confidence
        self._texts = load_texts(lang)

    def __call__(self, key: str, **values: object) -> str:
        """Returns the sentence `key` with its values filled in; values must be formatted already."""
        level = self.share(self.confidence)
        return self._texts[key].format_map({"level": level, "currency": self.currency, **values})

    def __contains__(self, key: str) -> bool:
        return key in self._texts

    def get(self, key: str, default: str) -> str:
        """Returns the sentence `key`, or `default` where there is none (names from outside)."""
        return self(key) if key in self._texts else default

    def arm(self, arm: object) -> str:
        """Returns an arm's name, in quotation marks."""
        return self("format.quoted", text=str(arm))

    def listing(self, items: Sequence[str]) -> str:
        """Returns ``a, b and c``; ``—`` for nothing."""
        if not items:
            return NONE
        if len(items) == 1:
            return items[0]
        return self("format.and", first=self("format.comma").join(items[:-1]), last=items[-1])

    # numbers

    def number(self, value: object, decimals: int = 0, *, sign: bool = False) -> str:
        """Returns a number with thousands separators and a real minus sign; ``—`` where it is missing or not finite."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return NONE
        text = f"{abs(value):,.{decimals}f}"
        zero = not any(digit in text for digit in "123456789")
        if zero:
            return f"±{text}" if sign else text
        return ("−" if value < 0 else "+" if sign else "") + text

    def score(self, value: object) -> str:
        """Returns a score of [0, 1] on the scale 0 to 100."""
        return self.number(_scaled(value, 100), 1)

    def points(self, value: object) -> str:
        """Returns a difference of scores in points of the scale 0 to 100, signed."""
        return self.number(_scaled(value, 100), 1, sign=True)

    def loss(self, value: object) -> str:
        """Returns a loss in nats per token."""
        return self.number(value, 3)

    def loss_change(self, value: object) -> str:
        """Returns a change of a loss in nats per token, signed."""
        return self.number(value, 3, sign=True)

    def share(self, value: object) -> str:
        """Returns a share of [0, 1] in percent; near the ends with a decimal, except for whole numbers."""
        scaled = _scaled(value, 100)
        if scaled is None:
            return NONE
        whole = abs(scaled - round(scaled)) < 1e-9 if math.isfinite(scaled) else True
        return self.number(scaled, 1 if (scaled < 9.95 or scaled > 99) and not whole else 0) + "%"

    def count(self, value: object) -> str:
        """Returns a whole number."""
        return self.number(value)

    def compact(self, value: object) -> str:
        """Returns a large count in short form (``4.9 M``, ``487万``)."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return NONE
        steps = ((1e8, "億"), (1e4, "万")) if self.lang == "ja" else ((1e9, " B"), (1e6, " M"), (1e3, " k"))
        for size, name in steps:
            if abs(value) >= size:
                scaled = value / size
                return self.number(scaled, 0 if abs(scaled) >= 100 else 1) + name
        return self.number(value)

    def money(self, value: object, *, sign: bool = False, currency: str | None = None) -> str:
        """Returns an amount in the report's currency; small amounts keep two significant digits."""
        unit = currency or self.currency
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return NONE
        return self("format.money", currency=unit, amount=self.amount(value, unit, sign=sign))

    def amount(
        self, value: object, currency: str | None = None, *, sign: bool = False, like: float | None = None
    ) -> str:
        """Returns an amount without its currency.

        Args:
            value: the amount.
            currency: decides whether there are decimals; the report's one by default.
            sign: write a plus.
            like: round as this number would be, so that an interval and its middle agree; `value` itself by default.
        """
        size = abs(like) if like is not None else abs(value) if isinstance(value, int | float) else 0.0
        if not math.isfinite(size):
            return NONE
        decimals = 0 if size >= 10 or size == 0 else 2
        if (currency or self.currency) in NO_DECIMALS and size >= 1:
            decimals = 0
        if 0 < size < 1:
            decimals = max(2, 1 - math.floor(math.log10(size)))
        return self.number(value, min(decimals, 8), sign=sign)

    def money_interval(self, low: object, high: object, *, sign: bool = False, currency: str | None = None) -> str:
        """Returns ``EUR low to high``, both ends rounded alike."""
        ends = [abs(end) for end in (low, high) if isinstance(end, int | float)]
        like = max(ends, default=None)
        amount = self.interval(low, high, lambda end: self.amount(end, currency, sign=sign, like=like))
        return self("format.money", currency=currency or self.currency, amount=amount)

    def money_change(self, value: object, currency: str | None = None) -> str:
        """Returns a difference of amounts, signed."""
        return self.money(value, sign=True, currency=currency)

    def duration(self, seconds: object) -> str:
        """Returns a time: seconds below a minute, then minutes, then hours."""
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
            return NONE
        if seconds < 1:
            return self("format.seconds", value=self.number(seconds, 2))
        if seconds < 59.95:
            return self("format.seconds", value=self.number(seconds, 1 if seconds < 10 else 0))
        whole = round(seconds)
        if whole < 3600:
            return self("format.minutes", minutes=whole // 60, seconds=f"{whole % 60:02d}")
        return self("format.hours", hours=self.count(whole // 3600), minutes=f"{whole % 3600 // 60:02d}")

    def size(self, n_bytes: object) -> str:
        """Returns a number of bytes in KiB, MiB or GiB."""
        if isinstance(n_bytes, bool) or not isinstance(n_bytes, int | float) or not math.isfinite(n_bytes):
            return NONE
        for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
            scaled = n_bytes / 1024**exponent
            if abs(scaled) >= _NEXT_UNIT:
                return f"{self.number(scaled, 0 if abs(scaled) >= 100 else 1)} {unit}"
        return f"{self.number(n_bytes)} B"

    def interval(self, low: object, high: object, number: Callable[[object], str]) -> str:
        """Returns ``low to high``, each written with `number`."""
        return self("format.interval", low=number(low), high=number(high))


def _scaled(value: object, factor: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value * factor
