"""Which parser reads a file: by the suffix of its name, and plain text where that says nothing."""

from __future__ import annotations

from pathlib import PurePath

from llmos.memory.ingest import code, markup, office, plain
from llmos.memory.ingest.decoding import decode
from llmos.memory.ingest.document import Document, FileRefused, Format

_CODE = frozenset(
    {
        *(".c", ".cc", ".cpp", ".cs", ".cu", ".dart", ".ex", ".go", ".h", ".hpp", ".java", ".jl"),
        *(".js", ".jsx", ".kt", ".lua", ".m", ".mjs", ".php", ".pl", ".r", ".rb", ".rs", ".scala"),
        *(".sh", ".sql", ".swift", ".ts", ".tsx", ".zig"),
    }
)
_PROSE = frozenset({"", ".adoc", ".log", ".org", ".rst", ".tex", ".text", ".txt"})
_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".docx": "docx",
    ".htm": "html",
    ".html": "html",
    ".markdown": "markdown",
    ".md": "markdown",
    ".pdf": "pdf",
    ".py": "code",
    ".pyi": "code",
    ".tsv": "csv",
    ".xhtml": "html",
    **dict.fromkeys(_CODE, "code"),
}
# These are no text, but are read.
PACKED: frozenset[Format] = frozenset({"docx", "pdf"})


def format_of(name: str) -> Format:
    """The format that a file's name promises."""
    return _FORMATS.get(PurePath(name).suffix.lower(), "text")


def parse(name: str, data: bytes, *, encoding: str | None = None) -> Document:
    """A file as headings and blocks; `encoding` is for text that is not UTF-8 and does not say so.

    Raises: FileRefused, here or as the parts are read.
    """
    format = format_of(name)
    if not data:
        raise FileRefused("empty", "it holds nothing")
    if format == "pdf":
        return Document(format, "page", office.pdf(data))
    if format == "docx":
        return Document(format, "paragraph", office.docx(data))
    text = decode(data, encoding).replace("\r\n", "\n")
    if not text.strip():
        raise FileRefused("empty", "it holds nothing but white space")
    suffix = PurePath(name).suffix.lower()
    match format:
        case "csv":
            return Document(format, "row", plain.table(text))
        case "html":
            return Document(format, "line", markup.html(text))
        case "markdown":
            return Document(format, "line", markup.markdown(text))
        case "code":
            read = code.python if suffix in (".py", ".pyi") else code.code
            return Document(format, "line", read(text))
        case _:
            is_prose = suffix in _PROSE
            return Document(format, "line", plain.paragraphs(text, is_prose=is_prose))
