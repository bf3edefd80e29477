"""Personal data in examples: found by pattern, then validated, reported masked.

A pattern alone would report every part number as a phone; so a card needs its check digit and a real prefix, an IBAN
its check digits and the length of its country, a My Number its check digit, and a phone number a numbering plan that
has it. Names and addresses are not looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tunescope.data.example import Example
from tunescope.data.findings import FindingList
from tunescope.data.read import FileRead
from tunescope.runs.records import Finding

Kind = Literal["email", "phone", "card", "iban", "my_number"]

REGIONS = ("JP", "US", "GB", "DE", "FR")
MAX_CHARACTERS = 200_000
_NAMES = {
    "email": "an e-mail address",
    "phone": "a phone number",
    "card": "a payment card number",
    "iban": "a bank account (IBAN)",
    "my_number": "a Japanese My Number",
}
# Same length, so that positions stay: full-width digits and the dashes that stand between digits.
_ASCII = str.maketrans("０１２３４５６７８９＋（）　‐‑‒–—―－ー", "0123456789+() --------")
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@((?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24})(?![\w-])")
# Names set aside for documents and tests (RFC 2606): they are nobody's.
_RESERVED = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)$", re.IGNORECASE)
_CARD = re.compile(
    r"(?<![\w.,/-])(?<!\d )(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{5})(?![\w/-]|[., ]\d)",
    re.ASCII,
)
_CARD_PREFIX = re.compile(r"4|5[1-5]|2[2-7]|3[47]|3(?:0[0-5]|[689])|35|6(?:011|4[4-9]|5)")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
_TWELVE = re.compile(r"(?<![\w.,/+-])(?<!\d )(?:\d{12}|\d{4}([ -])\d{4}\1\d{4})(?![\w/-]|[., ]\d)", re.ASCII)
_WORD = re.compile("[A-Za-z0-9]")
_MY_NUMBER_WORDS = re.compile(r"マイナンバー|個人番号|my ?number|individual number", re.IGNORECASE)
_PHONE = re.compile(r"(?<![\w.,/#+-])(?:\+|\((?=\d{2,5}\)))?\d(?:[ ()./-]{0,3}\d){7,17}(?![\w/-]|[.,]\d)", re.ASCII)
_PHONE_WORDS = re.compile(
    r"(?:\b(?:phone|tel|telephone|mobile|cell|call|fax|whatsapp|telefon|mobil|handy|rufnummer|téléphone|portable)\b"
    r"|電話|携帯|連絡先|ＴＥＬ|ファックス|ファクス|内線)[^\d+]{0,20}$",
    re.IGNORECASE,
)
_OTHER_WORDS = re.compile(
    r"(?:\b(?:part|p/n|pn|s/n|sn|serial|order|invoice|ticket|item|article|art|sku|lot|batch|id|ref|po|no|nr|asset"
    r"|version|model)\b\.?|番号|品番|型番|部品|注文|伝票|図番|製番|ロット|№|#)[^\d+]{0,12}$",
    re.IGNORECASE,
)
_US_PHONE = re.compile(r"\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}([-.])\d{3}\1\d{4}")
_DATE = re.compile(r"(?<![\d./-])(?:\d{4}([./-])\d{1,2}\1\d{1,2}|\d{1,2}([./-])\d{1,2}\2(?:19|20)\d{2})(?![./-]?\d)")
_JP_MOBILE = re.compile(r"0[789]0\d{8}")


@dataclass(frozen=True)
class PersonalMatch:
    """One piece of personal data in a text.

    Attributes:
        kind: email, phone, card, iban or my_number.
        start: position of its first character.
        end: position after its last one.
        masked: its first and last character.
    """

    kind: Kind
    start: int
    end: int
    masked: str


def find_personal(text: str, *, regions: Sequence[str] = REGIONS) -> tuple[PersonalMatch, ...]:
    """Returns the personal data in a text, in the order of the text; looks at the first 200,000 characters.

    Args:
        text: any text.
        regions: countries whose national phone numbers are known, as two-letter codes.

    Example:
        >>> [(m.kind, m.masked) for m in find_personal("Mail jo@firma.de or call +49 30 901820.")]
        [('email', 'j…e'), ('phone', '+…0')]
        >>> find_personal("Part 4711-0815, 12 pcs, due 2024-03-01 08:30")
        ()
    """
    text = text[:MAX_CHARACTERS].translate(_ASCII)
    found: list[PersonalMatch] = []
    searches = (
        ("email", _emails(text)),
        ("iban", _ibans(text)),
        ("card", _cards(text)),
        ("my_number", _my_numbers(text)),
        ("phone", _phones(text, regions)),
    )
    kind: Kind
    for kind, spans in searches:  # type: ignore[assignment]
        for start, end in spans:
            if all(end <= other.start or start >= other.end for other in found):
                found.append(PersonalMatch(kind, start, end, f"{text[start]}…{text[end - 1]}"))
    return tuple(sorted(found, key=lambda match: match.start))


def check_personal(read: FileRead, *, regions: Sequence[str] = REGIONS) -> tuple[Finding, ...]:
    """Reports personal data in a file, masked, one warning per piece; a repeated instruction is reported once.

    Example:
        >>> row = Example("1", "t", "", "Please call 090-1234-5678.", ("it",), file="a.jsonl", line=1)
        >>> [f.message for f in check_personal(FileRead("a.jsonl", "t", "alpaca", (row,), (), "", 1))]
        ['input holds a phone number (0…8); remove or replace it unless its use is agreed']
    """
    found = FindingList(read.path, read.task)
    seen: set[str] = set()
    for example in read.examples:
        for name, text in _texts(example):
            if name in ("instruction", "system"):
                if text in seen:
                    continue
                seen.add(text)
            for match in find_personal(text, regions=regions):
                what = f"{name} holds {_NAMES[match.kind]} ({match.masked})"
                message = f"{what}; remove or replace it unless its use is agreed"
                found.add(f"personal_{match.kind}", "warning", example.line, message)
    return found.findings()


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    yield "instruction", example.instruction
    yield "input", example.input
    for number, target in enumerate(example.targets, 1):
        yield f"answer {number}" if len(example.targets) > 1 else "answer", target
    if example.system:
        yield "system", example.system
    for number, (_, turn) in enumerate(example.history, 1):
        yield f"turn {number}", turn
    for name, value in example.attributes.items():
        yield f"attribute {name}", value


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if not _RESERVED.search(match.group(1)):
                yield match.span()


def _cards(text: str) -> Iterator[tuple[int, int]]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if _CARD_PREFIX.match(digits) and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield match.span()


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        # The pattern may run on into the next words: the longest valid beginning is the number.
        for end in range(match.end(), match.start() + 14, -1):
            if text[end - 1] != " " and not _WORD.match(text, end) and iban.is_valid(text[match.start() : end]):
                yield match.start(), end
                break


def _my_numbers(text: str) -> Iterator[tuple[int, int]]:
    """A valid check digit is always needed; without the words, dates and what follows "part" are left out."""
    from stdnum.jp import in_

    for match in _TWELVE.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if len(set(digits)) == 1 or not in_.is_valid(digits):
            continue
        around = text[max(0, match.start() - 40) : match.end() + 40]
        named = _MY_NUMBER_WORDS.search(around) is not None
        before = text[max(0, match.start() - 40) : match.start()]
        if named or not (_is_timestamp(digits) or _OTHER_WORDS.search(before)):
            yield match.span()


def _is_timestamp(digits: str) -> bool:
    try:
        return 1900 <= datetime.strptime(digits, "%Y%m%d%H%M").year <= 2100
    except ValueError:
        return False


def _phones(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Candidates that look like a phone number, then the numbering plans' word on them."""
    for match in _PHONE.finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        named = _PHONE_WORDS.search(before) is not None
        if not named and (_DATE.search(match.group()) or _OTHER_WORDS.search(before)):
            continue
        if _is_phone(match.group(), regions, named=named):
            yield match.span()


def _is_phone(candidate: str, regions: Sequence[str], *, named: bool) -> bool:
    from phonenumbers import Leniency, PhoneNumberMatcher

    if candidate.startswith("+"):
        return PhoneNumberMatcher(candidate, None, Leniency.VALID).has_next()
    digits = re.sub(r"\D", "", candidate)
    grouped = len(digits) < len(candidate)
    national = digits.startswith("0") and len(digits) >= 9 and (grouped or _JP_MOBILE.fullmatch(digits) is not None)
    if not (named or national or _US_PHONE.fullmatch(candidate)):
        return False
    leniency = Leniency.VALID if named else Leniency.STRICT_GROUPING
    return any(PhoneNumberMatcher(candidate, region, leniency).has_next() for region in regions)
