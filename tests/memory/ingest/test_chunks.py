"""Chunks follow sections and blocks, keep within their tokens, and lose nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from llmos.memory.ingest.chunks import Chunk, chunks
from llmos.memory.ingest.document import Block, Heading


def words(text: str) -> int:
    return len(text.split())


def cut(parts: Iterable[Heading | Block], tokens: int, *, counts_lines: bool = True) -> list[Chunk]:
    return list(chunks(parts, count=words, tokens=tokens, counts_lines=counts_lines))


def test_blocks_that_fit_share_a_chunk() -> None:
    found = cut([Block("a b", 1), Block("c d", 3), Block("e f", 5)], 4)
    assert [(chunk.text, chunk.place, chunk.tokens) for chunk in found] == [
        ("a b\n\nc d", 1, 4),
        ("e f", 5, 2),
    ]


def test_a_chunk_says_its_section() -> None:
    found = cut([Heading("Guide", 1, 1), Heading("Set-up", 2, 3), Block("a b c d e f", 5)], 20)
    assert found == [Chunk("Guide › Set-up\n\na b c d e f", "Guide › Set-up", 5, 9)]


def test_a_section_that_is_small_is_joined_by_the_next() -> None:
    found = cut([Heading("One", 1, 1), Block("a", 2), Heading("Two", 1, 3), Block("b c", 4)], 20)
    assert [chunk.text for chunk in found] == ["One\n\na\n\nTwo\n\nb c"]


def test_a_section_that_is_large_begins_a_chunk() -> None:
    found = cut(
        [Heading("One", 1, 1), Block("a " * 6, 2), Heading("Two", 1, 3), Block("b c", 4)], 20
    )
    assert [chunk.section for chunk in found] == ["One", "Two"]


def test_a_heading_with_nothing_below_it_is_kept() -> None:
    found = cut([Heading("One", 1, 1), Heading("Two", 1, 2), Heading("Three", 1, 3)], 20)
    assert [chunk.text for chunk in found] == ["One\n\nTwo\n\nThree"]


def test_a_long_path_loses_its_outer_parts() -> None:
    found = cut([Heading("a b c", 1, 1), Heading("d", 2, 2), Block("x", 3)], 8)
    assert found[0].section == "d"


def test_a_paragraph_is_cut_between_sentences_and_knows_its_lines() -> None:
    found = cut([Block("One two.\nThree 3.5 four. Five six seven.", 10)], 4)
    assert [(chunk.text, chunk.place) for chunk in found] == [
        ("One two.", 10),
        ("Three 3.5 four.", 11),
        ("Five six seven.", 11),
    ]


def test_code_is_cut_between_lines() -> None:
    found = cut([Block("if a. b:\n    c d\n\n    e", 1, has_lines=True)], 3)
    assert [(chunk.text, chunk.place) for chunk in found] == [
        ("if a. b:", 1),
        ("    c d\n\n    e", 2),
    ]


def test_pages_are_not_counted_on() -> None:
    found = cut([Block("One two.\nThree four.", 7)], 2, counts_lines=False)
    assert [chunk.place for chunk in found] == [7, 7]


def test_a_text_without_spaces_is_cut_too() -> None:
    found = cut([Block("x" * 10_000, 1)], 10)
    assert "".join(chunk.text for chunk in found) == "x" * 10_000
    assert max(len(chunk.text) for chunk in found) <= 10 * 26


prose = st.text(alphabet="ab.1 \n\té", max_size=200)
part = st.one_of(
    st.builds(Heading, prose, st.integers(0, 4), st.just(1), st.booleans()),
    st.builds(Block, prose, st.just(1), st.sampled_from(["\n", "\n\n"]), st.booleans()),
)


@given(st.lists(part, max_size=12), st.integers(4, 40))
def test_no_block_loses_a_word_and_no_chunk_is_too_large(
    parts: list[Heading | Block], tokens: int
) -> None:
    found = cut(parts, tokens)
    assert all(chunk.text.strip() and chunk.tokens <= tokens for chunk in found)
    whole = "".join("".join(chunk.text.split()) for chunk in found)
    rest = whole
    for block in parts:
        if isinstance(block, Block):
            for word in re.split(r"\s+", block.text):
                assert word in rest
                rest = rest[rest.index(word) + len(word) :] if word else rest
