"""Cutting a document into chunks: along its sections and blocks, within a number of tokens.

A chunk begins with the path of its section ("Guide › Set-up"), so that it says what it is about
where it is read alone. A block that is too large is cut between sentences or lines, these between
words. Chunks are made as blocks arrive: a document is never held whole. Refuses to know formats and
tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from llmos.memory.ingest.document import Block, Heading

Count = Callable[[str], int]  # the tokens of a text

SEPARATOR = " › "
# A section that is smaller than this share of a chunk does not stand alone.
_SMALL_SHARE = 0.25
# The section's path may take this share of a chunk; its outer parts are left out first.
_PATH_SHARE = 0.25
_PATH_CHARACTERS = 200
# A sentence ends at a mark that white space follows; "3.5" and "2. Then" go on.
_SENTENCE_GAP = re.compile(r"(?<=[^\d\s][.!?])\s+")
_LINE_GAP = re.compile(r"\n+")
# Tokenizers make one token of a long run without spaces, so that tokens alone bound no text.
_MOST_CHARACTERS_A_TOKEN = 24


class Chunk(NamedTuple):
    """A piece of a document. `place` is where it starts, in the document's unit, from 1."""

    text: str
    section: str
    place: int
    tokens: int


class _Piece(NamedTuple):
    text: str
    place: int
    joint: str
    tokens: int


class _Section(NamedTuple):
    path: str
    tokens: int


def chunks(
    parts: Iterable[Heading | Block], *, count: Count, tokens: int, counts_lines: bool
) -> Iterator[Chunk]:
    """Chunks of `tokens` tokens at most, in the document's order.

    `counts_lines`: places are lines, so that what is cut out of a block has a place of its own.
    Counts are added up, which differs from the count of the whole by a token here and there.
    """
    cutter = _Cutter(count, tokens, counts_lines)
    for part in parts:
        if isinstance(part, Heading):
            yield from cutter.begin_section(part)
        else:
            yield from cutter.add(part)
    yield from cutter.finish()


class _Cutter:
    """What is gathered for the next chunk, and the section where it is."""

    def __init__(self, count: Count, tokens: int, counts_lines: bool) -> None:
        self._count = count
        self._limit = tokens
        self._counts_lines = counts_lines
        self._headings: list[Heading] = []
        self._here = _Section("", 0)  # where the document is now
        self._pending: list[_Piece] = []
        self._pending_tokens = 0
        self._begun = self._here  # where the pending chunk began
        self._bare: Heading | None = None  # a heading that nothing followed so far

    def begin_section(self, heading: Heading) -> Iterator[Chunk]:
        """Go on in another section; a chunk that is small so far takes its beginning in."""
        heading = heading._replace(text=" ".join(heading.text.split())[:_PATH_CHARACTERS])
        if self._bare is not None and heading.level <= self._bare.level:
            yield from self._add_bare()
        is_joining = 0 < self._pending_tokens < _SMALL_SHARE * self._limit
        if not is_joining:
            yield from self._flush()
        while self._headings and self._headings[-1].level >= heading.level:
            self._headings.pop()
        self._headings.append(heading)
        self._here = self._section()
        self._bare = None
        if is_joining and heading.is_text:
            # The chunk's path is another section's, so the heading stands in its text.
            yield from self.add(Block(heading.text, heading.place))
        elif heading.is_text and heading.text:
            self._bare = heading

    def add(self, block: Block) -> Iterator[Chunk]:
        """Gather a block, giving the chunks that are full."""
        self._bare = None
        gaps = (_LINE_GAP,) if block.has_lines else (_SENTENCE_GAP, _LINE_GAP)
        for piece in self._cut(block.text, block.place, block.joint, gaps):
            if piece.text.strip():
                yield from self._take(piece)

    def finish(self) -> Iterator[Chunk]:
        """What is left."""
        yield from self._add_bare()
        yield from self._flush()

    def _add_bare(self) -> Iterator[Chunk]:
        """A heading with nothing below it is content itself, in the section around it."""
        if self._bare is None:
            return
        bare, self._here = self._bare, self._section(without_last=True)
        yield from self.add(Block(bare.text, bare.place))

    def _section(self, *, without_last: bool = False) -> _Section:
        names = [heading.text for heading in self._headings if heading.text]
        if without_last:
            names.pop()
        while names:
            path = SEPARATOR.join(names)
            tokens = self._count(path)
            if tokens <= _PATH_SHARE * self._limit:
                return _Section(path, tokens)
            names = names[1:]
        return _Section("", 0)

    def _take(self, piece: _Piece) -> Iterator[Chunk]:
        if self._begun.tokens + self._pending_tokens + piece.tokens > self._limit:
            yield from self._flush()
        if not self._pending:
            self._begun = self._here
        self._pending.append(piece)
        self._pending_tokens += piece.tokens

    def _flush(self) -> Iterator[Chunk]:
        if not self._pending:
            return
        first, *others = self._pending
        body = first.text + "".join(piece.joint + piece.text for piece in others)
        path, path_tokens = self._begun
        text = f"{path}\n\n{body}" if path else body
        yield Chunk(text, path, first.place, path_tokens + self._pending_tokens)
        self._pending = []
        self._pending_tokens = 0

    def _cut(
        self, text: str, place: int, joint: str, gaps: tuple[re.Pattern[str], ...]
    ) -> Iterator[_Piece]:
        """A text whole where it fits, else cut at the first kind of gap that it has."""
        whole = self._whole(text, place, joint)
        if whole is not None:
            yield whole
            return
        ended, lines = 0, 0
        for start, end in _between(text, gaps[0]) if gaps else _halves(text):
            if self._counts_lines:
                lines += text.count("\n", ended, start)
            between = text[ended:start] if ended else joint
            piece = self._whole(text[start:end], place + lines, between)
            if piece is not None:
                yield piece
            else:
                yield from self._cut(text[start:end], place + lines, between, gaps[1:])
            if self._counts_lines:
                lines += text.count("\n", start, end)
            ended = end

    def _whole(self, text: str, place: int, joint: str) -> _Piece | None:
        """A text as one piece, where it fits into a chunk."""
        room = self._limit - self._here.tokens
        if len(text) > room * _MOST_CHARACTERS_A_TOKEN:
            return None
        tokens = max(self._count(text), len(text) // _MOST_CHARACTERS_A_TOKEN)
        return _Piece(text, place, joint, tokens) if tokens <= room or len(text) == 1 else None


def _between(text: str, gap: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """The spans that a kind of gap leaves."""
    start = 0
    for match in gap.finditer(text):
        if match.start() > start:
            yield start, match.start()
        start = match.end()
    if start < len(text):
        yield start, len(text)


def _halves(text: str) -> Iterator[tuple[int, int]]:
    """Two spans, between words where there are any."""
    middle = len(text) // 2
    space = text.rfind(" ", 1, middle + 1)
    if space > 0:
        yield 0, space
        yield space + 1, len(text)
    else:
        yield 0, middle
        yield middle, len(text)
