"""Text as agents handle it: files as they are, chunks that fit a model, sentences.

Sizes in tokens are by the model's own tokenizer, asked through the kernel.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from llmos.agents.handle import OS

_PARAGRAPH = re.compile(r"[^\n]+(?:\n(?!\s*\n)[^\n]+)*")
# A sentence ends at a mark that white space follows; "3.5", "notes.txt" and "2. Then" go on.
_SENTENCE_END = re.compile(r"(?<=[^\d\s][.!?])\s+")
_BLANK = re.compile(r"\n\s*\n")
_FENCED = re.compile(r"^\s*(```|~~~).*?(?:^\s*\1|\Z)", re.DOTALL | re.MULTILINE)
# A long paragraph is cut between sentences, and between the rows of a table or list.
_CUT = re.compile(r"(?<=[^\d\s][.!?])\s+|\n(?=\s*(?:\||[-*+]\s|\d+\.\s))")
_HEADING = re.compile(r"^\s*#.*$", re.MULTILINE)
# With the row above it, which names the columns and says nothing.
_TABLE_HEAD = re.compile(r"^\s*\|.*\n\s*\|[\s|:-]*$", re.MULTILINE)
_TABLE_ROW = re.compile(r"^\s*\|(.*?)\|?\s*$", re.MULTILINE)
_LIST_MARK = re.compile(r"^\s*(?:[-*+>]|\d+\.)\s+", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)\s]*\)")
_EMPHASIS = re.compile(r"[`*]+|\b_+|_+\b")


class FileText(NamedTuple):
    """A file's text; `is_lossy` when bytes that are not UTF-8 became U+FFFD."""

    text: str
    data: bytes
    is_lossy: bool


class Chunk(NamedTuple):
    """A piece of a text as it stands there; `line` is where it starts, counted from 1."""

    text: str
    line: int
    tokens: int


class _Piece(NamedTuple):
    """A part of a text that is not cut further: `text[start:end]`."""

    start: int
    end: int
    tokens: int


async def read_lossy(os: OS, path: str) -> FileText:
    """A whole file, with a word on whether it could be read as UTF-8."""
    fd = await os.open(path)
    try:
        pieces: list[bytes] = []
        while True:
            data = await os.read(fd, max_bytes=1024 * 1024)
            pieces.append(data.data)
            if data.is_eof:
                break
    finally:
        await os.close(fd)
    return decode(b"".join(pieces))


async def read_all_input(os: OS) -> FileText:
    """All of standard input."""
    pieces: list[bytes] = []
    while True:
        data = await os.read(0)
        pieces.append(data.data)
        if data.is_eof:
            return decode(b"".join(pieces))


def decode(data: bytes) -> FileText:
    """Bytes as text, each undecodable one shown as U+FFFD."""
    try:
        return FileText(data.decode("utf-8"), data, is_lossy=False)
    except UnicodeDecodeError:
        return FileText(data.decode("utf-8", errors="replace"), data, is_lossy=True)


async def read_lines(os: OS) -> AsyncIterator[str]:
    """Lines of standard input as they come, without their ends."""
    rest = b""
    while True:
        data = await os.read(0)
        *lines, rest = (rest + data.data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace")
        if data.is_eof:
            if rest:
                yield rest.decode("utf-8", errors="replace")
            return


async def chunked(os: OS, text: str, *, tokens: int, model: str | None = None) -> list[Chunk]:
    """A text in pieces of about `tokens` tokens at most, cut between paragraphs where possible.

    A paragraph that is too long is cut between sentences or rows, and those between words. White
    space between pieces is kept inside a chunk, and not counted.
    """
    chunks: list[Chunk] = []
    pending: list[_Piece] = []

    def flush() -> None:
        start, end = pending[0].start, pending[-1].end
        line = text.count("\n", 0, start) + 1
        chunks.append(Chunk(text[start:end], line, sum(piece.tokens for piece in pending)))
        pending.clear()

    async for piece in _pieces(os, text, tokens, model):
        if pending and sum(one.tokens for one in pending) + piece.tokens > tokens:
            flush()
        pending.append(piece)
    if pending:
        flush()
    return chunks


def prose(text: str) -> str:
    """The running text of Markdown: paragraphs on one line each, without code and headings.

    A row of a table becomes a sentence, `first cell: the others.`
    """
    text = _HEADING.sub("\n", _FENCED.sub("\n\n", text))
    text = _TABLE_ROW.sub(_row_as_sentence, _TABLE_HEAD.sub("\n", text))
    text = _LIST_MARK.sub("\n\n", text)
    text = _EMPHASIS.sub("", _LINK.sub(r"\1", text))
    paragraphs = (" ".join(part.split()) for part in _BLANK.split(text))
    return "\n\n".join(part for part in paragraphs if part)


def sentences(text: str) -> list[str]:
    """The sentences of Markdown's running text (see `prose`), in order."""
    return [
        sentence
        for paragraph in prose(text).split("\n\n")
        for sentence in _SENTENCE_END.split(paragraph)
        if sentence
    ]


def _row_as_sentence(row: re.Match[str]) -> str:
    first, *others = (cell.strip() for cell in row[1].split("|"))
    sentence = f"{first}: {'; '.join(other for other in others if other)}" if others else first
    return f"\n\n{sentence.rstrip('.:')}.\n\n"


async def _pieces(os: OS, text: str, limit: int, model: str | None) -> AsyncIterator[_Piece]:
    """Paragraphs, or parts of those that are longer than `limit` tokens."""
    for match in _PARAGRAPH.finditer(text):
        start, end = match.span()
        if not match[0].strip():
            continue
        count = (await os.tokenize(match[0], model=model)).count
        if count <= limit:
            yield _Piece(start, end, count)
            continue
        for part_start, part_end in _sentence_spans(text, start, end):
            async for piece in _halved(os, text, part_start, part_end, limit, model):
                yield piece


async def _halved(
    os: OS, text: str, start: int, end: int, limit: int, model: str | None
) -> AsyncIterator[_Piece]:
    """A span cut in halves, between words where it has any, until each fits."""
    count = (await os.tokenize(text[start:end], model=model)).count
    if count <= limit or end - start == 1:
        yield _Piece(start, end, count)
        return
    middle = (start + end) // 2
    space = text.rfind(" ", start + 1, middle + 1)
    cut, rest = (space, space + 1) if space > 0 else (middle, middle)
    for half_start, half_end in ((start, cut), (rest, end)):
        async for piece in _halved(os, text, half_start, half_end, limit, model):
            yield piece


def _sentence_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for gap in _CUT.finditer(text, start, end):
        yield start, gap.start()
        start = gap.end()
    if start < end:
        yield start, end
