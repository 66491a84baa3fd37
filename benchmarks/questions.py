"""Real documents with questions whose answers are known, made by rule from the documents.

The documents are the docstrings of the Python standard library and the sections of this project's
docs. Each loses what is asked for: a docstring its first sentence, a section its heading. What is
left, under the object's name or the file's title, is the document. Kinds of questions, each with
one document that answers it:

- `purpose`: a docstring's first sentence as a question, some of its words replaced by others that
  mean the same, from a fixed list. The words that are left may or may not stand in the body.
- `heading`: the heading of a section, with the file's title.
- `name`: an identifier that stands in one document only.
- `number`: a number that stands in one document only, with two words of its sentence.

`purpose` and `heading` favour neither side by rule: summary and body were written by people, about
the same thing. `name` and `number` are what exact search is for. Which questions tune and which
judge is decided by a hash.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["purpose", "heading", "name", "number"]

DOCS = Path(__file__).resolve().parents[1] / "docs"
_LEAST_BODY = 120  # characters: a shorter one says no more than the sentence that was taken out
# A longer one is cut, as an indexer would cut it into chunks: the embedding model reads 256 tokens,
# and must not be shown less of a document than the words' index is.
_MOST_BODY = 1_000
_LEAST_WORDS = 4
_GENERATED = {"abi.md"}  # a heading there is the name of one call, and its text a table of fields

# Said in other words, so that a question is not the words of its document. General words only.
_SAME = {
    "return": "give",
    "returns": "gives",
    "create": "make",
    "creates": "makes",
    "remove": "delete",
    "delete": "remove",
    "check": "test",
    "checks": "tests",
    "whether": "if",
    "raise": "throw",
    "raises": "throws",
    "convert": "turn",
    "converts": "turns",
    "given": "passed",
    "specified": "named",
    "list": "sequence",
    "string": "text",
    "number": "count",
    "object": "thing",
    "parse": "read",
    "write": "store",
    "send": "transmit",
    "start": "begin",
    "stop": "end",
    "find": "look up",
    "call": "invoke",
    "called": "invoked",
    "set": "assign",
    "get": "obtain",
    "directory": "folder",
    "error": "failure",
    "empty": "blank",
    "copy": "duplicate",
    "wait": "block",
    "new": "fresh",
    "used": "employed",
    "use": "employ",
    "print": "show",
    "display": "show",
}
_SENTENCE = re.compile(r"(.+?[.!?:])(?=\s+[A-Z(`'\"*]|\s*\n\s*\n|\s*$)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
IDENTIFIER = re.compile(r"\b(?:[A-Za-z]+_[A-Za-z0-9_]+|[A-Z][a-z]+(?:[A-Z][a-z]+)+)\b")
NUMBER = re.compile(r"(?<![\w.])(?:0x[0-9A-Fa-f]+|0o[0-7]+|\d+\.\d+(?:\.\d+)*|\d{3,})(?![\w.])")
_HEADING = re.compile(r"^(#{1,4}) +(.+)$", re.MULTILINE)


class Document(NamedTuple):
    """A text under a name; `asked` is the question's words that were taken out of it."""

    name: str
    text: str
    asked: str
    kind: Kind


class Question(NamedTuple):
    """`answer` is the number of the document that answers it."""

    kind: Kind
    text: str
    answer: int

    @property
    def is_for_tuning(self) -> bool:
        """Whether the question may be looked at while the fusion is tuned."""
        return hashlib.sha256(self.text.encode()).digest()[0] % 2 == 0


def documents() -> list[Document]:
    """All documents, in the order of their names; of those with the same text the first."""
    found = [*_docstrings(), *_sections()]
    return list({document.text.partition("\n")[2]: document for document in found}.values())


def questions(texts: Sequence[Document], *, each: Mapping[Kind, int]) -> list[Question]:
    """Up to so many questions of each kind, drawn evenly by a hash."""
    made = [*_purposes(texts), *_exact(texts, "name", IDENTIFIER), *_numbers(texts)]
    by_text = Counter(question.text for question in made)
    chosen: list[Question] = []
    for kind, most in each.items():
        of_kind = [one for one in made if one.kind == kind and by_text[one.text] == 1]
        of_kind.sort(key=lambda one: hashlib.sha256(b"draw" + one.text.encode()).digest())
        chosen += of_kind[:most]
    return chosen


def _docstrings() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_public = not any(part.startswith("_") and part != "__init__" for part in parts)
        if parts[0] not in sys.stdlib_module_names or not is_public:
            continue
        if {"test", "tests", "idlelib", "lib2to3"} & set(parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # files that test the parser
            continue
        yield from _documented(tree, module)


def _documented(node: ast.AST, name: str) -> Iterator[Document]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        first, body = _split(ast.get_docstring(node) or "")
        is_repeated = first in " ".join(body.split())
        is_long = len(body) >= _LEAST_BODY and len(_WORD.findall(first)) >= _LEAST_WORDS
        if is_long and not is_repeated:
            yield Document(name, f"{name}\n{body[:_MOST_BODY]}", first, "purpose")
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _documented(child, f"{name}.{child.name}")


def _split(docstring: str) -> tuple[str, str]:
    """The first sentence and the rest."""
    found = _SENTENCE.match(docstring.strip())
    if found is None:
        return "", ""
    return " ".join(found[1].split()), docstring.strip()[found.end() :].strip()


def _sections() -> Iterator[Document]:
    for path in sorted(DOCS.glob("*.md")):
        if path.name in _GENERATED:
            continue
        text = path.read_text(encoding="utf-8")
        headings = list(_HEADING.finditer(text))
        ends = [heading.start() for heading in headings[1:]] + [len(text)]
        for heading, end in zip(headings, ends, strict=True):
            body = text[heading.end() : end].strip()
            if len(body) >= _LEAST_BODY:
                title = headings[0][2]
                asked = heading[2] if heading[2] == title else f"{title}: {heading[2]}"
                yield Document(path.name, f"{path.stem}\n{body[:_MOST_BODY]}", asked, "heading")


def _purposes(texts: Sequence[Document]) -> Iterator[Question]:
    for number, document in enumerate(texts):
        words = document.asked.rstrip(".:!?").replace("`", "")
        if document.kind == "heading":
            yield Question("heading", words, number)
            continue
        said = " ".join(_other_word(word) for word in words.split())
        yield Question("purpose", f"{said[:1].lower()}{said[1:]}?", number)


def _other_word(word: str) -> str:
    bare = word.strip(".,;:()")
    other = _SAME.get(bare.lower())
    return word if other is None else word.replace(bare, other)


def _exact(texts: Sequence[Document], kind: Kind, form: re.Pattern[str]) -> Iterator[Question]:
    templates = ("what does {} do?", "what is {} for?", "when is {} needed?", "{}")
    for found, number in _only_once(texts, form):
        template = templates[hashlib.sha256(found.encode()).digest()[0] % len(templates)]
        yield Question(kind, template.format(found), number)


def _numbers(texts: Sequence[Document]) -> Iterator[Question]:
    for found, number in _only_once(texts, NUMBER):
        text = texts[number].text
        place = text.index(found)
        near = text[max(0, text.rfind(".", 0, place)) : place + 80]
        words = sorted(set(re.findall(r"\b[a-z]{5,}\b", near)), key=lambda w: (-len(w), w))
        if len(words) >= 2:
            yield Question("number", f"{words[0]} {words[1]} {found}", number)


def _only_once(texts: Sequence[Document], form: re.Pattern[str]) -> Iterator[tuple[str, int]]:
    """What matches a form and stands in one document only, with that document's number.

    At most one of a document, so that no document is asked for again and again.
    """
    places: dict[str, set[int]] = {}
    for number, document in enumerate(texts):
        for found in form.findall(document.text):
            places.setdefault(found.lower(), set()).add(number)
    asked: set[int] = set()
    for number, document in enumerate(texts):
        for found in form.findall(document.text):
            if number not in asked and places[found.lower()] == {number}:
                asked.add(number)
                yield found, number
