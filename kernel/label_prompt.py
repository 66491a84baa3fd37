"""How a language model is asked for a label: the instruction, the examples, and what it may say.

Owns the words of the prompt and the way from what is said back to a label. Pure functions; who
picks the examples is `prompting.py`, who generates is `scoring.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmos.syscalls.content import Message, assistant, system, user

INSTRUCTION = "Name the label of the text."


class Shot(NamedTuple):
    """A worked example: a text, and the label or answer to it."""

    text: str
    answer: str


def spoken(labels: Sequence[str]) -> dict[str, str]:
    """Each label by how the model says it: "lost_card" as "lost card", where that is unmistakable.

    Where two labels would be said alike, both keep their own spelling.
    """
    plain = {label: " ".join(label.replace("_", " ").split()) or label for label in labels}
    alike = list(plain.values())
    return {(said if alike.count(said) == 1 else label): label for label, said in plain.items()}


def label_messages(
    text: str, choices: Mapping[str, str], *, shots: Sequence[Shot] = (), instruction: str | None
) -> list[Message]:
    """The prompt for one text; `choices` are as `spoken` gives them, the nearest shot is last.

    The labels stand first, so that prompts with the same choices share their computed beginning.
    """
    said = {label: words for words, label in choices.items()}
    messages = [system(f"{instruction or INSTRUCTION} Labels: {', '.join(choices)}.")]
    for shot in shots:
        messages += [user(shot.text), assistant(said.get(shot.answer, shot.answer))]
    return [*messages, user(text)]


def answer_messages(
    messages: Sequence[Message], *, shots: Sequence[Shot], instruction: str | None
) -> list[Message]:
    """A conversation with worked examples before its turns, after what the system says."""
    opening = [message for message in messages[:1] if message.role == "system"]
    rest = list(messages[len(opening) :])
    if instruction is not None and not opening:
        opening = [system(instruction)]
    for shot in shots:
        opening += [user(shot.text), assistant(shot.answer)]
    return [*opening, *rest]
