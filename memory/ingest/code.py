"""Source code: definitions with their names, cut where the code itself is parted.

Python is read by its own grammar. Other languages are cut at blank lines that code at the margin
follows, which is where people part definitions in all of them; a definition's name is looked for in
the line that opens it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from llmos.memory.ingest.document import Block, Heading
from llmos.memory.ingest.quiet import quiet

_PART = re.compile(r"\n[ \t]*\n(?=[^\s})\]])")
_MODIFIERS = (
    r"(?:(?:export|default|public|private|protected|internal|static|async|abstract|final|sealed|"
    r"open|override|unsafe|inline|extern|const|pub(?:\([^)]*\))?)\s+)*"
)
_KEYWORD = (
    r"(?:function\*?|func|fn|fun|def|class|struct|enum|union|interface|trait|impl|module|namespace|"
    r"package|type|object|record|protocol|extension|sub|proc|macro_rules!)"
)
_DEFINITION = re.compile(
    rf"{_MODIFIERS}{_KEYWORD}\s+[^\s({{:;<=]+"  # pub fn run
    r"|[A-Za-z_][\w \t*&:<>,~]*[\s*&]~?[\w:]+(?=\([^;]*$)"  # static int run(...) {
)
# Further along no line is looked at: names stand at the beginning, and minified code is one line.
_NAMED_WITHIN = 200

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python(text: str) -> Iterator[Heading | Block]:
    """Functions, and classes by their methods; as other code where it does not parse."""
    try:
        with quiet():
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield from code(text)
        return
    lines = text.split("\n")
    yield from _body(lines, tree.body, 0, len(lines), level=1)


def code(text: str) -> Iterator[Heading | Block]:
    """Parts of source code, each under the name of what it defines."""
    start, line = 0, 1
    ends = [(match.start(), match.end()) for match in _PART.finditer(text)]
    for end, after in [*ends, (len(text), len(text))]:
        part = text[start:end]
        yield Heading(_name(part), 1, line, is_text=False)
        yield Block(part.strip("\n"), line, has_lines=True)
        line += text.count("\n", start, after)
        start = after


def _name(part: str) -> str:
    """What the first definition in a part defines; "" when it has none."""
    for line in part.split("\n"):
        found = _DEFINITION.match(line[:_NAMED_WITHIN])
        if found:
            return " ".join(found[0].split())
    return ""


def _body(
    lines: Sequence[str], body: Sequence[ast.stmt], start: int, end: int, *, level: int
) -> Iterator[Heading | Block]:
    """The lines `start` to `end` (from 0), parted at the definitions among the statements."""
    done = start
    for statement in body:
        if not isinstance(statement, _Definition):
            continue
        assert statement.end_lineno is not None
        first = min([statement.lineno, *(one.lineno for one in statement.decorator_list)]) - 1
        while first > done and lines[first - 1].lstrip().startswith("#"):
            first -= 1  # comments right above belong to it
        yield from _plain(lines, done, first, level)
        last = statement.end_lineno
        yield from _definition(lines, statement, first, last, level=level)
        done = last
    yield from _plain(lines, done, end, level)


def _definition(
    lines: Sequence[str], statement: _Definition, first: int, last: int, *, level: int
) -> Iterator[Heading | Block]:
    is_class = isinstance(statement, ast.ClassDef)
    word = "class" if is_class else "def"
    yield Heading(f"{word} {statement.name}", level, first + 1, is_text=False)
    if is_class:
        yield from _body(lines, statement.body, first, last, level=level + 1)
    else:
        yield _block(lines, first, last)


def _plain(lines: Sequence[str], start: int, end: int, level: int) -> Iterator[Heading | Block]:
    """Code between definitions, which is in no section of its own."""
    while start < end and not lines[start].strip():
        start += 1
    if start < end and any(line.strip() for line in lines[start:end]):
        yield Heading("", level, start + 1, is_text=False)
        yield _block(lines, start, end)


def _block(lines: Sequence[str], start: int, end: int) -> Block:
    return Block("\n".join(lines[start:end]).rstrip(), start + 1, has_lines=True)
