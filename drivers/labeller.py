"""What a model that labels texts must do, whichever weights it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llmos.drivers.contract import Allocation
from llmos.drivers.task_folder import TaskHead


class Labeller(Protocol):
    """An open task model. All methods but `count` and `classes` run on its device thread."""

    @property
    def heads(self) -> tuple[TaskHead, ...]: ...

    @property
    def max_length_tokens(self) -> int:
        """Longest text that is read whole."""
        ...

    @property
    def batch_tokens(self) -> int:
        """About the tokens of one forward pass."""
        ...

    def count(self, text: str | Sequence[str]) -> int:
        """Tokens that are read of a text or of a sentence's words; any thread."""
        ...

    def classes(self, task: str | None = None) -> tuple[str, ...]:
        """The labels of the probabilities that `classify` gives; any thread."""
        ...

    def classify(self, texts: Sequence[str], *, task: str | None = None) -> list[list[float]]:
        """Probabilities of each text's classes, in their order. Raises: DeviceError."""
        ...

    def tag(
        self, sentences: Sequence[Sequence[str]], *, task: str | None = None
    ) -> list[list[tuple[str, float]]]:
        """A BIO label and its probability for each word of each sentence. Raises: DeviceError."""
        ...

    def allocations(self) -> list[Allocation]: ...

    def close(self) -> None: ...
