"""Where the KV of a device's generations is, and the moves that bring it there.

Owns the KV bookkeeping (`memory/kv.py`) and makes the driver agree with it: a generation that is
placed starts from the longest prefix that is held anywhere; one that must give way is saved; one
that ends leaves its KV as a prefix for others. Refuses to know policies, steps and text.

Used on the device's engine thread only. One residency belongs to one open driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from llmos.drivers.contract import DeviceError, LanguageModel, SequenceId
from llmos.kernel.generation import Generation
from llmos.kernel.threads import contained
from llmos.memory.kv import Grant, KVSpace


class Holdings(NamedTuple):
    """What is held, for the device's gauges."""

    cached_sequences: int
    kv_tokens: int
    shared_tokens: int  # prompt tokens that needed no prefill
    swapped_bytes: int


class Residency:
    """The sequences of an open driver. `attach` brings an adapter to it, unless it is there."""

    def __init__(self, driver: LanguageModel, *, attach: Callable[[str], None]) -> None:
        info = driver.info
        self._driver = driver
        self._attach = attach
        self._kv = KVSpace(sequences=info.sequences, context_tokens=info.context_tokens)
        self._swapped_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether every sequence is in use."""
        return self._kv.active_sequences == self._kv.sequences

    def place(self, generation: Generation) -> bool:
        """Give a generation a sequence with the longest prefix of it that is held.

        False: there is no room until another lets go. Raises: DeviceError; the generation then has
        a sequence, which must be let go.
        """
        grant = self._kv.acquire(
            generation.known(0, generation.length),
            adapter=generation.order.adapter,
            domain=generation.order.domain,
        )
        if grant is None:
            return False
        generation.sequence = grant.sequence
        contained(lambda: self._prepare(generation, grant), is_fatal=False)
        return True

    def record(self, sequence: SequenceId, tokens: Sequence[int]) -> None:
        """Note that a step has fed tokens to a sequence."""
        self._kv.append(sequence, tokens)

    def swap_out(self, generation: Generation) -> None:
        """Take a generation's sequence; its KV moves to host memory where the driver can.

        Raises: DeviceError, fatal, when the driver cannot free the sequence.
        """
        sequence = generation.sequence
        assert sequence is not None
        if generation.fed and self._driver.info.abilities.can_save:
            # What cannot be saved is computed again.
            with suppress(DeviceError):
                blob = contained(lambda: self._driver.save(sequence), is_fatal=False)
                generation.saved, generation.saved_tokens = blob, generation.fed
                self._swapped_bytes += len(blob)
        self._free(generation, keep=False)

    def let_go(self, generation: Generation, *, keep: bool) -> None:
        """Take back all that a generation holds; `keep` leaves its KV for others to reuse.

        Raises: DeviceError, fatal, when the driver cannot free the sequence.
        """
        self._take_saved(generation)
        if generation.sequence is not None:
            self._free(generation, keep=keep)

    def holdings(self) -> Holdings:
        """What is held now."""
        kv = self._kv
        return Holdings(kv.cached_sequences, kv.used_tokens, kv.shared_tokens, self._swapped_bytes)

    def _prepare(self, generation: Generation, grant: Grant) -> None:
        """Bring the driver to what the grant says, and the generation's own state with it."""
        driver, sequence, reused = self._driver, grant.sequence, grant.reused_tokens
        adapter = generation.order.adapter
        if adapter is not None:  # it was attached, but perhaps before a reopen
            self._attach(adapter)
        for freed in grant.freed:
            driver.trim(freed, 0)
        if grant.source is not None:
            driver.fork(grant.source, sequence, reused)
        elif driver.length(sequence) > reused:
            driver.trim(sequence, reused)
        saved = self._take_saved(generation)
        if saved is not None and generation.saved_tokens > reused:
            driver.trim(sequence, 0)
            driver.restore(saved, sequence)
            reused = generation.saved_tokens
            self._kv.truncate(sequence, 0)
            self._kv.append(sequence, generation.known(0, reused))
        driver.add(
            sequence,
            sampling=generation.order.sampling,
            constraint=generation.order.constraint,
            prompt=generation.order.prompt,
            generated=generation.output,
            adapter=adapter,
        )
        generation.fed = reused

    def _take_saved(self, generation: Generation) -> bytes | None:
        saved, generation.saved = generation.saved, None
        self._swapped_bytes -= 0 if saved is None else len(saved)
        return saved

    def _free(self, generation: Generation, *, keep: bool) -> None:
        sequence, generation.sequence = generation.sequence, None
        assert sequence is not None
        generation.fed = 0
        if self._kv.release(sequence, keep=keep):
            return
        try:
            contained(lambda: self._driver.trim(sequence, 0), is_fatal=True)
        except DeviceError as problem:
            problem.is_fatal = True  # the KV and our account of it disagree
            raise
