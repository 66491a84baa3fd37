"""The device of one task model: texts of all agents in shared passes, labelled.

How passes are made up and failures contained is every text device's matter (`text_device.py`).
Public methods are for the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from llmos.drivers.labeller import Labeller
from llmos.kernel.text_device import TextDevice
from llmos.kernel.text_queue import Item, Request
from llmos.kernel.threads import contained

Text = str | tuple[str, ...]  # to classify, or words to tag
Tags = list[tuple[str, float]]
Answer = list[float] | Tags


@dataclass(slots=True, eq=False)
class _Request(Request[Text, Answer]):
    """Texts to classify, or sentences to tag, for one of the model's tasks."""

    task: str | None = None
    is_tagging: bool = False


class TaskDevice(TextDevice[Labeller, _Request]):
    driver_kind = "task"
    noun = "task model"
    verb = "label"

    async def classify(
        self, texts: Sequence[str], *, sizes: Sequence[int], task: str | None
    ) -> list[list[float]]:
        """Each text's probabilities, in the order of `driver.classes(task)`.

        `sizes` are the tokens of each text. Raises: SyscallError("device").
        """
        found = await self._answers(_request(texts, sizes, task, is_tagging=False))
        return cast("list[list[float]]", found)

    async def tag(
        self, sentences: Sequence[tuple[str, ...]], *, sizes: Sequence[int], task: str | None
    ) -> list[Tags]:
        """Each word's label and its probability. Raises: SyscallError("device")."""
        found = await self._answers(_request(sentences, sizes, task, is_tagging=True))
        return cast("list[Tags]", found)

    # --- device thread ----------------------------------------------------------------------------

    def _pass_tokens(self, driver: Labeller) -> int:
        return driver.batch_tokens

    def _compute(self, items: Sequence[Item[_Request]]) -> int:
        kinds: dict[tuple[str | None, bool], list[Item[_Request]]] = {}
        for item in items:
            kinds.setdefault((item.request.task, item.request.is_tagging), []).append(item)
        for (task, is_tagging), alike in kinds.items():
            texts = [item.request.texts[item.place] for item in alike]
            found = contained(
                lambda texts=texts, task=task, is_tagging=is_tagging: self._labelled(
                    texts, task, is_tagging=is_tagging
                ),
                is_fatal=False,
            )
            for item, answer in zip(alike, found, strict=True):
                item.request.answers[item.place] = answer
        return len(items)

    def _labelled(
        self, texts: Sequence[Text], task: str | None, *, is_tagging: bool
    ) -> Sequence[Answer]:
        if is_tagging:
            return self.driver.tag(texts, task=task)
        return self.driver.classify(cast("Sequence[str]", texts), task=task)


def _request(
    texts: Sequence[Text], sizes: Sequence[int], task: str | None, *, is_tagging: bool
) -> _Request:
    return _Request(
        texts=texts,
        sizes=sizes,
        answers=[None] * len(texts),
        done=asyncio.get_running_loop().create_future(),
        missing=deque(range(len(texts))),
        task=task,
        is_tagging=is_tagging,
    )
