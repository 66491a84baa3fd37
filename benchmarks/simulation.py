"""A discrete-event simulation of one device under the kernel's scheduler.

Programs arrive, call the model, go off to tools and come back. The policies and the planner are the
kernel's own classes; the device is `Costs`: how long a step takes. Nothing is computed token by
token where nothing can change: while the same sequences decode and nobody comes, many steps are one
event, so hours of a thousand agents take seconds.

What is simplified: a program's KV is kept whole or not at all, the least recently used goes first,
there are no drafts and constraints, and answers have the length that the trace says.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmos.kernel.pace import Pace
from llmos.kernel.planner import Limits, Planner, Share, Want
from llmos.kernel.policy import Entry, Policy, is_urgent

# While somebody waits for a sequence, the policy is asked after at most this many steps.
_MOST_STEPS = 16
# A queue longer than this is put in order at most once in so many simulated seconds.
_LONG_QUEUE, _ORDER_S = 64, 2.0
# As in the kernel: weight of the last answer in the length that is expected of the next ones.
_LEARN = 0.1


@dataclass(frozen=True, slots=True)
class Costs:
    """What a device takes, in seconds.

    A step is a pass over the rows that decode and one over the prompt tokens; `passes` gives their
    time by rows on short sequences, and each row takes more with the tokens before it.
    """

    passes: Mapping[int, float]
    decode_depth_s: float = 0.0  # for each row that decodes and each token before it
    prompt_depth_s: float = 0.0  # for each prompt token and each token before it
    copy_token_s: float = 5e-6
    call_s: float = 0.0  # of a call, besides its steps

    def scaled(self, factor: float) -> Costs:
        """The costs of a device so many times as slow."""
        return Costs(
            {rows: seconds * factor for rows, seconds in self.passes.items()},
            self.decode_depth_s * factor,
            self.prompt_depth_s * factor,
            self.copy_token_s * factor,
            self.call_s * factor,
        )


class Turn(NamedTuple):
    """A call to the model: what it adds to the conversation, and the tool's time after it.

    `is_fresh`: the conversation begins anew with this call, and what was computed of it is of no
    more use.
    """

    prompt_tokens: int
    new_tokens: int
    wait_s: float = 0.0
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """What one program will do; `shared_tokens` of its first prompt are the same for all."""

    arrived_s: float
    turns: Sequence[Turn]
    shared_tokens: int = 0
    client: str = ""
    nice: int = 0


class Access(NamedTuple):
    """A conversation needs its whole context, `tokens` long at the end of the call.

    `program` has a number for each conversation: the program's own for its first one.
    """

    program: int
    tokens: int


@dataclass(slots=True)
class Outcome:
    """What a simulation came to; times are seconds, by program."""

    completion_s: list[float]
    ended_s: float = 0.0
    busy_s: float = 0.0
    events: int = 0
    prompt_tokens: int = 0  # computed, with those computed again
    again_tokens: int = 0  # computed again, because the KV was given up
    restored_tokens: int = 0
    new_tokens: int = 0
    preemptions: int = 0
    accesses: list[Access] = field(default_factory=list[Access])


@dataclass(slots=True)
class _Call:
    """A generation. `depth` tokens are in KV, `pending` of the prompt are not."""

    entry: Entry
    program: int
    pending: int
    new_tokens: int
    depth: int = 0
    sampled: int = 0
    last_step: int = 0
    is_decoding: bool = False


class Simulation:
    """One run. `sequences` hold KV on the device, and `host_tokens` beside it."""

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        costs: Costs,
        policy: Policy,
        sequences: int,
        limits: Limits | None = None,
        keeps_idle: bool = True,
        host_tokens: int = 0,
    ) -> None:
        self._programs = programs
        self._costs = costs
        self._policy = policy
        self._sequences = sequences
        self._keeps_idle = keeps_idle
        self._pace = Pace()  # it learns as the kernel's does
        self._true = Pace(costs.passes)
        self._planner = Planner(limits or Limits(), self._pace)
        self._limits = self._planner.limits
        self._now = 0.0
        self._steps = 0
        self._output_tokens: float | None = None
        self._keys = itertools.count()
        self._arrivals: list[tuple[float, int]] = []  # by time: programs that call
        self._turn = [0] * len(programs)
        self._context = [0] * len(programs)  # tokens of a program's conversation so far
        self._conversation = list(range(len(programs)))
        self._conversations = itertools.count(len(programs))
        self._waiting: dict[int, _Call] = {}
        self._order: list[int] = []  # of those that wait, as of `_queued_s`
        self._queued_s = 0.0
        self._running: dict[int, _Call] = {}
        self._idle: OrderedDict[int, int] = OrderedDict()  # KV on the device, least used first
        self._host: OrderedDict[int, int] = OrderedDict()  # and saved beside it
        self._host_room = host_tokens
        self._has_shared = False
        self._outcome = Outcome(completion_s=[0.0] * len(programs))

    def run(self) -> Outcome:
        """Run until every program is over."""
        self._arrivals = [(program.arrived_s, i) for i, program in enumerate(self._programs)]
        heapq.heapify(self._arrivals)
        while self._arrivals or self._waiting or self._running:
            self._arrive()
            self._admit()
            if self._running:
                self._step()
            else:
                self._now = max(self._now, self._arrivals[0][0])
        self._outcome.ended_s = self._now
        return self._outcome

    # --- calls ------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self._now:
            came_s, number = heapq.heappop(self._arrivals)
            program, turn = self._programs[number], self._programs[number].turns[self._turn[number]]
            key = next(self._keys)
            entry = Entry(
                key=key,
                pid=number,
                nice=program.nice,
                arrived_s=came_s,
                queued_s=came_s,
                program=number,
                program_arrived_s=program.arrived_s,
                client=program.client,
            )
            if turn.is_fresh:
                self._forget(number)
            self._context[number] += turn.prompt_tokens
            self._waiting[key] = _Call(entry, number, self._context[number], turn.new_tokens)
            self._policy.enter(entry)

    def _forget(self, number: int) -> None:
        """A program begins another conversation."""
        self._context[number] = 0
        self._conversation[number] = next(self._conversations)
        self._idle.pop(number, None)
        self._host_room += self._host.pop(number, 0)

    def _admit(self) -> None:
        for key in self._queue():
            entry = self._waiting[key].entry
            if len(self._running) == self._sequences:
                held = [call.entry for call in self._running.values()]
                victim = self._policy.victim([entry], held)
                if victim is None:
                    return
                self._preempt(self._running.pop(victim.key))
            self._place(self._waiting.pop(entry.key))

    def _queue(self) -> list[int]:
        """The calls that wait, in the policy's order."""
        is_old = self._now - self._queued_s >= _ORDER_S
        if is_old or len(self._waiting) <= _LONG_QUEUE:
            entries = [call.entry for call in self._waiting.values()]
            self._order = [entry.key for entry in self._policy.order(entries)]
            self._queued_s = self._now
        else:
            self._order = [key for key in self._order if key in self._waiting]
        return self._order

    def _place(self, call: _Call) -> None:
        """Give a call a sequence, with what is held of its context."""
        needed = call.pending + call.depth
        on_device = self._idle.pop(call.program, None)
        if on_device is None and len(self._running) + len(self._idle) >= self._sequences:
            self._evict()
        held = on_device if on_device is not None else self._restored(call)
        if held is None:
            shared = self._programs[call.program].shared_tokens if self._has_shared else 0
            new_tokens = self._programs[call.program].turns[self._turn[call.program]].prompt_tokens
            self._outcome.again_tokens += max(0, needed - new_tokens - shared)
            held = shared
        call.depth = min(held, needed - 1)
        call.pending = needed - call.depth
        call.entry.turn_tokens = 0
        self._running[call.entry.key] = call
        self._now += self._costs.call_s

    def _restored(self, call: _Call) -> int | None:
        """Bring back what was saved of a call's context; None when nothing was."""
        saved = call.depth or None  # of one that was preempted
        if saved is None and (saved := self._host.pop(call.program, None)) is not None:
            self._host_room += saved
        if saved is not None:
            self._outcome.restored_tokens += saved
            self._now += self._costs.copy_token_s * saved
        return saved

    def _preempt(self, call: _Call) -> None:
        """Take a call's sequence; its KV is saved."""
        self._outcome.preemptions += 1
        self._now += self._costs.copy_token_s * call.depth
        call.entry.queued_s = self._now
        self._waiting[call.entry.key] = call
        self._order.append(call.entry.key)

    def _evict(self) -> None:
        """Free the idle sequence that was used least recently, into host memory if that has room.

        There, too, what was used least recently goes first.
        """
        number, tokens = self._idle.popitem(last=False)
        while self._host and tokens > self._host_room:
            self._host_room += self._host.popitem(last=False)[1]
        if tokens <= self._host_room:
            self._host[number] = tokens
            self._host_room -= tokens
            self._now += self._costs.copy_token_s * tokens

    def _end(self, call: _Call) -> None:
        number = call.program
        del self._running[call.entry.key]
        self._policy.leave(call.entry)
        expected = self._output_tokens
        self._output_tokens = (
            call.sampled if expected is None else expected + _LEARN * (call.sampled - expected)
        )
        self._context[number] += call.new_tokens
        self._outcome.accesses.append(Access(self._conversation[number], self._context[number]))
        self._turn[number] += 1
        program = self._programs[number]
        if self._turn[number] == len(program.turns):
            self._outcome.completion_s[number] = self._now - program.arrived_s
            return
        if self._keeps_idle:
            self._idle[number] = call.depth
        back_s = self._now + program.turns[self._turn[number] - 1].wait_s
        heapq.heappush(self._arrivals, (back_s, number))

    # --- steps ------------------------------------------------------------------------------------

    def _step(self) -> None:
        """One step, or as many as are alike."""
        running, by_key = list(self._running.values()), self._running
        ordered = self._policy.order([call.entry for call in running])
        shares = self._planner.plan([self._want(by_key[entry.key]) for entry in ordered])
        decodes = [by_key[share.key] for share in shares if share.is_decode]
        chunks = [(by_key[share.key], share) for share in shares if not share.is_decode]
        prompt_tokens = sum(share.tokens for _, share in chunks)
        depth = sum(call.depth for call in decodes)
        seconds = (
            self._true.step_s(rows=len(decodes), prompt_tokens=prompt_tokens)
            + self._costs.decode_depth_s * depth
            + self._costs.prompt_depth_s
            * sum(share.tokens * (call.depth + share.tokens // 2) for call, share in chunks)
        )
        self._pace.observe(rows=len(decodes), prompt_tokens=prompt_tokens, seconds=seconds)
        count = 1
        if len(decodes) == len(running):
            count = self._alike(decodes, seconds)
            later = len(decodes) * count * (count - 1) / 2
            seconds = seconds * count + self._costs.decode_depth_s * later
        self._steps += count
        self._now += seconds
        self._outcome.busy_s += seconds
        self._outcome.events += 1
        for call in decodes:
            self._serve(call, prompt_tokens=0, new_tokens=count)
        for call, share in chunks:
            self._read(call, share)

    def _alike(self, decodes: Sequence[_Call], seconds: float) -> int:
        """How many steps pass until a call ends, another comes, or the policy is to be asked."""
        count = min(call.new_tokens - call.sampled for call in decodes)
        if self._arrivals:
            count = min(count, 1 + int((self._arrivals[0][0] - self._now) / seconds))
        if self._waiting:
            count = min(count, _MOST_STEPS)
        return max(count, 1)

    def _read(self, call: _Call, share: Share) -> None:
        is_whole = share.tokens == call.pending
        self._outcome.prompt_tokens += share.tokens
        self._serve(call, prompt_tokens=share.tokens, new_tokens=int(is_whole))

    def _serve(self, call: _Call, *, prompt_tokens: int, new_tokens: int) -> None:
        fed = prompt_tokens or new_tokens
        call.depth += fed
        call.pending = max(call.pending - fed, 0) + new_tokens if prompt_tokens else 1
        call.sampled += new_tokens
        call.is_decoding = call.is_decoding or new_tokens > 0
        call.last_step = self._steps
        call.entry.turn_tokens += fed
        self._policy.served(call.entry, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
        self._outcome.new_tokens += new_tokens
        if new_tokens and self._programs[call.program].shared_tokens:
            self._has_shared = True
        if call.sampled >= call.new_tokens:
            self._end(call)

    def _want(self, call: _Call) -> Want:
        left = call.new_tokens - call.sampled
        if self._output_tokens is not None:
            left = min(left, max(1, round(self._output_tokens)))
        return Want(
            key=call.entry.key,
            pending=call.pending,
            is_decoding=call.is_decoding,
            is_urgent=is_urgent(self._policy, call.entry),
            remaining_tokens=left,
            last_step=call.last_step,
        )


def belady_misses(accesses: Sequence[tuple[int, int]], capacity_tokens: int) -> int:
    """The least tokens that must be computed again, whoever chooses what to keep.

    `accesses` are (program, tokens) in the order of the calls: the program needs its whole context,
    which is `tokens` long when the call ends. What it had at its last call, and what was not kept
    since, has to be computed again; what is new to it counts for nobody. Tokens are kept one by one
    (a beginning of a context is of use without the rest), so no real cache, which keeps pages or
    whole sequences, can do better.

    At each access the others may keep what is left of the capacity; over that, tokens go from the
    program that comes back last, which is optimal because every token kept until its return saves
    the same. Source: L. Belady, "A study of replacement algorithms for a virtual-storage computer",
    IBM Systems Journal 5 (1966). Raises: ValueError for a context larger than the capacity.
    """
    returns: dict[int, int] = {}  # by access: when the same program comes back
    last: dict[int, int] = {}
    for at, (program, _) in enumerate(accesses):
        if program in last:
            returns[last[program]] = at
        last[program] = at
    kept: dict[int, int] = {}  # by the access that will use them: tokens
    held: dict[int, int] = {}  # by program: tokens at its last access
    latest: list[int] = []  # a heap of returns, latest first
    total = missed = 0
    for at, (program, tokens) in enumerate(accesses):
        if tokens > capacity_tokens:
            raise ValueError(f"a context of {tokens} tokens is larger than {capacity_tokens}")
        found = kept.pop(at, 0)
        total -= found
        missed += held.get(program, 0) - found
        while total > capacity_tokens - tokens:
            back = -latest[0]
            dropped = min(kept.get(back, 0), total - (capacity_tokens - tokens))
            total -= dropped
            if dropped < kept.get(back, 0):
                kept[back] -= dropped
            else:
                kept.pop(back, None)
                heapq.heappop(latest)
        held[program] = tokens
        if at in returns:
            kept[returns[at]] = tokens
            total += tokens
            heapq.heappush(latest, -returns[at])
    return missed
