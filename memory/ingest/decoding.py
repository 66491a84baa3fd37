"""Bytes as text, or why they are none. Nothing is guessed: a wrong guess would be stored.

What is tried: a byte order mark, the encoding that the caller names, UTF-8, and the encoding that
the file itself declares.
"""

from __future__ import annotations

import codecs
import re

from llmos.memory.ingest.document import FileRefused

_LOOKED_AT_BYTES = 8192
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# `<meta charset="...">`, `encoding="..."` of XML, `coding: ...` of Python and editors.
_DECLARED = re.compile(rb"(?:charset|coding)\s*[:=]\s*[\"']?([A-Za-z0-9][\w.-]*)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_MOST_CONTROLS = 0.02
# The signatures of files that text is never taken from, though their beginning may decode.
_SIGNATURES = (
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"\x7fELF",
    b"PK\x03\x04",
    b"%PDF-",
    b"\x1f\x8b",
)


def looks_binary(beginning: bytes) -> bool:
    """Whether a file that begins so holds no text; reading it whole can be saved."""
    head = beginning[:_LOOKED_AT_BYTES]
    if any(head.startswith(mark) for mark, _ in _MARKS):
        return False
    return b"\0" in head or head.startswith(_SIGNATURES)


def decode(data: bytes, encoding: str | None = None) -> str:
    """A file's text. Raises: FileRefused("binary" or "encoding")."""
    if looks_binary(data):
        raise FileRefused("binary", "it holds no text; leave it out")
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _checked(_strict(data, name))
    if encoding is not None:
        return _checked(_strict(data, encoding))
    try:
        return _checked(data.decode())
    except UnicodeDecodeError as problem:
        declared = _DECLARED.search(data, 0, 1024)
        if declared is not None:
            return _checked(_strict(data, declared[1].decode()))
        raise _not_text(data, "utf-8", problem) from problem


def _strict(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except LookupError as problem:
        raise FileRefused(
            "encoding", f"{encoding!r} is no encoding that is known; name one such as latin-1"
        ) from problem
    except UnicodeDecodeError as problem:
        raise _not_text(data, encoding, problem) from problem


def _not_text(data: bytes, encoding: str, problem: UnicodeDecodeError) -> FileRefused:
    if _is_mostly_controls(data[:_LOOKED_AT_BYTES].decode("latin-1")):
        return FileRefused("binary", "it holds no text; leave it out")
    return FileRefused(
        "encoding",
        f"byte {problem.start} is not {encoding}; name the file's encoding, such as latin-1, or "
        "convert it",
    )


def _checked(text: str) -> str:
    if _is_mostly_controls(text[:_LOOKED_AT_BYTES]):
        raise FileRefused("binary", "it holds control characters, not text; leave it out")
    return text


def _is_mostly_controls(beginning: str) -> bool:
    return len(_CONTROLS.findall(beginning)) > _MOST_CONTROLS * len(beginning)
