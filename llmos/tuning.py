"""The stages of `llmos tune`: which candidates are measured, in which order, and which one wins.

First the number formats of the weights, with default settings. Then, for the winner alone, one
setting after another: flash attention, threads, sizes of step and pass, KV's format and layout.
Owns the choosing; what it asks of a machine is a `Bench`, so that it can be tested without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from llmos.drivers.contract import DeviceError
from llmos.drivers.llama_perplexity import loss
from llmos.drivers.llama_requantise import BITS, Format, Shipped
from llmos.drivers.tuning import Speed, cost_ms
from llmos.memory.tuned import Choice, Row, WeightsName

# A copy costs disk, memory and a little exactness, and rates are never measured twice the same.
LEAST_GAIN = 0.05
MOST_SETTINGS_S = 75.0
MOST_LOSS = 0.01
# Formats within this of the best are as fast: rates move more than that from run to run.
_AS_FAST = 1.1

# The formats worth trying by themselves. F32 is twice the size of F16 and nowhere faster; Q4_1 is
# there because models are shipped in it.
_TRIED: tuple[Format, ...] = ("BF16", "F16", "Q8_0", "Q4_0")


class Bench(Protocol):
    """What can be asked of a machine and one model on it. All raise DeviceError."""

    def bytes(self, weights: WeightsName) -> int:
        """The size of the file in a format, made by now."""
        ...

    def speed(self, choice: Choice) -> Speed: ...

    def entropy(self, choice: Choice) -> float:
        """Nats per token of a text; the same text each time."""
        ...


class Room(NamedTuple):
    """Bytes that are free."""

    memory: int
    disk: int


class Candidate(NamedTuple):
    """A format, and why it is not measured, if so."""

    format: Format
    refusal: str | None = None


class Tell(Protocol):
    """Hears what is being done, and what was measured."""

    def __call__(self, doing: str, row: Row | None = None) -> None: ...


def candidates(
    shipped: Shipped, room: Room, wanted: Sequence[Format] | None = None
) -> Iterator[Candidate]:
    """The formats to compare with the shipped file, each with a refusal where it cannot be.

    Without `wanted`: those that compute faster on some processors.
    """
    for format in wanted if wanted is not None else _TRIED:
        if format == shipped.format:
            continue
        needed = int(shipped.parameters * BITS[format] / 8)
        if needed > room.memory:
            yield Candidate(format, f"needs {_gib(needed)} of memory, {_gib(room.memory)} are free")
        elif needed > room.disk:
            yield Candidate(format, f"needs {_gib(needed)} of disk, {_gib(room.disk)} are free")
        else:
            yield Candidate(format)


class Tuning:
    """One run. `rows` are all that was measured, the shipped file first."""

    def __init__(
        self,
        bench: Bench,
        tell: Tell,
        *,
        most_loss: float = MOST_LOSS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rows: list[Row] = []
        self._bench = bench
        self._tell = tell
        self._most_loss = most_loss
        self._clock = clock
        self._reference: float | None = None  # entropy of the shipped file

    def choose_format(self, formats: Sequence[Candidate]) -> Row:
        """Measure the shipped file and the candidates; returns the row of the winner.

        Perplexity is measured from the fastest candidate on, until one passes; of those about as
        fast, the one that loses least is taken. What is slower than the file as shipped need not be
        known better. Raises: DeviceError when not even the shipped
        file can be measured.
        """
        shipped = self._measure(Choice())
        self._add(shipped)
        made: list[Row] = []
        for candidate in formats:
            choice = Choice(weights=candidate.format)
            if candidate.refusal is not None:
                self._add(Row(choice=choice, bytes=0, note=candidate.refusal))
                continue
            try:
                row = self._measure(choice)
            except DeviceError as problem:
                self._add(Row(choice=choice, bytes=0, note=str(problem)))
                continue
            self._add(row)
            made.append(row)
        winner: Row | None = None
        for row in sorted(made, key=_cost):
            is_close = winner is None or _cost(row) <= _cost(winner) * _AS_FAST
            if not _gains(row, shipped) or not is_close:
                break
            judged = self._judged(row)
            self._replace(row, judged)
            if not judged.note and (winner is None or _loss(judged) < _loss(winner)):
                winner = judged
        return winner or shipped

    def choose_settings(self, best: Row, cores: int) -> Row:
        """Vary the settings of a format one after another; returns the row of the best.

        A setting must win twice, measured beside what it would replace. Stops after a while: what
        was not tried stays at its default.
        """
        ends = self._clock() + MOST_SETTINGS_S
        for variants in _dimensions(cores):
            for change in variants:
                if self._clock() > ends:
                    self._tell("enough time was spent: the other settings stay as they are")
                    return best
                best = self._better(best, best.choice.model_copy(update=change))
        return best

    # --- internals ---

    def _better(self, best: Row, choice: Choice) -> Row:
        """`best`, or a row for `choice` if that is better without doubt."""
        try:
            row = self._measure(choice)
            if _gains(row, best):
                # Whichever of the two met a busy moment gets a second chance.
                best = _faster(best, self._measure(best.choice))
                row = _faster(row, self._measure(choice))
        except DeviceError as problem:
            self._add(Row(choice=choice, bytes=best.bytes, note=str(problem)))
            return best
        is_better = _gains(row, best)
        if is_better and choice.kv_type != best.choice.kv_type:
            row = self._judged(row)
            is_better = not row.note
        else:
            row = row.model_copy(update={"loss": best.loss})
        self._add(row)
        return row if is_better else best

    def _measure(self, choice: Choice) -> Row:
        self._tell(_named(choice))
        speed = self._bench.speed(choice)
        return Row(
            choice=choice,
            bytes=self._bench.bytes(choice.weights),
            prefill=round(speed.prefill, 1),
            decode={size: round(rate, 1) for size, rate in speed.decode.items()},
            cost_ms=round(cost_ms(speed), 3),
        )

    def _judged(self, row: Row) -> Row:
        """The row with its perplexity against the shipped file's, and a note when that is lost."""
        if self._reference is None:
            self._tell("perplexity of the file as shipped")
            self._reference = self._bench.entropy(Choice())
        self._tell(f"perplexity of {_named(row.choice)}")
        lost = loss(self._bench.entropy(row.choice), self._reference)
        note = f"loses {lost:.1%} perplexity" if lost > self._most_loss else ""
        return row.model_copy(update={"loss": round(lost, 5), "note": note})

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._tell("", row)

    def _replace(self, old: Row, new: Row) -> None:
        self.rows[self.rows.index(old)] = new
        self._tell("", new)


def _dimensions(cores: int) -> Iterator[list[dict[str, object]]]:
    """Changes to try, those that matter most first. What the driver chooses by itself is the start:
    all cores, flash attention where it pays, passes as large as steps, the layout that it prefers.
    """
    fewer = sorted({cores - 1, cores // 2} - {0, cores}, reverse=True)
    yield [{"threads": threads} for threads in fewer]
    yield [{"flash_attention": False}]
    yield [{"micro_batch_tokens": 256}, {"micro_batch_tokens": 128}]
    yield [{"batch_tokens": 256}]
    yield [{"kv_type": "q8_0"}]
    yield [{"kv_layout": "unified"}]


def _gains(row: Row, over: Row) -> bool:
    return _cost(row) < _cost(over) * (1 - LEAST_GAIN)


def _cost(row: Row) -> float:
    assert row.cost_ms is not None, "only measured rows are compared"
    return row.cost_ms


def _loss(row: Row) -> float:
    assert row.loss is not None, "only judged rows are compared"
    return row.loss


def _faster(one: Row, other: Row) -> Row:
    """The better of two measurements of the same; what else is known stays."""
    if _cost(one) <= _cost(other):
        return one
    return other.model_copy(update={"loss": one.loss, "note": one.note})


def _named(choice: Choice) -> str:
    """A choice in a few words: what differs from the defaults."""
    changed = choice.model_dump(exclude_defaults=True)
    changed.pop("weights", None)
    return ", ".join([choice.weights, *(f"{name} {value}" for name, value in changed.items())])


def _gib(number_bytes: int) -> str:
    return f"{number_bytes / 2**30:.1f} GiB"
