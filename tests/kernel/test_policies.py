"""Scheduling policies, without a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.kernel.policies import Entry, Policy, PolicyName, PolicySettings, make_policy
from llmos.kernel.policy_attained import LeastAttained
from llmos.kernel.policy_fair import Fair
from llmos.kernel.policy_ranked import CriticalPath, Deadline, Fifo, Priority, RoundRobin
from llmos.syscalls.errors import ConfigError

NAMES = get_args(PolicyName)


def entry(
    key: int,
    *,
    arrived: float = 0.0,
    nice: int = 0,
    turn: int = 0,
    program: int | None = None,
    program_arrived: float | None = None,
    client: str = "",
    weight: float = 1.0,
    deadline: float | None = None,
    path: float = 0.0,
) -> Entry:
    return Entry(
        key=key,
        pid=key,
        nice=nice,
        arrived_s=arrived,
        queued_s=arrived,
        turn_tokens=turn,
        program=key if program is None else program,
        program_arrived_s=arrived if program_arrived is None else program_arrived,
        client=client,
        weight=weight,
        deadline_s=deadline,
        path_s=path,
    )


entries = st.lists(
    st.builds(
        entry,
        st.integers(0, 10**6),
        arrived=st.floats(0, 1000),
        nice=st.integers(-20, 19),
        turn=st.integers(0, 100),
        program=st.integers(0, 3),
        program_arrived=st.floats(0, 1000),
        client=st.sampled_from(["ann", "bob", "cy"]),
        weight=st.sampled_from([0.5, 1.0, 2.0]),
        deadline=st.none() | st.floats(0, 1000),
        path=st.floats(0, 100),
    ),
    unique_by=lambda one: one.key,
    max_size=20,
)


def told(policy: Policy, listed: list[Entry], tokens: int = 0) -> Policy:
    """A policy that has heard of the entries' arrivals, and of some service."""
    for one in listed:
        policy.enter(one)
        if tokens:
            policy.served(one, prompt_tokens=tokens, new_tokens=tokens * (one.key % 7))
    return policy


@pytest.mark.parametrize("name", NAMES)
@given(listed=entries)
def test_every_policy_orders_all_entries_and_loses_none(name: str, listed: list[Entry]) -> None:
    ordered = told(make_policy(name), listed).order(listed)
    assert sorted(one.key for one in ordered) == sorted(one.key for one in listed)
    assert make_policy(name).name == name


@pytest.mark.parametrize("name", NAMES)
@given(listed=entries, tokens=st.integers(0, 500))
def test_an_order_does_not_depend_on_how_the_entries_are_listed(
    name: str, listed: list[Entry], tokens: int
) -> None:
    policy = told(make_policy(name), listed, tokens)
    assert policy.order(listed) == policy.order(listed[::-1]) == policy.order(listed)


@pytest.mark.parametrize("name", NAMES)
@given(listed=entries, cut=st.integers(0, 20), tokens=st.integers(0, 500))
def test_a_victim_is_one_of_the_running(
    name: str, listed: list[Entry], cut: int, tokens: int
) -> None:
    policy = told(make_policy(name), listed, tokens)
    waiting, running = listed[:cut], listed[cut:]
    victim = policy.victim(waiting, running)
    assert victim is None or any(victim is one for one in running)
    if not waiting:
        assert victim is None


@pytest.mark.parametrize("name", [name for name in NAMES if name != "round_robin"])
@given(listed=entries, cut=st.integers(0, 20), tokens=st.integers(0, 500))
def test_who_was_preempted_does_not_at_once_preempt_in_turn(
    name: str, listed: list[Entry], cut: int, tokens: int
) -> None:
    """Exchanging victims for the first that wait comes to an end without any service."""
    policy = told(make_policy(name), listed, tokens)
    waiting, running = listed[:cut], listed[cut:]
    for _ in range(len(waiting) * len(running) + 1):
        victim = policy.victim(waiting, running)
        if victim is None:
            return
        first = policy.order(waiting)[0]
        running = [first, *(one for one in running if one is not victim)]
        waiting = [victim, *(one for one in waiting if one is not first)]
    raise AssertionError("it moves sequences to and fro")


@pytest.mark.parametrize("name", ["fifo", "priority", "deadline", "critical_path"])
@given(listed=entries)
def test_a_fixed_order_does_not_change_with_service(name: str, listed: list[Entry]) -> None:
    policy = told(make_policy(name), listed)
    before = policy.order(listed)
    for one in listed:
        policy.served(one, prompt_tokens=one.key % 300, new_tokens=1)
    assert policy.order(listed) == before


def test_fifo_serves_by_arrival_and_never_preempts() -> None:
    first, second = entry(2, arrived=1.0), entry(1, arrived=2.0)
    assert Fifo().order([second, first]) == [first, second]
    assert Fifo().victim([entry(9, nice=-20)], [first]) is None


@pytest.mark.parametrize("name", ["fifo", "priority", "las", "critical_path", "fair", "deadline"])
def test_a_program_that_returns_from_a_tool_is_ahead_of_those_that_came_later(name: str) -> None:
    newcomer = entry(1, arrived=20.0)
    back = entry(2, arrived=30.0, program=7, program_arrived=10.0)
    assert told(make_policy(name), [newcomer, back]).order([newcomer, back]) == [back, newcomer]


@pytest.mark.parametrize("name", ["fifo", "priority", "las", "critical_path", "deadline"])
def test_a_program_that_never_ends_does_not_hold_back_newer_ones_for_ever(name: str) -> None:
    newcomer = entry(1, arrived=1000.0)
    later = entry(2, arrived=1000.0 + 301, program=7, program_arrived=0.0)
    policy = told(make_policy(name, PolicySettings(head_start_s=300.0)), [newcomer, later])
    assert policy.order([later, newcomer])[0] is newcomer


@pytest.mark.parametrize("name", ["fifo", "priority", "las", "critical_path", "deadline"])
def test_a_program_that_sends_many_calls_has_a_head_start_for_one_of_them(name: str) -> None:
    calls = [entry(key, arrived=20.0 + key, program=7, program_arrived=0.0) for key in range(3)]
    newcomer = entry(9, arrived=10.0)
    policy = told(make_policy(name), [newcomer, *calls])
    assert policy.order([*calls, newcomer]) == [calls[0], newcomer, *calls[1:]]
    policy.leave(calls[0])
    assert policy.order([*calls[1:], newcomer]) == [newcomer, *calls[1:]]


def test_calls_of_one_program_are_served_as_they_came() -> None:
    calls = [entry(key, arrived=9.0 - key, program=1, program_arrived=0.0) for key in range(5)]
    assert [one.key for one in Fifo().order(calls)] == [4, 3, 2, 1, 0]


def test_round_robin_takes_the_sequence_of_who_had_its_quantum() -> None:
    policy = RoundRobin(PolicySettings(quantum_tokens=16))
    fresh, spent = entry(1, turn=3), entry(2, turn=16)
    assert policy.victim([entry(3)], [fresh, spent]) is spent
    assert policy.victim([entry(3)], [fresh]) is None


def test_priority_prefers_low_nice_and_preempts_for_it() -> None:
    policy = Priority(PolicySettings(ageing_s=2.0))
    background, urgent = entry(1, nice=10), entry(2, arrived=5.0, nice=-5)
    assert policy.order([background, urgent]) == [urgent, background]
    assert policy.victim([urgent], [background]) is background
    assert policy.victim([entry(3, arrived=6.0)], [entry(4, arrived=1.0)]) is None
    assert policy.victim([entry(3, arrived=1.0)], [entry(4, arrived=6.0)]) is None


@given(st.integers(-20, 19), st.integers(-20, 19), st.floats(0, 100), st.floats(0, 1000))
def test_nothing_starves_under_priority(
    nice: int, rival: int, arrived: float, program_arrived: float
) -> None:
    """A newcomer is ahead of an old entry only if it came soon enough after it."""
    policy = Priority(PolicySettings(ageing_s=2.0, head_start_s=60.0))
    old = entry(1, arrived=arrived, nice=nice)
    late = entry(2, arrived=arrived + 139, nice=rival, program_arrived=program_arrived)
    assert policy.order([late, old])[0] is old


def test_the_earliest_deadline_is_first_and_what_has_none_waits_its_time() -> None:
    policy = Deadline(PolicySettings(undated_s=60.0))
    soon, later = entry(1, arrived=5.0, deadline=10.0), entry(2, arrived=1.0, deadline=50.0)
    undated, newer = entry(3, arrived=0.0), entry(4, arrived=55.0, deadline=70.0)
    assert policy.order([newer, undated, later, soon]) == [soon, later, undated, newer]
    assert policy.victim([soon], [later]) is later
    assert policy.victim([soon], [entry(5, deadline=10.5)]) is None
    assert policy.victim([undated], [newer]) is None


def test_the_longest_path_is_first_within_a_graph_and_age_counts_between_graphs() -> None:
    policy = CriticalPath()
    short = entry(1, arrived=3.0, program=1, program_arrived=0.0, path=5.0)
    long = entry(2, arrived=4.0, program=1, program_arrived=0.0, path=30.0)
    assert policy.order([short, long]) == [long, short]
    assert policy.victim([long], [short]) is short
    younger = entry(3, arrived=40.0, path=30.0)
    assert policy.order([younger, long, short]) == [long, short, younger]


# --- least attained service ---


def las(**options: float) -> LeastAttained:
    return LeastAttained(
        PolicySettings(level_cost=100.0, level_ratio=2.0, prompt_cost=1.0, new_cost=2.0, **options)
    )


def test_a_program_sinks_by_what_it_was_served_over_all_its_calls() -> None:
    policy = las()
    first = entry(1, program=7, arrived=0.0)
    policy.enter(first)
    policy.served(first, prompt_tokens=60, new_tokens=10)
    policy.leave(first)
    assert policy.level(7) == 0
    back = entry(2, program=7, arrived=9.0)
    policy.enter(back)
    policy.served(back, prompt_tokens=60, new_tokens=30)
    assert policy.level(7) == 2
    newcomer = entry(3, arrived=10.0)
    policy.enter(newcomer)
    assert policy.order([back, newcomer]) == [newcomer, back]
    assert policy.victim([newcomer], [back]) is back


def test_equals_do_not_take_turns() -> None:
    policy = las()
    older, younger = entry(1, arrived=0.0), entry(2, arrived=1.0)
    told(policy, [older, younger])
    for _ in range(49):
        policy.served(older, prompt_tokens=0, new_tokens=1)
        assert policy.order([younger, older])[0] is older
        assert policy.victim([younger], [older]) is None
    policy.served(older, prompt_tokens=0, new_tokens=1)
    assert policy.victim([younger], [older]) is older


@settings(max_examples=50)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=10), st.integers(1, 500))
def test_a_program_that_waits_is_served_before_others_get_its_service_many_times(
    costs: list[int], had: int
) -> None:
    """However many newcomers there are, a waiting program's turn comes."""
    policy = las(patience=4.0)
    old = entry(1, arrived=0.0)
    policy.enter(old)
    policy.served(old, prompt_tokens=had, new_tokens=0)
    others = 0.0
    for number in range(10_000):
        cost = costs[number % len(costs)]
        newcomer = entry(2 + number, arrived=1.0 + number)
        policy.enter(newcomer)
        if policy.order([newcomer, old])[0] is old:
            break
        policy.served(newcomer, prompt_tokens=cost, new_tokens=0)
        policy.leave(newcomer)
        others += cost
    assert others <= 4.0 * had + max(costs)


def test_a_program_that_waited_long_keeps_its_sequence_for_a_while() -> None:
    policy = las(patience=4.0)
    old, other = entry(1, arrived=0.0), entry(2, arrived=1.0)
    told(policy, [old, other])
    policy.served(old, prompt_tokens=100, new_tokens=0)
    policy.served(other, prompt_tokens=90, new_tokens=0)
    assert policy.victim([old], [other]) is None
    policy.served(other, prompt_tokens=310, new_tokens=0)
    assert policy.victim([old], [other]) is other
    policy.served(old, prompt_tokens=1, new_tokens=0)
    newcomer = entry(3, arrived=2.0)
    policy.enter(newcomer)
    assert policy.victim([newcomer], [old]) is None


# --- fair shares ---


@dataclass
class Lane:
    """A generation that a test serves, with what it still needs."""

    entry: Entry
    prompt: int
    new: int


class Device:
    """A few sequences, served a step at a time as the kernel does, to clients that never rest."""

    def __init__(self, policy: Policy, sequences: int) -> None:
        self.policy, self.sequences = policy, sequences
        self.running: list[Lane] = []
        self.waiting: list[Lane] = []
        self.service: dict[str, float] = {}
        self._keys = 0

    def send(self, client: str, prompt: int, new: int, weight: float = 1.0) -> None:
        self._keys += 1
        one = entry(self._keys, arrived=float(self._keys), client=client, weight=weight)
        self.waiting.append(Lane(one, prompt, new))
        self.policy.enter(one)

    def step(self) -> None:
        lanes = {lane.entry.key: lane for lane in (*self.waiting, *self.running)}
        for one in self.policy.order([lane.entry for lane in self.waiting]):
            if len(self.running) == self.sequences:
                victim = self.policy.victim(
                    [lane.entry for lane in self.waiting], [lane.entry for lane in self.running]
                )
                if victim is None:
                    break
                self.running.remove(lanes[victim.key])
                self.waiting.append(lanes[victim.key])
            self.waiting.remove(lanes[one.key])
            self.running.append(lanes[one.key])
        for lane in list(self.running):
            self._serve(lane)

    def _serve(self, lane: Lane) -> None:
        chunk = min(lane.prompt, 128)
        new = 0 if lane.prompt > chunk else 1
        lane.prompt -= chunk
        lane.new -= new
        self.policy.served(lane.entry, prompt_tokens=chunk, new_tokens=new)
        client = lane.entry.client
        self.service[client] = self.service.get(client, 0.0) + chunk + 2 * new
        if lane.new <= 0:
            self.running.remove(lane)
            self.policy.leave(lane.entry)


sizes = st.tuples(st.integers(1, 600), st.integers(1, 60))


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.integers(1, 8),
    ann=st.lists(sizes, min_size=1, max_size=5),
    bob=st.lists(sizes, min_size=1, max_size=5),
    flood=st.integers(1, 40),
)
def test_the_service_of_two_busy_clients_differs_by_no_more_than_the_bound(
    sequences: int, ann: list[tuple[int, int]], bob: list[tuple[int, int]], flood: int
) -> None:
    device = Device(Fair(), sequences)
    dearest = max(prompt + 2 * new for prompt, new in (*ann, *bob))
    sent = 0
    for _ in range(200):
        waiting = [lane.entry.client for lane in device.waiting]
        while waiting.count("ann") < sequences + flood:
            device.send("ann", *ann[sent % len(ann)])
            waiting.append("ann")
            sent += 1
        while waiting.count("bob") < sequences + 1:
            device.send("bob", *bob[sent % len(bob)])
            waiting.append("bob")
            sent += 1
        device.step()
        gap = abs(device.service.get("ann", 0.0) - device.service.get("bob", 0.0))
        assert gap <= 2 * sequences * max(dearest, 512)


def shares(policy: Policy, weight: float = 1.0) -> float:
    """bob's part of the service when ann sends ten times as much."""
    device = Device(policy, 8)
    for _ in range(600):
        waiting = [lane.entry.client for lane in device.waiting]
        for client, depth, heavier in (("ann", 80, 1.0), ("bob", 8, weight)):
            for _ in range(depth - waiting.count(client)):
                device.send(client, 100, 30, heavier)
        device.step()
    return device.service["bob"] / sum(device.service.values())


def test_who_sends_ten_times_as_much_does_not_get_more() -> None:
    assert shares(Fair()) == pytest.approx(0.5, abs=0.02)
    assert shares(Fair(), weight=3.0) == pytest.approx(0.75, abs=0.03)


def test_a_client_that_stayed_away_has_saved_up_nothing() -> None:
    policy = Fair()
    busy = [entry(key, client="ann") for key in range(1, 4)]
    told(policy, busy[:2])
    for one in busy[:2]:
        policy.served(one, prompt_tokens=50_000, new_tokens=0)
    policy.enter(busy[2])
    policy.enter(entry(9, client="bob"))
    assert policy.counter("bob") == policy.counter("ann")


def test_a_client_that_comes_takes_its_share_of_sequences_and_no_more() -> None:
    policy = Fair(PolicySettings(takeover_cost=100.0))
    running = [entry(key, client="ann") for key in range(4)]
    waiting = [entry(key, client="bob") for key in range(10, 20)]
    told(policy, running, tokens=50)
    told(policy, waiting)
    assert policy.victim(waiting, running) is None
    policy.served(running[0], prompt_tokens=5000, new_tokens=0)
    for taken in (1, 2):
        victim = policy.victim(waiting, running)
        assert victim is not None
        assert victim.client == "ann"
        running.remove(victim)
        running.append(waiting.pop())
        assert sum(one.client == "bob" for one in running) == taken
    assert policy.victim(waiting, running) is None


@pytest.mark.parametrize("name", ["fair", "las"])
def test_what_is_remembered_of_those_that_are_gone_is_bounded(name: str) -> None:
    policy = make_policy(name)
    for key in range(25_000):
        one = entry(key, client=str(key))
        policy.enter(one)
        policy.served(one, prompt_tokens=10, new_tokens=1)
        policy.leave(one)
    remembered = policy._clients if isinstance(policy, Fair) else policy._programs  # type: ignore[attr-defined]
    assert len(remembered) <= 10_000


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fifo, round_robin, priority, fair, las"):
        make_policy("lottery")
