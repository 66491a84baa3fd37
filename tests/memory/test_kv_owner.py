"""Marks: equal text in two domains is different to whoever compares tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos.memory.kv_owner import Owner, marked, unmarked

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=20)
OWNERS = st.builds(Owner, domain=st.sampled_from(["", "a", "b"]), public_tokens=st.integers(0, 12))


@given(tokens=TOKENS, owner=OWNERS)
def test_unmarking_gives_the_tokens_back(tokens: list[int], owner: Owner) -> None:
    assert unmarked(marked(tokens, owner)) == tokens


@given(tokens=TOKENS, owner=OWNERS, cut=st.integers(0, 20))
def test_a_sequence_marked_in_parts_is_as_one_marked_at_once(
    tokens: list[int], owner: Owner, cut: int
) -> None:
    parts = [*marked(tokens[:cut], owner), *marked(tokens[cut:], owner, start=len(tokens[:cut]))]
    assert parts == marked(tokens, owner)


@given(tokens=TOKENS, public=st.integers(0, 12))
def test_two_domains_have_only_the_public_tokens_in_common(tokens: list[int], public: int) -> None:
    one = marked(tokens, Owner(domain="a", public_tokens=public))
    other = marked(tokens, Owner(domain="b", public_tokens=public))
    assert one[:public] == other[:public]
    assert set(one[public:]).isdisjoint(other[public:])
