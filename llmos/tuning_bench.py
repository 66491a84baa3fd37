"""A model file on this machine, as `llmos tune` measures it.

Owns the copies that it makes: each is noted, and those that lost are deleted, also when the tuning
is interrupted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from llmos.drivers.contract import LanguageModel, ModelSpec
from llmos.drivers.llama_perplexity import cross_entropy
from llmos.drivers.llama_requantise import copy_path, requantised
from llmos.drivers.opening import open_language_model
from llmos.drivers.tuning import BATCHES, PROMPT_TOKENS, ROOM_TOKENS, Speed, measure_speed
from llmos.memory.tuned import Choice, WeightsName
from llmos.tuning import Room

_LEAST_SCORED_TOKENS = 512
SCORE_S = 10.0  # of prefill, for the text that is scored
TEXT = Path(__file__).with_name("tuning_text.md")


class ModelBench:
    """Measures one file; satisfies `Bench`. Leaving its block deletes what `win` did not name."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._made: dict[WeightsName, Path] = {}
        self._tokens: list[int] = []
        self._scored: int | None = None  # tokens of the text that are scored
        self._slowest_prefill = 1e9  # tokens a second

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for path in self._made.values():
            path.unlink(missing_ok=True)

    def is_made(self, weights: WeightsName) -> bool:
        """Whether a copy was made here, and not before."""
        return weights in self._made

    def win(self, weights: WeightsName) -> None:
        """Keep this copy."""
        self._made.pop(weights, None)

    def bytes(self, weights: WeightsName) -> int:
        return self._file(weights).stat().st_size

    def speed(self, choice: Choice) -> Speed:
        with self._opened(choice) as model:
            speed = measure_speed(model, self._text(model))
        self._slowest_prefill = min(self._slowest_prefill, speed.prefill)
        return speed

    def entropy(self, choice: Choice) -> float:
        assert self._tokens, "speed comes first: it reads the text as tokens"
        if self._scored is None:
            # The same tokens for all that are compared, and not for long on a slow model.
            self._scored = max(_LEAST_SCORED_TOKENS, int(SCORE_S * self._slowest_prefill))
        return cross_entropy(
            self._file(choice.weights),
            self._tokens[: self._scored],
            kv_type=choice.kv_type,
            flash_attention=choice.flash_attention,
            threads=choice.threads,
        )

    @contextmanager
    def _opened(self, choice: Choice) -> Generator[LanguageModel]:
        spec = ModelSpec(
            name="tuned",
            path=self._file(choice.weights),
            context_tokens=PROMPT_TOKENS + ROOM_TOKENS,
            sequences=BATCHES[-1],
            **choice.model_dump(exclude={"weights"}),
        )
        model = open_language_model("llama_cpp", spec)
        try:
            yield model
        finally:
            model.close()

    def _file(self, weights: WeightsName) -> Path:
        if weights == "shipped":
            return self._source
        path = copy_path(self._source, weights)
        if not path.exists():
            self._made[weights] = requantised(self._source, weights)
        return path

    def _text(self, model: LanguageModel) -> list[int]:
        self._tokens = self._tokens or model.tokenize(TEXT.read_text(encoding="utf-8"))
        return self._tokens


def room_for(source: Path) -> Room:
    """What a copy of a file may take here: nine tenths of what is free."""
    import psutil

    free = shutil.disk_usage(source.parent).free
    return Room(memory=int(psutil.virtual_memory().available * 0.9), disk=int(free * 0.9))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
