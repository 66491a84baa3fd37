"""The shell's grammar: `a x | b y &`, separated by `;` or line ends, with quotes and comments.

    line     := pipeline (";" pipeline)*
    pipeline := stage ("|" stage)* "&"?
    stage    := word+

Single quotes keep everything; in double quotes a backslash keeps a quote or a backslash, outside
quotes any character. `#` at the start of a word begins a comment. Knows no commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_OPERATORS = "|&;\n"
_BLANKS = " \t\r"


class ShellSyntaxError(ValueError):
    """A line that is not in the grammar; the message says what and where."""


class Pipeline(NamedTuple):
    """Stages joined by pipes; `text` is how it was typed."""

    stages: tuple[tuple[str, ...], ...]
    is_background: bool
    text: str


class _Token(NamedTuple):
    text: str
    is_operator: bool
    start: int
    end: int


def parse(line: str) -> tuple[Pipeline, ...]:
    """The pipelines of a line. Raises: ShellSyntaxError."""
    pipelines: list[Pipeline] = []
    stages: list[tuple[str, ...]] = []
    words: list[str] = []
    first: int | None = None
    last = 0
    for token in _tokens(line):
        if not token.is_operator:
            words.append(token.text)
            first = token.start if first is None else first
            last = token.end
            continue
        if words:
            stages.append(tuple(words))
            words = []
        elif token.text in "|&":
            raise ShellSyntaxError(
                f"there is no program before {token.text!r} at column {token.start + 1}"
            )
        elif stages:
            raise ShellSyntaxError("there is no program after the last '|'")
        if token.text != "|" and stages:
            text = line[first:last]
            pipelines.append(Pipeline(tuple(stages), token.text == "&", text))
            stages, first = [], None
    return tuple(pipelines)


def split_words(text: str) -> list[str]:
    """The words of an unfinished line, the last one perhaps empty or inside open quotes.

    For completion: what was typed after the last operator.
    """
    words: list[str] = []
    end = 0
    try:
        for token in _tokens(text, is_open=True):
            end = token.end
            words = [] if token.is_operator else [*words, token.text]
    except ShellSyntaxError:
        return []
    if not words or end < len(text):
        words.append("")
    return words


# --- internals ------------------------------------------------------------------------------------


def _tokens(line: str, *, is_open: bool = False) -> Iterator[_Token]:
    """Words and operators; a line end closes the line unless it `is_open`."""
    position = 0
    while position < len(line):
        character = line[position]
        if character in _BLANKS:
            position += 1
        elif character == "#":
            newline = line.find("\n", position)
            position = len(line) if newline < 0 else newline
        elif character in _OPERATORS:
            yield _Token(character, True, position, position + 1)
            position += 1
        else:
            word, end = _word(line, position, is_open=is_open)
            yield _Token(word, False, position, end)
            position = end
    if not is_open:
        yield _Token("\n", True, len(line), len(line))


def _word(line: str, start: int, *, is_open: bool) -> tuple[str, int]:
    """The word at `start`, its quotes removed, and where it ends."""
    pieces: list[str] = []
    position = start
    while position < len(line):
        character = line[position]
        if character in _BLANKS or character in _OPERATORS:
            break
        if character in "'\"":
            piece, position = _quoted(line, position, is_open=is_open)
            pieces.append(piece)
        elif character == "\\":
            pieces.append(line[position + 1 : position + 2])
            position += 2
        else:
            pieces.append(character)
            position += 1
    return "".join(pieces), min(position, len(line))


def _quoted(line: str, start: int, *, is_open: bool) -> tuple[str, int]:
    """The text in the quotes at `start`, and the position after them."""
    quote = line[start]
    pieces: list[str] = []
    position = start + 1
    while position < len(line):
        character = line[position]
        if character == quote:
            return "".join(pieces), position + 1
        if character == "\\" and quote == '"' and line[position + 1 : position + 2] in ('"', "\\"):
            position += 1
            character = line[position]
        pieces.append(character)
        position += 1
    if is_open:
        return "".join(pieces), position
    raise ShellSyntaxError(f"the quote {quote} at column {start + 1} is never closed")
