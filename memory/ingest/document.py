"""What a parser makes of a file: blocks of text with their places, or a reason to refuse it.

The terms that parsers (`parsers.py`) and the cutting (`chunks.py`) share. Refuses to know stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from llmos.syscalls.results import FileProblemKind

Format = Literal["text", "markdown", "html", "pdf", "docx", "csv", "code"]
Unit = Literal["line", "page", "row", "paragraph"]


class Heading(NamedTuple):
    """Where a section begins; `level` 1 is the outermost.

    `is_text` False: it names what follows and stands in it anyway, as a function's name does.
    """

    text: str
    level: int
    place: int
    is_text: bool = True


class Block(NamedTuple):
    """A piece that belongs together: a paragraph, a table's row, a function.

    `place` counts the document's unit from 1. `joint` is what stands between this block and the one
    before it when both are in one chunk. `has_lines`: its lines mean something, as those of code.
    """

    text: str
    place: int
    joint: str = "\n\n"
    has_lines: bool = False


class Document(NamedTuple):
    """A parsed file; `parts` are made as they are asked for and can be read once.

    Reading them may raise what `parse` raises.
    """

    format: Format
    unit: Unit
    parts: Iterator[Heading | Block]


class FileRefused(Exception):
    """A file that cannot be taken in; the message says what to do about it."""

    def __init__(self, problem: FileProblemKind, message: str) -> None:
        super().__init__(message)
        self.problem: FileProblemKind = problem
        self.message = message
