"""Chunks, sentences, and files that are not UTF-8."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.agents.handle import OS
from llmos.agents.text import Chunk, chunked, decode, prose, read_lines, read_lossy, sentences

MARKDOWN = """# Title of it

The first line goes on
here. See [the notes](notes.md), version 3.5 of notes.txt.

```python
code = 1. Not prose.
```

| what | is |
|---|---|
| a | table. |

- An *item* one.
- An `item` two! 2. still here.
"""


def test_sentences_are_those_of_the_running_text() -> None:
    assert sentences(MARKDOWN) == [
        "The first line goes on here.",
        "See the notes, version 3.5 of notes.txt.",
        "a: table.",
        "An item one.",
        "An item two!",
        "2. still here.",
    ]


def test_prose_keeps_paragraphs_apart() -> None:
    assert prose("One.\ntwo\n\nthree") == "One. two\n\nthree"


def test_text_without_any_prose_has_no_sentences() -> None:
    assert sentences("# Title\n```\ncode\n```\n| a |\n|---|\n") == []


def test_bytes_that_are_not_utf8_are_shown_and_told() -> None:
    assert decode(b"caf\xe9 ol\xc3\xa9") == ("caf\ufffd olé", b"caf\xe9 ol\xc3\xa9", True)
    assert decode("olé".encode()).is_lossy is False


async def pieces_of(os: OS, text: str, tokens: int) -> list[list[Any]]:
    return [list(chunk) for chunk in await chunked(os, text, tokens=tokens)]


def test_chunks_are_slices_of_the_text_with_their_lines(
    run_program: Callable[..., Any],
) -> None:
    text = "one two\n\nthree\n\n\nfour five six\nseven"
    chunks, _ = run_program(pieces_of, text, 14)
    assert chunks == [["one two\n\nthree", 1, 12], ["four five", 6, 9], ["six\nseven", 6, 9]]


def test_a_long_word_is_cut_where_it_has_to_be(run_program: Callable[..., Any]) -> None:
    chunks, _ = run_program(pieces_of, "x" * 25, 10)
    assert "".join(text for text, _, _ in chunks) == "x" * 25
    assert all(tokens <= 10 for _, _, tokens in chunks)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet="ab. \n\té", max_size=120), st.integers(min_value=2, max_value=30))
def test_chunks_lose_nothing_but_white_space_and_keep_to_the_limit(text: str, limit: int) -> None:
    class Counting:
        async def tokenize(self, text: str, *, model: str | None = None) -> Any:
            return type("Tokens", (), {"count": len(text.encode())})

    chunks: list[Chunk] = asyncio.run(chunked(Counting(), text, tokens=limit))  # pyright: ignore[reportArgumentType]
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())
    assert all(chunk.tokens <= limit for chunk in chunks)


async def lines(os: OS) -> list[str]:
    return [line async for line in read_lines(os)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\n\ntwo\n", ["one", "", "two"]),
        ("é\n".encode() + b"\xff\n", ["é", "\ufffd"]),
    ],
)
def test_lines_of_standard_input_come_without_their_ends(
    run_program: Callable[..., Any], data: bytes, expected: list[str]
) -> None:
    assert run_program(lines, stdin=data)[0] == expected


async def write_and_read(os: OS) -> bool:
    fd = await os.open("odd.txt", "w")
    await os.write(b"\xff\xfe", fd=fd)
    await os.close(fd)
    return (await read_lossy(os, "odd.txt")).is_lossy


def test_a_file_says_that_it_was_not_utf8(run_program: Callable[..., Any]) -> None:
    assert run_program(write_and_read)[0] is True
