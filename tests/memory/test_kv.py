"""The KV bookkeeping, against a model that keeps every sequence's tokens in a plain list."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmos.memory.kv import Grant, KVSpace
from llmos.memory.kv_owner import EVERYBODY, Owner
from llmos.memory.returns import Returns
from llmos.syscalls.errors import ConfigError, KernelPanic, SyscallError


def space(sequences: int = 3, **options: Any) -> KVSpace:
    return KVSpace(sequences=sequences, context_tokens=64, fork_min_tokens=2, **options)


def run(
    kv: KVSpace, prompt: Sequence[int], owner: Owner = EVERYBODY, *, keep: bool = True
) -> Grant:
    """A whole generation: acquire, feed, release."""
    grant = begin(kv, prompt, owner)
    kv.release(grant.sequence, keep=keep)
    kv.check()
    return grant


def begin(kv: KVSpace, prompt: Sequence[int], owner: Owner = EVERYBODY) -> Grant:
    grant = kv.acquire(prompt, owner)
    assert grant is not None
    kv.append(grant.sequence, prompt[grant.reused_tokens :])
    kv.check()
    return grant


def moves(grant: Grant | None) -> Grant | None:
    """A grant without what it loses."""
    return None if grant is None else grant._replace(lost=())


def test_the_next_turn_of_a_conversation_takes_its_cached_sequence_over() -> None:
    kv = space()
    first = run(kv, [1, 2, 3, 4])
    assert kv.acquire([1, 2, 3, 4, 5, 6]) == Grant(first.sequence, 4, None, ())
    assert kv.shared_tokens == 4


def test_the_last_prompt_token_is_always_left_to_feed() -> None:
    kv = space()
    first = run(kv, [1, 2, 3, 4])
    assert kv.acquire([1, 2, 3, 4]) == Grant(1, 3, first.sequence, ())


def test_a_branch_forks_so_that_both_conversations_stay() -> None:
    kv = space()
    first = run(kv, [1, 2, 3, 4])
    second = begin(kv, [1, 2, 3, 9])
    assert second == Grant(1, 3, first.sequence, ())
    assert kv.acquire([1, 2, 3, 4, 5]) == Grant(first.sequence, 4, None, ())


def test_a_running_sequence_lends_its_prefix() -> None:
    kv = space()
    running = begin(kv, [1, 2, 3])
    assert kv.acquire([1, 2, 3, 4]) == Grant(1, 3, running.sequence, ())


def test_a_prefix_too_short_to_be_worth_a_fork_is_computed() -> None:
    kv = KVSpace(sequences=2, context_tokens=64, fork_min_tokens=16)
    run(kv, [1, 2, 3, 4])
    assert kv.acquire([1, 2, 9]) == Grant(1, 0, None, ())
    assert kv.shared_tokens == 0


def test_where_nothing_can_be_cut_only_a_whole_sequence_serves_a_prompt() -> None:
    kv = space(sequences=3, whole_only=True)
    first = run(kv, [1, 2, 3, 4])
    assert run(kv, [1, 2, 3, 9]).reused_tokens == 0
    assert run(kv, [1, 2, 3, 4]).reused_tokens == 0
    assert moves(kv.acquire([1, 2, 3, 4, 5])) == Grant(first.sequence, 4, None, ())


def test_where_nothing_can_be_cut_a_running_sequence_is_forked_as_a_whole() -> None:
    kv = space(whole_only=True)
    running = begin(kv, [1, 2, 3])
    assert begin(kv, [1, 2, 3, 4]) == Grant(1, 3, running.sequence, ())
    assert begin(kv, [1, 2, 9]).reused_tokens == 0


def test_where_nothing_can_be_cut_a_longer_sequence_does_not_stand_for_its_beginning() -> None:
    kv = space(sequences=2, whole_only=True)
    run(kv, [1, 2, 3, 4])
    run(kv, [1, 2])
    assert (kv.cached_sequences, kv.used_tokens) == (2, 6)
    lost = begin(kv, [7, 8, 9]).lost
    assert [idle.lost_tokens for idle in lost] == [2]


def test_where_nothing_can_be_cut_a_domain_leaves_what_is_public_as_a_whole() -> None:
    kv = space(sequences=3, whole_only=True)
    run(kv, [1, 2, 3, 4], Owner(domain="bob", public_tokens=3))
    run(kv, [5, 6, 7], Owner(domain="bob", public_tokens=3))
    assert kv.end_domain("bob") == [(0, 0), (1, 3)]
    kv.check()
    assert run(kv, [5, 6, 7, 8]).reused_tokens == 3


def test_adapters_and_domains_never_share() -> None:
    kv = space(sequences=3)
    run(kv, [1, 2, 3])
    assert run(kv, [1, 2, 3, 4], Owner(adapter="legal")).reused_tokens == 0
    assert run(kv, [1, 2, 3, 4], Owner(domain="bob")).reused_tokens == 0


def test_no_sequence_is_given_while_all_are_in_use() -> None:
    kv = space(sequences=1)
    grant = begin(kv, [1, 2])
    assert kv.acquire([5]) is None
    kv.release(grant.sequence, keep=False)
    assert kv.acquire([5]) == Grant(0, 0, None, ())


def test_the_least_recently_used_of_equals_is_evicted() -> None:
    kv = space(sequences=2)
    old, young = run(kv, [1, 1, 1]), run(kv, [2, 2, 2])
    assert moves(begin(kv, [3, 3, 3])) == Grant(old.sequence, 0, None, (old.sequence,))
    assert kv.acquire([2, 2, 2, 2]) == Grant(young.sequence, 3, None, ())


def test_what_is_dear_to_recompute_outlives_cheaper_and_younger_prefixes() -> None:
    kv = space(sequences=2)
    dear = run(kv, [1] * 40)
    evicted = [run(kv, [token, 0, 0, 0]).freed for token in range(2, 9)]
    assert all(dear.sequence not in freed for freed in evicted)


def test_a_dear_prefix_that_nobody_uses_sinks_at_last() -> None:
    kv = space(sequences=2)
    dear = run(kv, [1] * 40)
    evicted = [run(kv, [token, 0, 0, 0]).freed for token in range(2, 20)]
    assert (dear.sequence,) in evicted


def test_what_a_program_of_better_priority_left_outlives_the_rest() -> None:
    kv = space(sequences=2)
    first = run(kv, [1, 1, 1, 1], Owner(nice=-10))
    evicted = [run(kv, [token] * 5, Owner(nice=10)).freed for token in range(2, 9)]
    assert all(first.sequence not in freed for freed in evicted)


def test_what_is_cached_already_is_not_kept_twice() -> None:
    kv = space()
    first, second = begin(kv, [1, 2, 3]), begin(kv, [1, 2, 3])
    assert kv.release(first.sequence, keep=True)
    assert not kv.release(second.sequence, keep=True)
    assert (kv.cached_sequences, kv.free_sequences, kv.used_tokens) == (1, 2, 3)


def test_the_end_of_a_domain_leaves_its_running_sequences_and_other_domains() -> None:
    kv = space(sequences=3)
    run(kv, [1, 2], Owner(domain="bob"))
    begin(kv, [3, 4], Owner(domain="bob"))
    run(kv, [1, 2], Owner(domain="eve"))
    assert kv.end_domain("bob") == [(0, 0)]
    kv.check()
    assert (kv.active_sequences, kv.cached_sequences, kv.free_sequences) == (1, 1, 1)


def test_of_a_domain_that_has_ended_one_public_beginning_stays_for_all() -> None:
    kv = space(sequences=3)
    for last in (8, 9):
        run(kv, [1, 2, 3, 4, last], Owner(domain="bob", public_tokens=3))
    assert kv.end_domain("bob") == [(0, 0), (1, 3)]
    kv.check()
    grant = run(kv, [1, 2, 3, 4, 8], Owner(domain="eve", public_tokens=3))
    assert grant.reused_tokens == 3


def test_a_reset_forgets_all_but_the_total_of_reused_tokens() -> None:
    kv = space()
    run(kv, [1, 2, 3])
    begin(kv, [1, 2, 3, 4])
    kv.reset()
    kv.check()
    assert (kv.free_sequences, kv.used_tokens, kv.shared_tokens) == (3, 0, 3)


def test_a_prompt_over_the_sequence_capacity_is_refused_with_the_counts() -> None:
    with pytest.raises(SyscallError) as caught:
        space().acquire(range(65))
    assert caught.value.code == "context_overflow"
    assert caught.value.fields == {"prompt_tokens": 65, "limit_tokens": 64}


@pytest.mark.parametrize(
    "misuse",
    [
        lambda kv: kv.append(0, [1]),
        lambda kv: kv.release(0, keep=True),
        lambda kv: kv.acquire([]),
        lambda kv: kv.append(begin(kv, [1] * 64).sequence, [1]),
        lambda kv: kv.truncate(begin(kv, [1]).sequence, 2),
    ],
)
def test_misuse_by_the_kernel_is_a_panic(misuse: object) -> None:
    with pytest.raises(KernelPanic):
        misuse(space())  # type: ignore[operator]


def test_shared_cells_count_a_forked_prefix_once_and_keep_room_for_answers() -> None:
    kv = space(sequences=4, shared_cells=64)
    first = kv.acquire([1] * 20, reserve=20)
    assert first is not None
    kv.append(first.sequence, [1] * 20)
    second = kv.acquire([1] * 20 + [2] * 4, reserve=16)
    assert second is not None and second.source == first.sequence
    kv.append(second.sequence, [2] * 4)
    assert kv.used_tokens == 24
    assert kv.acquire([3] * 5) is None
    kv.check()


def test_shared_cells_evict_until_the_prompt_fits() -> None:
    kv = space(sequences=4, shared_cells=64)
    run(kv, [1] * 30)
    run(kv, [2] * 30)
    grant = kv.acquire([3] * 60)
    assert moves(grant) == Grant(2, 0, None, (0, 1))
    kv.check()


def test_a_shared_buffer_smaller_than_one_sequence_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="shared_cells"):
        space(shared_cells=10)


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
OWNERS = st.builds(
    Owner,
    adapter=st.sampled_from([None, "a"]),
    domain=st.sampled_from(["", "d", "e"]),
    public_tokens=st.integers(0, 4),
    program=st.integers(0, 3),
    nice=st.integers(-20, 19),
)


class Holding(NamedTuple):
    """What the driver would hold in a sequence."""

    owner: Owner
    tokens: list[int]
    cells: list[int]  # which cell of a shared buffer each token is in
    is_active: bool


class KVMachine(RuleBasedStateMachine):
    """Random generations. `held` mirrors what the driver would hold."""

    shared_cells: int | None = None
    whole_only = False

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.kv = KVSpace(
            sequences=4,
            context_tokens=16,
            fork_min_tokens=1,
            shared_cells=self.shared_cells,
            whole_only=self.whole_only,
            returns=Returns(lambda: self.now_s),
        )
        self.held: dict[int, Holding] = {}
        self.limits: dict[int, int] = {}
        self.shared = 0
        self.new_cell = itertools.count()

    def active(self) -> list[int]:
        return [sequence for sequence, held in self.held.items() if held.is_active]

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.active())))

    @rule(tokens=TOKENS, owner=OWNERS, reserve=st.integers(0, 4), elsewhere=st.integers(0, 12))
    def acquire(self, tokens: list[int], owner: Owner, reserve: int, elsewhere: int) -> None:
        elsewhere = min(elsewhere, len(tokens) - 1)
        grant = self.kv.acquire(tokens, owner, reserve=reserve, elsewhere_tokens=elsewhere)
        if grant is None:
            assert self.shared_cells or len(self.active()) == 4
            return
        best = max(
            (self.lent(held, owner, tokens[:-1]) for held in self.held.values()),
            default=0,
        )
        assert grant.reused_tokens == (best if best >= elsewhere else 0)
        before = dict(self.held)
        for idle in grant.lost:
            assert list(idle.tokens) == self.held[idle.sequence].tokens
            assert idle.owner == self.held[idle.sequence].owner
        for freed in grant.freed:
            assert not self.held.pop(freed).is_active
        cells: list[int] = []
        kept: list[int] = []
        start = grant.sequence if grant.source is None else grant.source
        if start in self.held:
            source = self.held[start]
            assert (grant.source is None) == (not source.is_active and start == grant.sequence)
            assert self.lent(source, owner, tokens[:-1]) >= grant.reused_tokens
            kept = source.tokens[: grant.reused_tokens]
            cells = source.cells[: grant.reused_tokens]
        assert kept == tokens[: grant.reused_tokens] and len(kept) == grant.reused_tokens
        self.held[grant.sequence] = Holding(owner, kept, cells, True)
        self.nothing_is_lost_unsaid(before, {idle.sequence for idle in grant.lost})
        self.limits[grant.sequence] = min(16, len(tokens) + reserve)
        self.shared += grant.reused_tokens
        if grant.reused_tokens == 0 and elsewhere:
            self.kv.restored(grant.sequence, tokens[:elsewhere])
            self.grow(grant.sequence, tokens[:elsewhere])
            self.shared += elsewhere
        self.feed(grant.sequence, tokens[len(self.held[grant.sequence].tokens) :])

    def nothing_is_lost_unsaid(self, before: dict[int, Holding], lost: set[int]) -> None:
        """Every prefix that was held still is, or was in a sequence that is said to be lost."""
        now = {prefix for held in self.held.values() for prefix in self.usable(held)}
        now |= {prefix for sequence in lost for prefix in self.usable(before[sequence])}
        assert now >= {prefix for held in before.values() for prefix in self.usable(held)}

    def usable(self, held: Holding) -> list[tuple[object, ...]]:
        """The prefixes of a sequence that can be had of it."""
        return prefixes(held)[-1:] if self.whole_only else prefixes(held)

    def lent(self, held: Holding, owner: Owner, tokens: list[int]) -> int:
        """How long a prefix of these tokens a sequence lends to an owner."""
        asked = prefixes(Holding(owner, tokens, [], True))
        shared = [len(prefix) - 3 for prefix in asked if prefix in self.usable(held)]
        return max(shared, default=0)

    def feed(self, sequence: int, tokens: list[int]) -> None:
        self.kv.append(sequence, tokens)
        self.grow(sequence, tokens)

    def grow(self, sequence: int, tokens: list[int]) -> None:
        self.held[sequence].tokens.extend(tokens)
        self.held[sequence].cells.extend(next(self.new_cell) for _ in tokens)

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.active())
    @rule(data=st.data(), tokens=TOKENS)
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        sequence = self.pick(data)
        limit = self.limits[sequence] if self.shared_cells else 16
        self.feed(sequence, tokens[: max(0, limit - len(self.held[sequence].tokens))])

    @precondition(lambda self: self.active())
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        held = self.held[sequence]
        keep = data.draw(st.integers(0, len(held.tokens)))
        self.kv.truncate(sequence, keep)
        del held.tokens[keep:], held.cells[keep:]

    @precondition(lambda self: self.active())
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        sequence = self.pick(data)
        held = self.held.pop(sequence)
        is_cached = any(
            not other.is_active and set(self.usable(held)) <= set(self.usable(other))
            for other in self.held.values()
        )
        kept = self.kv.release(sequence, keep=keep)
        assert kept == (keep and bool(held.tokens) and not is_cached)
        if kept:
            self.held[sequence] = held._replace(is_active=False)

    @rule()
    def end_domain(self) -> None:
        public = {p for h in self.held.values() for p in self.usable(h) if p[1] == ""}
        for sequence, tokens in self.kv.end_domain("d"):
            held = self.held.pop(sequence)
            assert held.owner.domain == "d" and not held.is_active
            assert tokens <= held.owner.public_tokens
            assert not self.whole_only or tokens in (0, len(held.tokens))
            if tokens:
                owner = Owner(held.owner.adapter)
                self.held[sequence] = Holding(
                    owner, held.tokens[:tokens], held.cells[:tokens], False
                )
        assert all(h.is_active for h in self.held.values() if h.owner.domain == "d")
        left = {p for h in self.held.values() for p in self.usable(h) if p[1] == ""}
        assert all(len(prefix) - 3 <= 1 for prefix in public - left)

    @rule(adapter=st.sampled_from(["a", "b"]))
    def forget_adapter(self, adapter: str) -> None:
        for idle in self.kv.forget_adapter(adapter):
            held = self.held.pop(idle.sequence)
            assert (idle.owner, idle.tokens) == (held.owner, tuple(held.tokens))
            assert not held.is_active and held.owner.adapter == adapter
        assert all(h.is_active for h in self.held.values() if h.owner.adapter == adapter)

    @rule()
    def reset(self) -> None:
        self.kv.reset()
        self.held.clear()

    @invariant()
    def agrees(self) -> None:
        self.kv.check()
        lengths = {sequence: len(held.tokens) for sequence, held in self.held.items()}
        assert {s: self.kv.length(s) for s in range(4)} == {s: lengths.get(s, 0) for s in range(4)}
        assert self.kv.active_sequences == len(self.active())
        assert self.kv.cached_sequences == len(self.held) - len(self.active())
        assert self.kv.free_sequences == 4 - len(self.held)
        assert self.kv.shared_tokens == self.shared
        assert {i.sequence for i in self.kv.idle()} == set(self.held) - set(self.active())
        if self.shared_cells is None:
            assert self.kv.used_tokens == sum(lengths.values())
        else:
            cells = {cell for held in self.held.values() for cell in held.cells}
            assert self.kv.used_tokens == len(cells) <= self.shared_cells


class SharedCellsMachine(KVMachine):
    shared_cells = 24


class WholeOnlyMachine(KVMachine):
    whole_only = True


class WholeOnlySharedCellsMachine(WholeOnlyMachine):
    shared_cells = 24


def prefixes(held: Holding) -> list[tuple[object, ...]]:
    """Every prefix of a sequence, with whom it is for."""
    owner = held.owner
    public = owner.public_tokens if owner.domain else len(held.tokens)
    return [
        (
            owner.adapter,
            owner.domain if end > public else "",
            public if end > public else 0,
            *held.tokens[:end],
        )
        for end in range(1, len(held.tokens) + 1)
    ]


TestKV = KVMachine.TestCase
TestKV.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSharedCells = SharedCellsMachine.TestCase
TestSharedCells.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWholeOnly = WholeOnlyMachine.TestCase
TestWholeOnly.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestWholeOnlySharedCells = WholeOnlySharedCellsMachine.TestCase
TestWholeOnlySharedCells.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
