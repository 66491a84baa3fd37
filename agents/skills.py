"""Skills: worked examples kept as procedural notes, to be shown to a model before a like task.

A note's text is the task and its metadata holds the answer, so that tasks are found by how like
they are. Pure functions; `OS.examples` finds them.

Source: Liu et al., "What Makes Good In-Context Examples for GPT-3?", 2022, for choosing by
similarity and putting the nearest last.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.syscalls.calls import Note
from llmos.syscalls.content import Message, assistant, user
from llmos.syscalls.results import Hit

ANSWER = "answer"  # the metadata field that holds the answer


def skill(task: str, answer: str, *, importance: float = 0.5) -> Note:
    """A worked example as a note to remember."""
    return Note(text=task, metadata={ANSWER: answer}, kind="procedural", importance=importance)


def shown(hits: Sequence[Hit]) -> list[Message]:
    """Hits, best first, as turns of a conversation, the best last.

    A procedural note without an answer, such as a recipe, is no turn and is left out.
    """
    turns: list[Message] = []
    for hit in reversed(hits):
        answer = hit.metadata.get(ANSWER)
        if isinstance(answer, str):
            turns += [user(hit.text), assistant(answer)]
    return turns
