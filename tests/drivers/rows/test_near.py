"""Near-duplicates: as brute force would find them."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.drivers.rows.kinds import ChatRow, LabelledRow
from llmos.drivers.rows.near import (
    SHINGLE_CHARS,
    THRESHOLD,
    near_duplicates,
    shingles_of,
    similarity,
    without_near_duplicates,
    without_near_leaks,
)
from llmos.drivers.rows.splits import Split
from llmos.syscalls.content import assistant, system, user

_WORDS = ("card", "lost", "my", "please", "help", "money", "transfer", "where", "is", "the")


def labelled(texts: list[str], label: str = "x") -> list[LabelledRow]:
    return [LabelledRow(text, label, f"row {i}") for i, text in enumerate(texts)]


def runs(text: str) -> set[str]:
    plain = " ".join(text.casefold().split()) or " "
    width = min(SHINGLE_CHARS, len(plain))
    return {plain[i : i + width] for i in range(len(plain) - width + 1)}


def overlap(a: str, b: str) -> float:
    return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_that_of_the_sets_of_runs(a: str, b: str) -> None:
    assert similarity(shingles_of(a), shingles_of(b)) == overlap(a, b)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_what_is_found_is_what_comparing_all_finds(seed: int) -> None:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(3, 12))) for _ in range(40)]
    texts += [draw.choice(texts) + draw.choice(("", "!", " now")) for _ in range(20)]
    draw.shuffle(texts)
    expected: list[int] = []
    kept: list[str] = []
    for index, text in enumerate(texts):
        if any(overlap(text, one) >= THRESHOLD for one in kept):
            expected.append(index)
        else:
            kept.append(text)
    assert [one.row for one in near_duplicates(labelled(texts))] == expected


@given(st.lists(st.text("ab ", max_size=12), max_size=30))
def test_what_is_left_has_no_near_duplicates_and_its_order(texts: list[str]) -> None:
    rows = labelled(texts)
    left, dropped = without_near_duplicates(rows)
    assert near_duplicates(left) == []
    assert len(left) + len(dropped) == len(rows)
    assert left == [row for row in rows if row in left]


def test_case_and_spacing_do_not_make_a_text_new() -> None:
    (found,) = near_duplicates(labelled(["Where is my card?", "where  is\nMY card?"]))
    assert (found.row, found.of, found.similarity) == (1, 0, 1.0)


def test_a_repetition_with_another_label_is_kept_and_told() -> None:
    rows = [LabelledRow("Where is it?", "a", "1"), LabelledRow("Where is it?", "b", "2")]
    left, (found,) = without_near_duplicates(rows)
    assert left == rows and found.is_conflict


def test_a_shared_system_prompt_does_not_make_conversations_alike() -> None:
    prompt = system("You are a helpful assistant that answers at length. " * 20)
    rows = [
        ChatRow((prompt, user("What is the capital of France?"), assistant("Paris")), "1"),
        ChatRow((prompt, user("How many legs has a spider?"), assistant("Eight")), "2"),
    ]
    assert near_duplicates(rows) == []


def test_training_gives_way_to_what_judges_it() -> None:
    asked = labelled(["Where is my new card?", "Where is my new card", "How do I pay my bill?"])
    done = without_near_leaks(Split(train=asked[1:], dev=[], test=asked[:1]))
    assert done.split == ([asked[2]], [], [asked[0]])
    assert done.dropped == [("row 1", "row 0")]


def test_a_huge_row_has_its_place_too() -> None:
    text = "".join(random.Random(0).choices("abcdefghij ", k=1_000_000))
    found = near_duplicates(labelled([text, "short", text + " end"]))
    assert [(one.row, one.of) for one in found] == [(2, 0)]
