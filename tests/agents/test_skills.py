"""Skills: worked examples as notes, and as turns of a conversation."""

from __future__ import annotations

from llmos.agents.skills import shown, skill
from llmos.syscalls.calls import Note
from llmos.syscalls.content import assistant, user
from llmos.syscalls.results import Hit


def _hit(number: int, note: Note) -> Hit:
    return Hit(
        id=number,
        text=note.text,
        namespace="n",
        score=1.0 / number,
        parts={},
        metadata=note.metadata,
        created_at=0.0,
        kind=note.kind,
    )


def test_a_skill_is_a_procedural_note_found_by_its_task() -> None:
    note = skill("Translate: cat", "Katze")
    assert (note.kind, note.text, note.metadata) == (
        "procedural",
        "Translate: cat",
        {"answer": "Katze"},
    )


def test_the_nearest_example_is_shown_last() -> None:
    hits = [_hit(1, skill("dog", "Hund")), _hit(2, skill("cat", "Katze"))]
    assert shown(hits) == [user("cat"), assistant("Katze"), user("dog"), assistant("Hund")]


def test_a_recipe_without_an_answer_is_no_turn() -> None:
    assert shown([_hit(1, Note(text="First boil water.", kind="procedural"))]) == []
