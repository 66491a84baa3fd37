"""Saved KV in host memory and on disk, on a clock that the test moves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmos.memory import tiers as module
from llmos.memory.kv_owner import EVERYBODY, Owner, marked, passing_domain
from llmos.memory.tiers import Found, Tiers

MODEL = "0123456789abcdef"


class Bench:
    """Tiers whose states are as many bytes as they have tokens."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        host: int = 1000,
        disk: int = 0,
        whole_only: bool = False,
    ) -> None:
        self.now_s = 0.0
        self.tiers = Tiers(
            host_bytes=host,
            disk_bytes=disk,
            root=root,
            now=lambda: self.now_s,
            recompute_s=lambda tokens: tokens / 100,
            whole_only=whole_only,
        )
        self.tiers.open(MODEL)

    def stow(
        self, tokens: Sequence[int], owner: Owner = EVERYBODY, awaited: int | None = None
    ) -> bool:
        self.now_s += 1
        kept = self.tiers.stow(owner, tokens, bytes(len(tokens)), awaited_by=awaited)
        self.tiers.check()
        return kept

    def found(self, tokens: Sequence[int], owner: Owner = EVERYBODY) -> int:
        found = self.tiers.find(owner, tokens, len(tokens))
        return 0 if found is None else found.tokens

    def take(self, tokens: Sequence[int], owner: Owner = EVERYBODY) -> bytes | None:
        found = self.tiers.find(owner, tokens, len(tokens))
        assert found is not None
        state = self.tiers.take(found)
        self.tiers.check()
        return state

    def settle(self) -> None:
        """Wait for the files that are being written."""
        disk = self.tiers._disk  # pyright: ignore[reportPrivateUsage]
        if disk is not None:
            for writing in list(disk._writing.values()):  # pyright: ignore[reportPrivateUsage]
                writing.file.exception()
        self.found([0] * 40)
        self.tiers.check()


def text(first: int, length: int = 100) -> list[int]:
    return [first] * length


def test_the_longest_common_prefix_is_found_and_may_be_taken_by_many() -> None:
    bench = Bench()
    bench.stow([*text(1, 40), *text(2, 40)])
    assert bench.found([*text(1, 40), *text(3, 40)]) == 40
    assert bench.take([*text(1, 40), *text(3, 40)]) == bytes(80)
    assert bench.found([*text(1, 40), *text(4, 40)]) == 40


def test_who_goes_on_from_all_of_it_takes_it_with_him() -> None:
    bench = Bench()
    bench.stow(text(1))
    assert bench.take([*text(1), 5]) == bytes(100)
    assert bench.tiers.host_bytes == 0


@pytest.mark.parametrize("disk", [0, 10**6])
def test_what_has_gone_since_it_was_found_is_not_there_to_take(tmp_path: Path, disk: int) -> None:
    bench = Bench(tmp_path, host=100, disk=disk)
    bench.stow(text(1))
    found = bench.tiers.find(EVERYBODY, text(1), 100)
    assert found is not None
    bench.stow(text(2))
    if disk:
        bench.settle()
        assert bench.tiers.take(found) == bytes(100)
        bench.tiers.refuse(found)
    assert bench.tiers.take(found) is None
    bench.tiers.refuse(found)
    bench.tiers.check()


def test_where_nothing_can_be_cut_only_a_whole_state_is_found() -> None:
    bench = Bench(whole_only=True)
    bench.stow([*text(1, 50), *text(2, 50)])
    assert bench.found(text(1)) == 0
    assert bench.tiers.wants(EVERYBODY, text(1, 50), lost_tokens=50)
    bench.stow(text(1, 50))
    assert not bench.tiers.wants(EVERYBODY, text(1, 50), lost_tokens=50)
    assert bench.found([*text(1, 50), *text(2, 49)]) == 50
    assert bench.found([*text(1, 50), *text(2, 60)]) == 100
    assert bench.found(text(1, 49)) == 0


def test_where_nothing_can_be_cut_a_common_beginning_makes_no_state_worth_less() -> None:
    bench = Bench(host=300, whole_only=True)
    bench.stow(text(4))
    bench.stow([*text(1, 90), *text(2, 10)])
    bench.stow([*text(1, 90), *text(3, 10)])
    bench.now_s += 60
    bench.stow(text(5))
    assert [bench.found([*text(1, 90), *text(end, 10)]) for end in (2, 3)] == [100, 100]
    assert bench.found(text(4)) == 0


def test_domains_have_only_the_public_beginning_in_common() -> None:
    bench = Bench()
    bench.stow(text(1), Owner(domain="a", public_tokens=60))
    assert bench.found(text(1), Owner(domain="a", public_tokens=60)) == 100
    assert bench.found(text(1), Owner(domain="b", public_tokens=60)) == 60
    assert bench.found(text(1), Owner(domain="b", public_tokens=40)) == 40
    assert bench.found(text(1), Owner(adapter="x", domain="a", public_tokens=60)) == 0


def test_what_was_used_longest_ago_goes_first_when_sizes_are_equal() -> None:
    bench = Bench(host=300)
    for first in (1, 2, 3):
        bench.stow(text(first))
    bench.now_s += 60
    bench.tiers.wants(EVERYBODY, text(1), lost_tokens=100)
    bench.stow(text(4))
    assert [bench.found(text(first)) for first in (1, 2, 3, 4)] == [100, 0, 100, 100]


def test_who_is_expected_back_soon_stays() -> None:
    bench = Bench(host=300)
    for program, gap_s in ((1, 500), (2, 50), (3, 200)):
        for _ in range(3):
            bench.tiers.returns.went(program)
            bench.now_s += gap_s
            bench.tiers.returns.came_back(program)
    for program in (1, 2, 3):
        bench.stow(text(program), Owner(program=program))
    bench.stow(text(4), Owner(program=2))
    assert [bench.found(text(first)) for first in (1, 2, 3, 4)] == [0, 100, 100, 100]


def test_what_a_preempted_generation_waits_for_outlives_all_else() -> None:
    bench = Bench(host=200)
    bench.stow(text(1), awaited=7)
    for first in range(2, 9):
        bench.stow(text(first))
    assert bench.found(text(1)) == 100
    bench.tiers.release(7)
    assert bench.found(text(1)) == 0


def test_a_state_that_begins_a_newer_one_is_dropped_for_it() -> None:
    bench = Bench()
    bench.stow(text(1, 50))
    bench.stow([*text(1, 50), *text(2, 50)])
    assert bench.tiers.host_bytes == 100
    assert not bench.tiers.wants(EVERYBODY, text(1, 50), lost_tokens=50)


def test_more_than_the_budget_is_refused() -> None:
    bench = Bench(host=50)
    assert not bench.stow(text(1))
    assert bench.tiers.host_bytes == 0


def test_what_host_memory_has_no_room_for_goes_to_disk_and_comes_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path, host=150, disk=10**6)
    bench.stow(text(1))
    bench.stow(text(2))
    bench.settle()
    assert (bench.tiers.host_bytes, bench.tiers.disk_bytes > 100) == (100, True)
    assert bench.take([*text(1), 9]) == bytes(100)


def test_a_file_that_was_damaged_is_computed_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, host=150, disk=10**6)
    bench.stow(text(1))
    bench.stow(text(2))
    bench.settle()
    (path,) = (tmp_path / MODEL).glob("*.kv")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert bench.take(text(1)) is None
    assert bench.found(text(1)) == 0
    assert bench.tiers.disk_bytes == 0


def test_a_full_disk_costs_only_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.KVFolder, "write", full)
    bench = Bench(tmp_path, host=150, disk=10**6)
    bench.stow(text(1))
    bench.stow(text(2))
    bench.settle()
    assert [bench.found(text(first)) for first in (1, 2)] == [0, 100]


def test_the_disk_budget_holds(tmp_path: Path) -> None:
    bench = Bench(tmp_path, host=150, disk=150_000)
    for first in range(1, 9):
        bench.stow(text(first))
        bench.settle()
    assert 0 < bench.tiers.disk_bytes <= 150_000
    assert bench.found(text(7)) == 100


def test_the_next_kernel_finds_what_was_written_at_the_stop(tmp_path: Path) -> None:
    first = Bench(tmp_path, disk=10**6)
    assert first.tiers.persist(EVERYBODY, text(1), bytes(100), until_s=time.monotonic() + 60)
    first.tiers.close()
    second = Bench(tmp_path, disk=10**6)
    assert second.take([*text(1), 3]) == bytes(100)


def test_nothing_is_written_when_time_is_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, disk=10**6)
    assert not bench.tiers.persist(EVERYBODY, text(1), bytes(100), until_s=0)
    assert bench.tiers.disk_bytes == 0


def test_a_domain_that_ends_with_the_kernel_leaves_no_file(tmp_path: Path) -> None:
    bench = Bench(tmp_path, host=150, disk=10**6)
    mine = Owner(domain=passing_domain("boot-1"), public_tokens=50)
    bench.stow(text(1), mine)
    bench.stow(text(2))
    bench.settle()
    assert bench.tiers.disk_bytes > 0
    bench.tiers.close()
    assert list((tmp_path / MODEL).iterdir()) == []


def test_files_of_domains_that_ended_with_a_killed_kernel_are_deleted(tmp_path: Path) -> None:
    killed = Bench(tmp_path, host=250, disk=10**6)
    mine = Owner(domain=passing_domain("boot-1"), public_tokens=50)
    killed.stow(text(1), mine)
    killed.stow(text(2))
    killed.stow(text(3))
    killed.stow(text(4))
    killed.settle()
    assert len(list((tmp_path / MODEL).glob("*.kv"))) == 2
    bench = Bench(tmp_path, disk=10**6)
    bench.tiers.check()
    assert [bench.found(text(1), mine), bench.found(text(2))] == [0, 100]
    assert len(list((tmp_path / MODEL).glob("*.kv"))) == 1


def test_the_end_of_a_domain_frees_what_it_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path, host=150, disk=10**6)
    mine = Owner(domain=passing_domain("boot-1"))
    bench.stow(text(1), mine)
    bench.stow(text(2))
    bench.settle()
    bench.tiers.end_domain(mine.domain)
    bench.tiers.check()
    assert [bench.found(text(1), mine), bench.found(text(2))] == [0, 100]
    assert list((tmp_path / MODEL).iterdir()) == []


def test_another_model_finds_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, disk=10**6)
    bench.tiers.persist(EVERYBODY, text(1), bytes(100), until_s=time.monotonic() + 60)
    bench.tiers.open("fedcba9876543210")
    bench.tiers.check()
    assert bench.found(text(1)) == 0
    assert not (tmp_path / MODEL).exists()


OWNERS = st.builds(
    Owner,
    adapter=st.sampled_from([None, "a"]),
    domain=st.sampled_from(["", "d", passing_domain("e")]),
    public_tokens=st.integers(0, 60),
    program=st.integers(0, 2),
    nice=st.integers(-20, 19),
)
RUNS = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(
    lambda picks: [token for pick in picks for token in [pick] * 20]
)


class TiersMachine(RuleBasedStateMachine):
    """Random stows and takes; `states` are all that were ever given, by what they hold."""

    whole_only = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.bench = self.started()
        self.states: dict[bytes, list[int]] = {}

    def started(self) -> Bench:
        root = Path(self.folder.name)
        return Bench(root, host=200, disk=300_000, whole_only=self.whole_only)

    def teardown(self) -> None:
        self.bench.tiers.close()
        self.folder.cleanup()

    @rule(
        tokens=RUNS, owner=OWNERS, awaited=st.sampled_from([None, None, 1]), wait=st.integers(0, 9)
    )
    def stow(self, tokens: list[int], owner: Owner, awaited: int | None, wait: int) -> None:
        self.bench.now_s += wait
        state = bytes([len(self.states) % 256]) * len(tokens) + str(len(self.states)).encode()
        self.bench.tiers.stow(owner, tokens, state, awaited_by=awaited)
        self.states[state] = marked(tokens, owner)

    @rule(tokens=RUNS, owner=OWNERS)
    def take(self, tokens: list[int], owner: Owner) -> None:
        found = self.bench.tiers.find(owner, tokens, len(tokens))
        if found is None:
            return
        state = self.bench.tiers.take(found)
        assert state is not None
        self.is_what_was_asked_for(state, found, marked(tokens, owner))

    def is_what_was_asked_for(self, state: bytes, found: Found, asked: list[int]) -> None:
        assert self.states[state][: found.tokens] == asked[: found.tokens]
        if self.whole_only:
            assert found.tokens == len(self.states[state])

    @rule(
        tokens=RUNS,
        owner=OWNERS,
        others=st.lists(st.tuples(RUNS, OWNERS), min_size=1, max_size=4),
        settles=st.booleans(),
    )
    def take_after_others_came(
        self,
        tokens: list[int],
        owner: Owner,
        others: list[tuple[list[int], Owner]],
        settles: bool,
    ) -> None:
        found = self.bench.tiers.find(owner, tokens, len(tokens))
        if found is None:
            return
        for other, of_other in others:
            self.stow(other, of_other, None, 0)
        if settles:
            self.bench.settle()
        state = self.bench.tiers.take(found)
        if state is not None:
            self.is_what_was_asked_for(state, found, marked(tokens, owner))
        self.bench.tiers.refuse(found)
        assert self.bench.tiers.take(found) is None

    @rule(tokens=RUNS, owner=OWNERS)
    def refuse(self, tokens: list[int], owner: Owner) -> None:
        found: Found | None = self.bench.tiers.find(owner, tokens, len(tokens))
        if found is not None and self.bench.tiers.take(found) and found.tokens < len(tokens):
            self.bench.tiers.release(1)

    @rule()
    def end_domain(self) -> None:
        self.bench.tiers.end_domain("d")

    @rule()
    def wait_for_the_writer(self) -> None:
        self.bench.settle()

    @rule()
    def restart(self) -> None:
        self.bench.tiers.close()
        assert self.bench.tiers.host_bytes == 0
        self.bench.tiers.open(MODEL)

    @rule()
    def is_killed(self) -> None:
        self.bench.settle()
        disk = self.bench.tiers._disk  # pyright: ignore[reportPrivateUsage]
        assert disk is not None
        disk.stop()
        self.bench = self.started()
        names = Path(self.folder.name).rglob("*.kv")
        assert not any(b"~e" in path.read_bytes() for path in names)

    @invariant()
    def agrees(self) -> None:
        self.bench.tiers.check()
        root = Path(self.folder.name) / MODEL
        on_disk = sum(path.stat().st_size for path in root.glob("*.kv")) if root.is_dir() else 0
        assert self.bench.tiers.disk_bytes <= on_disk <= 300_000


class WholeTiersMachine(TiersMachine):
    whole_only = True


TestTiers = TiersMachine.TestCase
TestTiers.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestWholeTiers = WholeTiersMachine.TestCase
TestWholeTiers.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
