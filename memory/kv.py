"""Which tokens live in which driver sequence, and which sequence to give up when all are taken.

Pure bookkeeping: no driver calls. The caller makes the moves that a `Grant` describes. Used on the
device's engine thread only; nothing here is locked.

A sequence is *free* (holds nothing), *active* (owned by a running generation) or *idle* (a finished
generation's tokens, kept as a cached prefix). A prompt takes over an idle sequence when that loses
nothing that is not held elsewhere; else the prefix is forked, so that both go on.

The idle sequence that goes is the one that is worth least: the tokens that would have to be
computed again, by the time until somebody is expected back for them (`returns.py`). With equal
costs and known times that is Bélády's rule; with equal costs and unknown times it is LRU.

Sequences of one adapter share one tree. What a domain keeps to itself is marked in its tokens
(`kv_owner.py`), so that nothing here can confuse it with another's. Not protected: in one domain,
and for public tokens, the time that a prompt takes tells whether its prefix was cached.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmos.drivers.contract import SequenceId
from llmos.memory.kv_cells import Cells
from llmos.memory.kv_owner import EVERYBODY, Owner, marked, unmarked
from llmos.memory.radix import Match, RadixTree
from llmos.memory.returns import Returns
from llmos.syscalls.errors import KernelPanic, SyscallError


class Idle(NamedTuple):
    """What an idle sequence holds."""

    sequence: SequenceId
    owner: Owner
    tokens: tuple[int, ...]
    lost_tokens: int  # that no other sequence holds
    used_s: float


class Grant(NamedTuple):
    """A sequence for a prompt, and the moves that make its KV agree with the bookkeeping.

    The caller trims each of `freed` to 0, then either forks `reused_tokens` from `source` into
    `sequence`, or (source None) trims `sequence` to `reused_tokens`; then it feeds the rest.
    """

    sequence: SequenceId  # owned by the caller until `release`
    reused_tokens: int  # tokens of the prompt that need no prefill
    source: SequenceId | None  # fork from this one; None: they are in `sequence` itself
    freed: tuple[SequenceId, ...]  # evicted cached sequences; may include `sequence`
    # what the device holds no more once this is carried out; save it first to keep it
    lost: tuple[Idle, ...] = ()


@dataclass(slots=True)
class _Held:
    """A sequence that is active or idle."""

    owner: Owner
    is_active: bool
    limit_tokens: int  # what it may grow to while active
    used_s: float
    use: int  # counts up with every use, because clocks stand still


class KVSpace:
    """The bookkeeping of one device's KV cache.

    `shared_cells` is the size in tokens of one buffer that all sequences draw from and in which
    forks share (llama.cpp's unified KV); None: each sequence has `context_tokens` of its own and a
    fork copies. A prefix shorter than `fork_min_tokens` is computed rather than forked: all chat
    prompts open with the same few tokens, which are not worth a copy. `whole_only`: sequences
    cannot be cut (recurrent state), so that one serves only prompts that begin with all of it.
    Without `returns` time is counted in uses, and nobody is known to come back.
    Raises: ConfigError when one full sequence does not fit into the shared buffer.
    """

    def __init__(
        self,
        *,
        sequences: int,
        context_tokens: int,
        shared_cells: int | None = None,
        fork_min_tokens: int = 8,
        can_fork: bool = True,
        whole_only: bool = False,
        returns: Returns | None = None,
    ) -> None:
        self.sequences = sequences
        self.context_tokens = context_tokens
        self._shared_cells = shared_cells
        self._fork_min_tokens = fork_min_tokens
        self._can_fork = can_fork
        self._whole_only = whole_only
        self._shared_tokens = 0
        self._uses = 0
        self._returns = returns or Returns(lambda: float(self._uses))
        self.reset()

    def reset(self) -> None:
        """Forget every sequence: the device was reopened. Grants given before are void."""
        self._free = list(range(self.sequences))
        self._held: dict[SequenceId, _Held] = {}
        self._trees: dict[str | None, RadixTree] = {}  # by adapter
        self._cells = (
            None
            if self._shared_cells is None
            else Cells(self._shared_cells, context_tokens=self.context_tokens)
        )

    # --- the life of a sequence ---

    def acquire(
        self,
        tokens: Sequence[int],
        owner: Owner = EVERYBODY,
        *,
        reserve: int = 0,
        elsewhere_tokens: int = 0,
    ) -> Grant | None:
        """A sequence for a prompt, with the longest prefix that any sequence lends its owner.

        At least the last token is left to be fed, because its logits are needed. `reserve` is how
        many tokens will follow the prompt; it sets room aside only under `shared_cells`, where the
        caller must not append beyond it. A prefix shorter than `elsewhere_tokens` is not used: the
        caller has so many from somewhere else, for `restored`. None: no sequence, or no room, until
        an active one is released. Raises: SyscallError("context_overflow") for a prompt that can
        never fit.
        """
        if not tokens:
            raise KernelPanic("an empty prompt has no token to feed")
        if len(tokens) > self.context_tokens:
            raise SyscallError(
                "context_overflow",
                f"a prompt of {len(tokens)} tokens is longer than a sequence's "
                f"{self.context_tokens}; shorten it",
                prompt_tokens=len(tokens),
                limit_tokens=self.context_tokens,
            )
        prompt = marked(tokens, owner)
        limit = min(len(prompt) + reserve, self.context_tokens)
        match = self._match(self._trees.get(owner.adapter), prompt)
        choice = self._choose(match)
        if choice is None:
            return None
        if match.tokens < elsewhere_tokens:
            choice = choice._replace(reused_tokens=0, source=None)
        grant = self._with_room(choice, limit)
        if grant is None:
            return None
        grant = grant._replace(lost=self._losses(grant))
        self._commit(grant, owner, prompt, limit)
        return grant

    def append(self, sequence: SequenceId, tokens: Sequence[int]) -> None:
        """Record tokens that a step has fed to an active sequence."""
        held = self._active(sequence)
        if self.length(sequence) + len(tokens) > self.context_tokens:
            raise KernelPanic(f"sequence {sequence} grew over its {self.context_tokens} tokens")
        start = self.length(sequence)
        self._trees[held.owner.adapter].extend(sequence, marked(tokens, held.owner, start=start))
        if self._cells is not None:
            self._cells.extend(sequence, len(tokens))

    def restored(self, sequence: SequenceId, tokens: Sequence[int]) -> None:
        """Record tokens that an active, empty sequence has got from where they were saved."""
        self.append(sequence, tokens)
        self._shared_tokens += len(tokens)

    def truncate(self, sequence: SequenceId, tokens: int) -> None:
        """Record that the driver trimmed an active sequence to its first `tokens`."""
        self._active(sequence)
        if not 0 <= tokens <= self.length(sequence):
            raise KernelPanic(f"sequence {sequence} does not hold {tokens} tokens")
        self._cut(sequence, tokens)

    def release(self, sequence: SequenceId, *, keep: bool) -> bool:
        """End the caller's ownership; True when the tokens stay as a cached prefix.

        False: the driver must trim the sequence to 0. What an idle sequence holds already is not
        kept twice.
        """
        held = self._active(sequence)
        if keep:
            self._returns.went(held.owner.program)
        is_cached = any(not self._held[other].is_active for other in self._stand_ins(sequence))
        if not keep or is_cached or self.length(sequence) == 0:
            self._forget(sequence)
            return False
        held.is_active = False
        self._touch(held)
        return True

    def end_domain(self, domain: str) -> list[tuple[SequenceId, int]]:
        """Forget what nobody can ask for any more, because the domain has ended.

        Of its idle sequences only public beginnings stay that no other sequence holds, and are
        everybody's from now on; under `whole_only`, those that are the whole of a sequence. Returns
        to how many tokens the driver must trim each.
        """
        trimmed: list[tuple[SequenceId, int]] = []
        for sequence, held in sorted(self._held.items()):
            if held.is_active or held.owner.domain != domain:
                continue
            length = self.length(sequence)
            public = min(held.owner.public_tokens, length)
            held_elsewhere = length - self._lost(sequence)
            can_stay = public == length or not self._whole_only
            if not can_stay or public <= max(held_elsewhere, self._fork_min_tokens):
                self._forget(sequence)
                public = 0
            else:
                self._cut(sequence, public)
                held.owner = Owner(held.owner.adapter)
            trimmed.append((sequence, public))
        return trimmed

    def forget_adapter(self, adapter: str) -> list[Idle]:
        """Forget the idle sequences of an adapter; the driver must trim each to 0."""
        forgotten: list[Idle] = []
        for sequence, held in sorted(self._held.items()):
            if not held.is_active and held.owner.adapter == adapter:
                forgotten.append(self._as_idle(sequence, self._lost(sequence)))
                self._forget(sequence)
        return forgotten

    def idle(self) -> list[Idle]:
        """The idle sequences, those that are worth most first."""
        found = [s for s, held in self._held.items() if not held.is_active]
        found.sort(key=lambda s: self._eviction_order(s, self._lost(s)), reverse=True)
        return [self._as_idle(sequence, self._lost(sequence)) for sequence in found]

    # --- figures ---

    def length(self, sequence: SequenceId) -> int:
        """Tokens that a sequence holds; 0 for a free one."""
        held = self._held.get(sequence)
        return self._tree(sequence).length(sequence) if held else 0

    @property
    def total_tokens(self) -> int:
        """Capacity in tokens."""
        if self._cells is not None:
            return self._cells.total
        return self.sequences * self.context_tokens

    @property
    def used_tokens(self) -> int:
        """Tokens of `total_tokens` taken: a forked one counts once only where forks share cells."""
        if self._cells is not None:
            return self._cells.used
        return sum(self.length(sequence) for sequence in self._held)

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that needed no prefill since the start."""
        return self._shared_tokens

    @property
    def active_sequences(self) -> int:
        return sum(held.is_active for held in self._held.values())

    @property
    def cached_sequences(self) -> int:
        return len(self._held) - self.active_sequences

    @property
    def free_sequences(self) -> int:
        return len(self._free)

    def check(self) -> None:
        """Raises: KernelPanic when the accounting, the trees and the sequences disagree."""
        known = sorted([*self._free, *self._held])
        if known != list(range(self.sequences)):
            raise KernelPanic(f"sequences are lost or in two places: {known}")
        for adapter, tree in self._trees.items():
            tree.check()
            members = {s for s, held in self._held.items() if held.owner.adapter == adapter}
            if len(tree) != len(members) or not all(member in tree for member in members):
                raise KernelPanic(f"the tree of {adapter} does not hold exactly its sequences")
            if not members:
                raise KernelPanic(f"the tree of {adapter} is empty but kept")
        for sequence, held in self._held.items():
            if held.owner.adapter not in self._trees:
                raise KernelPanic(f"sequence {sequence} is in no tree")
            if self._cells is not None:
                self._cells.check(sequence, self.length(sequence))
            if self.length(sequence) > self.context_tokens:
                raise KernelPanic(f"sequence {sequence} is over its capacity")
            if not held.is_active and self.length(sequence) == 0:
                raise KernelPanic(f"idle sequence {sequence} holds nothing")
        if self.used_tokens > self.total_tokens:
            raise KernelPanic("more tokens are used than there are")

    # --- choosing ---

    def _match(self, tree: RadixTree | None, prompt: list[int]) -> Match:
        """What a prompt could start from, its last token left to be fed."""
        if tree is None:
            return Match(0, frozenset())
        look = tree.match_whole if self._whole_only else tree.match
        return look(prompt, len(prompt) - 1)

    def _stand_ins(self, sequence: SequenceId) -> frozenset[SequenceId]:
        """The sequences, this one included, that serve every prompt that this one does."""
        tree = self._tree(sequence)
        holders = tree.holders(sequence)
        if not self._whole_only:
            return holders
        return frozenset(s for s in holders if tree.length(s) == tree.length(sequence))

    def _choose(self, match: Match) -> Grant | None:
        """A lossless takeover, else a free sequence, else the idle one that is worth least."""
        idle = {
            s: self._lost(s, match.tokens if s in match.holders else 0)
            for s, held in self._held.items()
            if not held.is_active
        }
        lossless = [s for s, lost in idle.items() if lost == 0 and s in match.holders]
        if lossless:
            return Grant(min(lossless), match.tokens, None, ())
        if self._free:
            return self._fork(self._free[0], match, ())
        if not idle:
            return None
        victim = min(idle, key=lambda s: self._eviction_order(s, idle[s]))
        if victim in match.holders:
            return Grant(victim, match.tokens, None, ())
        return self._fork(victim, match, (victim,))

    def _fork(self, target: SequenceId, match: Match, freed: tuple[SequenceId, ...]) -> Grant:
        if not self._can_fork or not match.holders or match.tokens < self._fork_min_tokens:
            return Grant(target, 0, None, freed)
        return Grant(target, match.tokens, min(match.holders), freed)

    def _with_room(self, grant: Grant, limit_tokens: int) -> Grant | None:
        """The grant with as many further evictions as a shared buffer needs to hold it."""
        cells = self._cells
        if cells is None:
            return grant
        kept = set(self._held) - {grant.sequence, *grant.freed}
        promised = sum(
            max(0, held.limit_tokens - self.length(sequence))
            for sequence, held in self._held.items()
            if held.is_active
        )
        while True:
            needed = limit_tokens - _shared(cells, kept, grant)
            if cells.held_by(kept) + promised + needed <= cells.total:
                return grant
            idle = [s for s in kept if not self._held[s].is_active and s != grant.source]
            if not idle:
                return None
            victim = min(idle, key=lambda s: self._eviction_order(s, self._lost(s)))
            kept.discard(victim)
            grant = grant._replace(freed=(*grant.freed, victim))

    def _losses(self, grant: Grant) -> tuple[Idle, ...]:
        """The idle sequences whose tokens a grant takes from the device."""
        lost = [(victim, self._lost(victim)) for victim in grant.freed]
        if grant.sequence in self._held and grant.sequence not in grant.freed:
            lost.append((grant.sequence, self._lost(grant.sequence, grant.reused_tokens)))
        return tuple(self._as_idle(victim, tokens) for victim, tokens in lost if tokens)

    def _commit(self, grant: Grant, owner: Owner, prompt: list[int], limit_tokens: int) -> None:
        for victim in grant.freed:
            self._forget(victim)
        if grant.source is not None:
            self._touch(self._held[grant.source])
        if grant.sequence in self._held:
            taken = self._held[grant.sequence]
            self._cut(grant.sequence, grant.reused_tokens)
            taken.owner, taken.is_active, taken.limit_tokens = owner, True, limit_tokens
        else:
            self._free.remove(grant.sequence)
            self._held[grant.sequence] = _Held(
                owner, True, limit_tokens, self._returns.now(), self._uses
            )
            tree = self._trees.setdefault(owner.adapter, RadixTree())
            tree.add(grant.sequence)
            tree.extend(grant.sequence, prompt[: grant.reused_tokens])
            if self._cells is not None:
                self._cells.add(grant.sequence)
                if grant.source is not None:
                    self._cells.fork(grant.source, grant.sequence, grant.reused_tokens)
        self._shared_tokens += grant.reused_tokens
        self._returns.came_back(owner.program)

    # --- eviction by worth ---

    def _lost(self, sequence: SequenceId, kept_tokens: int = 0) -> int:
        """Tokens that no sequence holds any more once this one is cut to `kept_tokens`."""
        given_up = self.length(sequence) - kept_tokens
        if self._whole_only:
            return given_up  # of another that begins like it nothing can be had
        return min(given_up, self._tree(sequence).only_here(sequence))

    def _eviction_order(self, sequence: SequenceId, lost_tokens: int) -> tuple[float, int]:
        held = self._held[sequence]
        remaining_s = self._returns.remaining_s(held.owner.program, since_s=held.used_s)
        return lost_tokens * held.owner.weight / remaining_s, held.use

    def _touch(self, held: _Held) -> None:
        self._uses += 1
        held.used_s, held.use = self._returns.now(), self._uses

    def _as_idle(self, sequence: SequenceId, lost_tokens: int) -> Idle:
        held = self._held[sequence]
        tokens = tuple(unmarked(self._tree(sequence).tokens(sequence)))
        return Idle(sequence, held.owner, tokens, lost_tokens, held.used_s)

    def _tree(self, sequence: SequenceId) -> RadixTree:
        return self._trees[self._held[sequence].owner.adapter]

    def _cut(self, sequence: SequenceId, tokens: int) -> None:
        self._tree(sequence).cut(sequence, tokens)
        if self._cells is not None:
            self._cells.cut(sequence, tokens)

    def _forget(self, sequence: SequenceId) -> None:
        adapter = self._held.pop(sequence).owner.adapter
        tree = self._trees[adapter]
        tree.remove(sequence)
        if self._cells is not None:
            self._cells.remove(sequence)
        if not len(tree):
            del self._trees[adapter]
        insort(self._free, sequence)

    def _active(self, sequence: SequenceId) -> _Held:
        held = self._held.get(sequence)
        if held is None or not held.is_active:
            raise KernelPanic(f"sequence {sequence} is not in use")
        return held


def _shared(cells: Cells, kept: set[SequenceId], grant: Grant) -> int:
    """Cells of a grant's reused tokens that sequences which stay hold anyway."""
    if grant.source is not None:
        return grant.reused_tokens
    if grant.reused_tokens == 0:
        return 0
    return min(grant.reused_tokens, cells.common_with(grant.sequence, kept))
