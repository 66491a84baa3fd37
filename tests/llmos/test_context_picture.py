"""The picture of a window over time is well-formed and shows what was there."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from llmos.context_picture import draw
from llmos.syscalls.results import Composition, ContextInfo

SVG = "{http://www.w3.org/2000/svg}"


def info(model: str = "a<b", appends: int = 3) -> ContextInfo:
    history = [
        Composition(newest=n, tokens={"system": 10, "dialogue": 20 * n}, recomputed_tokens=n % 2)
        for n in range(1, appends + 1)
    ]
    return ContextInfo(
        context=1,
        model=model,
        budget_tokens=100,
        used_tokens=70,
        segments=(),
        actions=(),
        history=tuple(history),
    )


def test_each_append_is_a_column_and_each_loss_a_mark() -> None:
    root = ElementTree.fromstring(draw([info()]))
    said = [title.text for title in root.iter(f"{SVG}title")]
    assert said.count("system: 10") == 3
    assert "dialogue: 60" in said
    assert said.count("1 tokens computed again") == 2
    assert any("a<b" in (text.text or "") for text in root.iter(f"{SVG}text"))


def test_no_context_and_a_long_history_are_drawn_too() -> None:
    ElementTree.fromstring(draw([]))
    root = ElementTree.fromstring(draw([info(appends=1000), info()]))
    assert len(list(root.iter(f"{SVG}g"))) == 240 + 3
