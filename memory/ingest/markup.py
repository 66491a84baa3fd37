"""Markdown and HTML: headings, and what stands below them.

Markdown's blocks are its source lines as they stand; HTML's are its text without tags. Nesting is
walked with a stack of our own, so that a deep page cannot exhaust Python's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmos.memory.ingest.document import Block, Heading
from llmos.memory.ingest.quiet import quiet

if TYPE_CHECKING:
    from bs4 import Tag

_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
_COMMENT = re.compile(r"\s*<!--.*-->\s*", re.DOTALL)
_UNREAD = frozenset({"head", "nav", "noscript", "script", "style", "svg", "template"})
_INLINE = frozenset(
    {
        *("a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i"),
        *("ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup"),
        *("time", "tt", "u", "var", "wbr", "img", "button", "input"),
    }
)
_TITLES = {f"h{level}": level for level in range(1, 7)}


def markdown(text: str) -> Iterator[Heading | Block]:
    """Headings, paragraphs, list items, tables and code of CommonMark, with their lines."""
    from markdown_it import MarkdownIt

    front = _FRONT_MATTER.match(text)
    if front:
        yield Block(front[1], 2, has_lines=True)
        text = "\n" * front[0].count("\n") + text[front.end() :]
    lines = text.split("\n")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    item_lines: tuple[int, int] | None = None
    for place, token in enumerate(tokens):
        if token.map is None:
            continue
        begin, end = token.map
        source = "\n".join(lines[begin:end]).rstrip()
        match token.type:
            case "heading_open" if token.level == 0:
                yield Heading(tokens[place + 1].content, int(token.tag[1:]), begin + 1)
            case "list_item_open" if token.level == 1:
                is_first = item_lines is None or item_lines[1] != begin
                item_lines = (begin, end)
                yield Block(source, begin + 1, "\n\n" if is_first else "\n")
            case "table_open" | "fence" | "code_block" if token.level == 0:
                yield Block(source, begin + 1, has_lines=True)
            case "paragraph_open" | "blockquote_open" if token.level == 0:
                yield Block(source, begin + 1)
            case "html_block" if token.level == 0 and not _COMMENT.fullmatch(source):
                yield Block(source, begin + 1, has_lines=True)
            case _:
                pass


def html(text: str) -> Iterator[Heading | Block]:
    """Headings and the text of block elements, without scripts and navigation."""
    from bs4 import BeautifulSoup

    with quiet():
        soup = BeautifulSoup(text, "html.parser")
    title = soup.title.get_text(" ", strip=True) if soup.title is not None else ""
    if title:
        yield Heading(title, 0, 1)
    for part in _walk(soup):
        if not (isinstance(part, Heading) and part.text == title):
            yield part


def _walk(root: Tag) -> Iterator[Heading | Block]:
    from bs4.element import NavigableString, PreformattedString, Tag

    gathered: list[str] = []
    place = 1
    around: list[str] = [""]  # the block elements that are open
    waiting: list[tuple[object, bool]] = [(root, False)]
    while waiting:
        node, is_end = waiting.pop()
        if isinstance(node, NavigableString):
            if not isinstance(node, PreformattedString):  # comments and declarations
                gathered.append(str(node))
        elif not isinstance(node, Tag) or node.name in _UNREAD:
            continue
        elif is_end:
            yield from _ended(around.pop(), gathered, place)
            gathered = []
        elif node.name == "br":
            gathered.append("\n")
        else:
            if node.name in ("td", "th"):
                gathered.append(" | " if "".join(gathered).strip() else "")
            elif node.name not in _INLINE:
                yield from _ended(around[-1], gathered, place)
                gathered = []
                place = node.sourceline or place
                around.append(node.name)
                waiting.append((node, True))
            waiting += [(child, False) for child in reversed(node.contents)]


def _ended(name: str, gathered: list[str], place: int) -> Iterator[Heading | Block]:
    """What was gathered, as the innermost element around it makes it."""
    whole = "".join(gathered)
    if not whole.strip():
        return
    if name == "pre":
        yield Block(whole.strip("\n"), place, has_lines=True)
        return
    line = " ".join(whole.split())
    if name in _TITLES:
        yield Heading(line, _TITLES[name], place)
    elif name == "li":
        yield Block(f"- {line}", place, "\n")
    elif name == "tr":
        yield Block(line, place, "\n")
    else:
        yield Block(line, place)
