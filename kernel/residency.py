"""Where the KV of a device's generations is, and the moves that bring it there.

Owns the bookkeeping of the device's sequences (`memory/kv.py`) and makes the driver agree with it:
a generation that is placed starts from the longest prefix that is held anywhere; one that must give
way is saved; one that ends leaves its KV as a prefix for others. What the device has no room for
moves to the tiers below (`memory/tiers.py`). Refuses to know policies, steps and text.

Used on the device's engine thread only. One residency belongs to one open driver; the tiers outlive
it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmos.drivers import kv_blob
from llmos.drivers.contract import DeviceError, LanguageModel, SequenceId
from llmos.kernel.generation import Generation, Order
from llmos.kernel.kv_domain import common_tokens
from llmos.kernel.pace import Pace
from llmos.kernel.threads import contained
from llmos.memory.kv import Grant, Idle, KVSpace
from llmos.memory.kv_owner import Owner, is_passing
from llmos.memory.tiers import STOP_S, WORTH_KEEPING_TOKENS, Found, Tiers, share_of_memory

log = logging.getLogger("llmos.kernel")


class Holdings(NamedTuple):
    """What is held, for the device's gauges."""

    cached_sequences: int
    kv_tokens: int
    shared_tokens: int  # prompt tokens that needed no prefill
    swapped_bytes: int


class Residency:
    """The sequences of an open driver. `attach` brings an adapter to it, unless it is there."""

    def __init__(
        self,
        driver: LanguageModel,
        *,
        attach: Callable[[str], object],
        pace: Pace | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        info = driver.info
        self._driver = driver
        self._attach = attach
        self._pace = pace or Pace()
        self._tiers = tiers or Tiers(host_bytes=share_of_memory())
        self._can_save, self._can_fork = info.abilities.can_save, info.abilities.can_fork
        self._whole_only = not info.abilities.can_trim
        self._kv = KVSpace(
            sequences=info.sequences,
            context_tokens=info.context_tokens,
            shared_cells=info.kv_cells,
            can_fork=self._can_fork,
            whole_only=self._whole_only,
            returns=self._tiers.returns,
        )
        self._tiers.recompute_s, self._tiers.whole_only = self._recompute_s, self._whole_only
        if self._can_save:
            self._open_tiers()

    @property
    def is_full(self) -> bool:
        """Whether every sequence is in use."""
        return self._kv.active_sequences == self._kv.sequences

    @property
    def can_lend_early(self) -> bool:
        """Whether a prompt that is still being computed lends its beginning to others."""
        return self._can_fork and not self._whole_only

    def place(self, generation: Generation) -> bool:
        """Give a generation a sequence with the longest prefix of it that is held.

        False: there is no room until another lets go. Raises: DeviceError; the generation then has
        a sequence, which must be let go.
        """
        owner, tokens = _owner(generation), generation.known(0, generation.length)
        found = self._find(owner, tokens)
        grant = self._kv.acquire(
            tokens,
            owner,
            reserve=generation.order.max_tokens - len(generation.output),
            elsewhere_tokens=0 if found is None else found.tokens - self._restore_tokens(found),
        )
        if grant is None:
            return False
        generation.sequence = grant.sequence
        contained(lambda: self._prepare(generation, grant, found), is_fatal=False)
        return True

    def record(self, sequence: SequenceId, tokens: Sequence[int]) -> None:
        """Note that a step has fed tokens to a sequence."""
        self._kv.append(sequence, tokens)

    def swap_out(self, generation: Generation) -> None:
        """Take a generation's sequence; its KV moves to host memory where that pays.

        Raises: DeviceError, fatal, when the driver cannot go on.
        """
        assert generation.sequence is not None
        owner, tokens = _owner(generation), generation.known(0, generation.fed)
        if self._is_worth_saving(owner, tokens, lost_tokens=len(tokens)):
            state = self._save(generation.sequence)
            if state is not None:
                self._tiers.stow(owner, tokens, state, awaited_by=generation.entry.key)
        self._free(generation, keep=False)

    def let_go(self, generation: Generation, *, keep: bool) -> None:
        """Take back all that a generation holds; `keep` leaves its KV for others to reuse.

        Raises: DeviceError, fatal, when the driver cannot free the sequence.
        """
        self._tiers.release(generation.entry.key)
        if generation.sequence is not None:
            self._free(generation, keep=keep)

    def end_domain(self, domain: str) -> None:
        """Free what nobody can ask for any more, because the domain has ended.

        Raises: DeviceError, fatal, when the driver cannot free a sequence.
        """
        self._tiers.end_domain(domain)
        for sequence, tokens in self._kv.end_domain(domain):
            self._trim(sequence, tokens)

    def let_adapter_go(self, adapter: str) -> None:
        """Take the cached KV of an adapter off the device; what is worth it moves to the tiers.

        Raises: DeviceError, fatal, when the driver cannot free a sequence.
        """
        for idle in self._kv.forget_adapter(adapter):
            self._keep(idle)
            self._trim(idle.sequence, 0)

    def close(self) -> None:
        """Write what is worth most for the next kernel, within the tiers' limits; at the end."""
        until_s = time.monotonic() + STOP_S
        try:
            if self._can_save:
                for idle in self._kv.idle():
                    self._persist(idle, until_s)
            for stowed in self._tiers.lasting():
                assert stowed.state is not None
                self._tiers.persist(stowed.owner, stowed.tokens, stowed.state, until_s=until_s)
        except DeviceError as problem:
            log.warning("KV is not kept for the next start: %s", problem)
        finally:
            self._tiers.close()

    def holdings(self) -> Holdings:
        """What is held now."""
        kv = self._kv
        return Holdings(
            kv.cached_sequences, kv.used_tokens, kv.shared_tokens, self._tiers.host_bytes
        )

    # --- placing ---

    def _find(self, owner: Owner, tokens: Sequence[int]) -> Found | None:
        """A saved sequence that is worth restoring for a prompt, if the device has nothing like it.

        At least the last token is left to be fed, because its logits are needed.
        """
        found = self._tiers.find(owner, tokens, len(tokens) - 1) if self._can_save else None
        if found is None or found.tokens <= self._restore_tokens(found):
            return None
        return found

    def _prepare(self, generation: Generation, grant: Grant, found: Found | None) -> None:
        """Bring the driver to what the grant says, and the generation's own state with it."""
        driver, sequence, reused = self._driver, grant.sequence, grant.reused_tokens
        # Taken before the others are kept: they may push what was found out of host memory.
        state = self._tiers.take(found) if found is not None and reused == 0 else None
        for idle in grant.lost:
            self._keep(idle)
        for freed in grant.freed:
            self._trim(freed, 0)
        if grant.source is not None:
            driver.fork(grant.source, sequence, reused)
        elif driver.length(sequence) > reused:
            self._trim(sequence, reused)
        if found is not None and state is not None:
            reused = self._restore(found, state, sequence)
            self._kv.restored(sequence, generation.known(0, reused))
        adapter = generation.order.adapter
        if adapter is not None:  # it was attached, but perhaps before a reopen
            self._attach(adapter)
        driver.add(
            sequence,
            sampling=generation.order.sampling,
            constraint=generation.order.constraint,
            prompt=generation.order.prompt,
            generated=generation.output,
            adapter=adapter,
        )
        generation.fed = reused

    def _restore(self, found: Found, state: bytes, sequence: SequenceId) -> int:
        """Fill an empty sequence from a saved one's state; how many tokens it then holds."""
        started = time.perf_counter()
        try:
            self._driver.restore(state, sequence)
        except DeviceError as problem:
            if problem.is_fatal:
                raise
            log.warning("a saved sequence cannot be restored and is computed again: %s", problem)
            self._tiers.refuse(found)
            return 0
        self._pace.observe_copy(
            tokens=len(found.stowed.tokens), seconds=time.perf_counter() - started
        )
        if self._driver.length(sequence) > found.tokens:
            self._driver.trim(sequence, found.tokens)
        return found.tokens

    def _free(self, generation: Generation, *, keep: bool) -> None:
        sequence, generation.sequence = generation.sequence, None
        assert sequence is not None
        generation.fed = 0
        if not self._kv.release(sequence, keep=keep):
            self._trim(sequence, 0)

    def _trim(self, sequence: SequenceId, tokens: int) -> None:
        """Trim a sequence; a driver that cannot is not to be trusted with any other either."""
        try:
            contained(lambda: self._driver.trim(sequence, tokens), is_fatal=True)
        except DeviceError as problem:
            problem.is_fatal = True  # the KV and our account of it disagree
            raise

    # --- keeping ---

    def _keep(self, idle: Idle) -> None:
        """Save an idle sequence before it goes, where that is cheaper than computing it again."""
        if self._is_worth_saving(idle.owner, idle.tokens, lost_tokens=idle.lost_tokens):
            state = self._save(idle.sequence)
            if state is not None:
                self._tiers.stow(idle.owner, idle.tokens, state, used_s=idle.used_s)

    def _is_worth_saving(self, owner: Owner, tokens: Sequence[int], *, lost_tokens: int) -> bool:
        """Whether copying a sequence out and in is cheaper than computing what would be lost."""
        copying_s = 2 * self._pace.copy_s(len(tokens))
        return self._recompute_s(lost_tokens) > copying_s and self._tiers.wants(
            owner, tokens, lost_tokens=lost_tokens
        )

    def _save(self, sequence: SequenceId) -> bytes | None:
        """A sequence's state; None where the driver cannot: it is computed again then."""
        if not self._can_save:
            return None
        tokens, started = self._driver.length(sequence), time.perf_counter()
        try:
            state = contained(lambda: self._driver.save(sequence), is_fatal=False)
        except DeviceError as problem:
            if problem.is_fatal:
                raise
            return None
        self._pace.observe_copy(tokens=tokens, seconds=time.perf_counter() - started)
        return state

    def _persist(self, idle: Idle, until_s: float) -> None:
        """Write an idle sequence; of one whose domain ends with this kernel, the public tokens.

        Those are not to be had where a sequence cannot be cut.
        """
        tokens = idle.tokens
        if is_passing(idle.owner.domain):
            tokens = tokens[: idle.owner.public_tokens]
        if len(tokens) < WORTH_KEEPING_TOKENS or time.monotonic() >= until_s:
            return
        if len(tokens) < len(idle.tokens):
            if self._whole_only:
                return
            self._driver.trim(idle.sequence, len(tokens))
        owner = idle.owner._replace(
            domain="" if is_passing(idle.owner.domain) else idle.owner.domain
        )
        state = self._save(idle.sequence)
        if state is not None:
            self._tiers.persist(owner, tokens, state, until_s=until_s)

    def _open_tiers(self) -> None:
        """Let the tiers know whose states these are, by what an empty one says of itself."""
        try:
            self._tiers.open(kv_blob.owner(self._driver.save(0)).hex())
        except DeviceError as problem:
            log.warning("saved sequences of an earlier start are not used: %s", problem)

    def _recompute_s(self, tokens: int) -> float:
        return self._pace.prompt_s(tokens, batch_tokens=self._driver.info.batch_tokens)

    def _restore_tokens(self, found: Found) -> int:
        """How many tokens would be computed in the time that restoring takes."""
        seconds = self._pace.copy_s(len(found.stowed.tokens)) + self._tiers.fetch_s(found)
        return self._pace.prompt_within(seconds, batch_tokens=self._driver.info.batch_tokens)


def shareable_tokens(one: Order, other: Order) -> int:
    """How many tokens at the start of one prompt the KV of another may serve."""
    if one.adapter != other.adapter:
        return 0
    count = common_tokens(one.prompt, other.prompt)
    if one.domain != other.domain:
        count = min(count, _public_tokens(one), _public_tokens(other))
    return count


def _public_tokens(order: Order) -> int:
    return order.public_tokens if order.domain else len(order.prompt)


def _owner(generation: Generation) -> Owner:
    order = generation.order
    entry = generation.entry
    return Owner(order.adapter, order.domain, order.public_tokens, entry.program, entry.nice)
