"""Text without markup: paragraphs, underlined titles, rows of tables.

Source: the reStructuredText rule that a title is a line with a line of one mark below it,
https://docutils.sourceforge.io/docs/ref/rst/restructuredtext.html
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from io import StringIO

from llmos.memory.ingest.document import Block, FileRefused, Heading

_UNDERLINE = re.compile(r"([=\-~^\"'#*+.:`_])\1{2,}\s*$")
_TITLE_CHARACTERS = 120
_DELIMITERS = ",;\t|"
_LOOKED_AT_CHARACTERS = 8192
_NUMBER = re.compile(r"[-+]?[\d.,]+%?$")


def paragraphs(text: str, *, is_prose: bool) -> Iterator[Heading | Block]:
    """Runs of lines that blank lines part; in prose a title with a line below it is a heading."""
    levels: list[str] = []  # underlines in the order in which they were first seen
    gathered: list[str] = []
    begun = 1
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            yield from _paragraph(gathered, begun, is_prose)
            gathered = []
            continue
        mark = _UNDERLINE.match(line) if is_prose else None
        if mark and len(gathered) == 1 and _is_title(gathered[0], line):
            if mark[1] not in levels:
                levels.append(mark[1])
            yield Heading(gathered[0].strip(), levels.index(mark[1]) + 1, begun)
            gathered = []
            continue
        if not gathered:
            begun = number
        gathered.append(line)
    yield from _paragraph(gathered, begun, is_prose)


def table(text: str) -> Iterator[Heading | Block]:
    """Rows of a delimited file, each as "column: value" pairs; rows count from 1 with the header.

    Raises: FileRefused("damaged").
    """
    rows = enumerate(csv.reader(StringIO(text, newline=""), delimiter=_delimiter(text)), 1)
    names: list[str] | None = None
    number = 0
    try:
        for number, row in rows:
            cells = [" ".join(cell.split()) for cell in row]
            if number == 1 and _is_header(cells):
                names = cells
            elif any(cells):
                yield Block(_row(names, cells), number, "\n")
    except csv.Error as problem:
        raise FileRefused(
            "damaged", f"it is no table: {problem}; save it as CSV again"
        ) from problem
    if names is not None and number == 1:
        yield Block(", ".join(names), 1)


def _lines(text: str) -> Iterator[str]:
    """Lines without their ends, one at a time: a list of all would double a large text."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        if end < 0:
            end = len(text)
        yield text[start:end]
        start = end + 1


def _paragraph(lines: list[str], place: int, is_prose: bool) -> Iterator[Block]:
    if lines:
        yield Block("\n".join(lines), place, has_lines=not is_prose)


def _is_title(line: str, underline: str) -> bool:
    is_long_enough = len(underline.strip()) >= len(line.strip()) - 1
    return is_long_enough and len(line) <= _TITLE_CHARACTERS and not _UNDERLINE.match(line)


def _delimiter(text: str) -> str:
    """The mark that parts most of the first lines into equally many cells."""
    lines = [line for line in text[:_LOOKED_AT_CHARACTERS].split("\n")[:20] if line.strip()]

    def regularity(mark: str) -> tuple[int, int]:
        counts = Counter(line.count(mark) for line in lines if mark in line)
        ((cells, times),) = counts.most_common(1) or [(0, 0)]
        return times, cells

    return max(_DELIMITERS, key=regularity)


def _is_header(cells: list[str]) -> bool:
    return all(cells) and len(set(cells)) == len(cells) and not any(map(_NUMBER.match, cells))


def _row(names: list[str] | None, cells: list[str]) -> str:
    if names is None:
        return "; ".join(cell for cell in cells if cell)
    named = [f"{name}: {cell}" for name, cell in zip(names, cells, strict=False) if cell]
    return "; ".join([*named, *(cell for cell in cells[len(names) :] if cell)])
