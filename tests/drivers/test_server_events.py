"""Events come out whole, however their bytes were cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.server_events import EventReader

# Characters that some readers of lines take for a line's end; the format does not.
TEXTS = st.text(st.sampled_from('a {}\u2028\u0085\x0b\x1c€"é:'), min_size=1, max_size=12)


@given(
    st.lists(TEXTS, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_events_do_not_depend_on_how_the_bytes_were_cut(
    texts: list[str], line_end: str, cuts: list[int]
) -> None:
    stream = "".join(f"data: {text}{line_end}{line_end}" for text in texts).encode() + b":"
    reader, found, position, turn = EventReader(), [], 0, 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        found += reader.push(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert found == texts


def test_comments_and_other_fields_are_no_data() -> None:
    stream = b": keep-alive\n\nevent: x\nid: 7\ndata: one\ndata:two\n\nretry: 5\n\n"
    assert EventReader().push(stream) == ["one\ntwo"]


def test_an_event_without_end_is_refused() -> None:
    reader = EventReader()
    with pytest.raises(ValueError, match="larger"):
        for _ in range(20):
            reader.push(b"x" * 1_000_000)
