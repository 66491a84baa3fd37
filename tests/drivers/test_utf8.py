"""Text out of token bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.utf8 import TextStream

# Few letters, so that stop strings overlap the text and each other often.
LETTERS = st.text("abé☕", max_size=12)
STOPS = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of the given sizes, the rest last."""
    pieces: list[bytes] = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def read(pieces: list[bytes], stop: list[str]) -> tuple[list[str], TextStream]:
    stream = TextStream(stop)
    texts = [stream.push(piece) for piece in pieces]
    return [*texts, stream.finish()], stream


def reference(text: str, stop: list[str]) -> str:
    """The text up to the stop string that is complete first when reading letter by letter."""
    for end in range(1, len(text) + 1):
        complete = [one for one in stop if text[:end].endswith(one)]
        if complete:
            return text[: end - max(len(one) for one in complete)]
    return text


@given(LETTERS, STOPS, st.lists(st.integers(0, 4), max_size=20))
def test_the_text_does_not_depend_on_how_the_bytes_are_cut(
    text: str, stop: list[str], sizes: list[int]
) -> None:
    texts, stream = read(cut(text.encode(), sizes), stop)
    assert "".join(texts) == reference(text, stop)
    assert stream.stopped == any(one in text for one in stop)


@given(st.text(max_size=30), st.lists(st.integers(0, 3), max_size=40))
def test_no_piece_holds_half_a_character(text: str, sizes: list[int]) -> None:
    data = text.encode("utf-8", errors="replace")
    texts, _ = read(cut(data, sizes), [])
    assert "".join(texts) == data.decode()
    assert "�" not in "".join(texts) or "�" in text


@given(st.binary(max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_any_bytes_give_text_and_the_same_however_cut(data: bytes, sizes: list[int]) -> None:
    texts, _ = read(cut(data, sizes), [])
    assert "".join(texts) == data.decode("utf-8", errors="replace")


def test_a_character_comes_out_with_its_last_byte() -> None:
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "🦙".encode()] == ["", "", "", "🦙"]


def test_an_unfinished_character_is_shown_as_unreadable_at_the_end() -> None:
    stream = TextStream()
    assert stream.push("ab☕".encode()[:-1]) == "ab"
    assert stream.finish() == "�"


def test_text_that_may_begin_a_stop_string_waits() -> None:
    stream = TextStream(["\nUser:"])
    assert stream.push(b"Hello\nUs") == "Hello"
    assert stream.push(b"ed") == "\nUsed"
    assert not stream.stopped


def test_what_follows_a_stop_string_is_ignored() -> None:
    stream = TextStream(["STOP"])
    assert stream.push(b"go ST") == "go "
    assert stream.push(b"OP and more") == ""
    assert stream.stopped
    assert stream.stop_string == "STOP"
    assert stream.push(b"even more") == ""
    assert stream.finish() == ""


def test_held_back_text_is_given_at_the_end() -> None:
    stream = TextStream(["STOP"])
    assert stream.push(b"ST") == ""
    assert stream.finish() == "ST"


def test_the_stop_string_that_is_complete_first_wins() -> None:
    texts, stream = read([b"xbcy"], ["bcd", "c"])
    assert "".join(texts) == "xb"
    assert stream.stop_string == "c"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        TextStream(["a", ""])
