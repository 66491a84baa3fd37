"""PDF and Word files: pages and paragraphs.

Foreign parsers read foreign files, and raise whatever they like on a bad one: all of it means
"damaged". What this does not protect against: a crafted file that keeps a parser busy for long.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING
from zipfile import ZipFile

from llmos.memory.ingest.document import Block, FileRefused, Heading
from llmos.memory.ingest.quiet import quiet

if TYPE_CHECKING:
    from docx.table import Table
    from docx.text.paragraph import Paragraph
    from pypdf import PdfReader

_BLANK = re.compile(r"\n\s*\n")
_HEADING = re.compile(r"[Hh]eading (\d)")
# The container of old Office files, and of new ones with a password.
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
_MOST_UNPACKED_BYTES = 512 * 1024 * 1024


def pdf(data: bytes) -> Iterator[Heading | Block]:
    """Paragraphs by page. Raises: FileRefused("encrypted", "damaged" or "empty")."""
    from pypdf import PdfReader

    is_empty = True
    with _reading("PDF"):
        with quiet("pypdf"):
            reader = PdfReader(BytesIO(data))
        if _is_locked(reader):
            raise FileRefused("encrypted", "a password locks it; save a copy without one")
        for number, page in enumerate(reader.pages, 1):
            for paragraph in _BLANK.split(_storable(page.extract_text())):
                if paragraph.strip():
                    is_empty = False
                    yield Block(paragraph.strip("\n"), number)
    if is_empty:
        raise FileRefused("empty", "its pages hold pictures only; recognise their text first")


def _is_locked(reader: PdfReader) -> bool:
    from pypdf.errors import DependencyError

    try:
        return reader.is_encrypted and not reader.decrypt("")
    except DependencyError:  # a cipher that pypdf leaves to a package which is not here
        return True


def _storable(text: str) -> str:
    """Text without NULs and halves of characters, which wrong fonts produce."""
    return text.encode(errors="replace").decode().replace("\0", " ")


def docx(data: bytes) -> Iterator[Heading | Block]:
    """Paragraphs and tables of a Word file. Raises: FileRefused("encrypted", "damaged", ...)."""
    from docx import Document
    from docx.table import Table

    if data.startswith(_OLD_OFFICE):
        raise FileRefused(
            "encrypted", "a password locks it, or it is of an old Word; save it as docx without one"
        )
    with _reading("Word file"):
        with ZipFile(BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _MOST_UNPACKED_BYTES:
            raise FileRefused("too_large", f"it unpacks to {unpacked} bytes; split it")
        for number, item in enumerate(Document(BytesIO(data)).iter_inner_content(), 1):
            if isinstance(item, Table):
                yield from _rows(item, number)
            else:
                yield from _paragraph(item, number)


@contextmanager
def _reading(what: str) -> Generator[None]:
    """Turn whatever a foreign parser raises into a refusal of the file."""
    try:
        yield
    except FileRefused:
        raise
    except Exception as problem:
        raise FileRefused(
            "damaged",
            f"it is no whole {what} ({problem or type(problem).__name__}); save it again",
        ) from problem


def _paragraph(paragraph: Paragraph, number: int) -> Iterator[Heading | Block]:
    text = paragraph.text
    if not text.strip():
        return
    style = (paragraph.style.name if paragraph.style is not None else None) or ""
    heading = _HEADING.match(style)
    if heading:
        yield Heading(text, int(heading[1]), number)
    elif style == "Title":
        yield Heading(text, 0, number)
    else:
        is_item = style.startswith("List")
        yield Block(f"- {text}" if is_item else text, number, "\n" if is_item else "\n\n")


def _rows(table: Table, number: int) -> Iterator[Block]:
    for row in table.rows:
        cells = [" ".join(cell.text.split()) for cell in row.cells]
        if any(cells):
            yield Block(" | ".join(cells), number, "\n")
