"""The text of a data file, line by line: encoding, byte order mark and length, with bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunescope.data.findings import FindingList

MAX_LINE_BYTES = 8 * 2**20
_KANA = re.compile("[\u3040-\u30ff]")
_NOT_ASCII = re.compile("[^\x00-\x7f]")


class UnusableError(Exception):
    """The whole file cannot be read; caught in `read_file`."""

    def __init__(self, code: str, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.line = code, message, line


def lines(path: Path, found: FindingList) -> Iterator[tuple[int, str | None]]:
    """Yields (line number, text without its end); the text is None for a line that is too long or not UTF-8."""
    with path.open("rb") as stream:
        _refuse_utf16(stream.read(4096))
        stream.seek(0)
        number = bad_encoding = 0
        while True:
            start = stream.tell()
            raw = stream.readline(MAX_LINE_BYTES + 1)
            if not raw:
                break
            number += 1
            if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                length = len(raw) + _skip_line(stream)
                message = f"the line has {length:,} bytes; allowed: {MAX_LINE_BYTES:,}; shorten or remove the row"
                found.add("line_too_long", "error", number, message)
                yield number, None
                continue
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                found.add("bom", "info", 1, "the file begins with a byte order mark; it is left out")
                raw, start = raw[3:], start + 3
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                bad_encoding += 1
                if bad_encoding == 1:
                    found.add("encoding_wrong", "error", number, _encoding_message(path, start, start + error.start))
                yield number, None
                continue
            yield number, text.removesuffix("\n").removesuffix("\r")
    if bad_encoding > 1:
        found.add("encoding_wrong", "error", None, f"{bad_encoding} lines in all are not UTF-8")


def whole_text(path: Path, found: FindingList) -> str:
    """Returns the text of a file that has to be read as a whole; raises `UnusableError` if it is not UTF-8."""
    raw = path.read_bytes()
    _refuse_utf16(raw[:4096])
    mark = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    if mark:
        found.add("bom", "info", 1, "the file begins with a byte order mark; it is left out")
    try:
        return raw[mark:].decode()
    except UnicodeDecodeError as error:
        offset = mark + error.start
        message = _encoding_message(path, max(0, offset - 4096), offset)
        raise UnusableError("encoding_wrong", message, raw.count(b"\n", 0, offset) + 1) from None


def _skip_line(stream: Any) -> int:
    skipped = 0
    while chunk := stream.readline(2**20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def _refuse_utf16(head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(head) > 1 and head.count(0) * 4 > len(head)):
        message = "looks like UTF-16 or UTF-32 (or is a binary file); allowed: UTF-8; save it as UTF-8"
        raise UnusableError("encoding_wrong", message)


def _encoding_message(path: Path, line_start: int, offset: int) -> str:
    """Names the byte and the likely encoding, judged from the text around it."""
    with path.open("rb") as stream:
        stream.seek(line_start)
        sample = stream.read(32_768)
        stream.seek(offset)
        byte = stream.read(1)
    return (
        f"not UTF-8 at byte {offset} (0x{byte.hex()}{_likely_encoding(sample)}); allowed: UTF-8; save the file as UTF-8"
    )


def _likely_encoding(sample: bytes) -> str:
    import charset_normalizer

    matches = list(charset_normalizer.from_bytes(sample))
    if not matches:
        return ""
    # Short Japanese text also decodes as Korean or Chinese, which the library ranks first; but only Japanese has kana.
    match = max(matches, key=lambda m: len(_KANA.findall(str(m))) * 10 > len(_NOT_ASCII.findall(str(m))))
    # Several code pages may give the same text; then the usual one of an office is named.
    usual = next((name for name in ("cp932", "cp1252") if name in match.could_be_from_charset), match.encoding)
    return f", likely {usual}"
