"""The engine of one device: a thread that owns the driver and runs plan -> step -> publish.

Iteration-level scheduling (Orca, OSDI'22): before every step the plan is made anew from whoever
wants tokens, so generations join and leave the batch between tokens, prompts are fed in chunks
beside running decodes, and a stop, a kill or a change of priority takes effect at the next step.

The event loop talks to the thread through an inbox of functions and hears back once per step; it
never waits for the device. Names that end in `_locked` hold the inbox's lock; all others that start
with an underscore run on the engine thread, except `_deliver`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from llmos.drivers.contract import (
    Allocation,
    DeviceError,
    Feed,
    LanguageModel,
    ModelInfo,
    RequestError,
    Sampled,
)
from llmos.kernel.clock import Clock
from llmos.kernel.generation import Generation, Outcome
from llmos.kernel.policies import Policy
from llmos.kernel.threads import contained, settle
from llmos.kernel.trace import Tracer
from llmos.memory.kv import Grant, KVSpace
from llmos.syscalls.errors import KernelPanic, SyscallError
from llmos.syscalls.results import DeviceInfo, FinishReason, TokenChoice, TokenLogprob

T = TypeVar("T")

# Prompt tokens fed beside running decodes: bounds how long one step can hold up the others.
MIXED_PREFILL_TOKENS = 128
# A generation waits for a running prefill that will spare it at least this much.
WORTH_WAITING_TOKENS = 32
DEVICE_PID = 0


class Gauges(NamedTuple):
    """What the engine last published about itself."""

    running: int = 0
    waiting: int = 0
    cached_sequences: int = 0
    kv_tokens: int = 0
    shared_tokens: int = 0
    swapped_bytes: int = 0
    steps: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0


@dataclass(slots=True)
class _Report:
    """What one iteration has to tell the event loop."""

    pieces: list[tuple[Generation, str]] = field(default_factory=list[tuple[Generation, str]])
    ended: list[tuple[Generation, Outcome]] = field(
        default_factory=list[tuple[Generation, Outcome]]
    )
    started_s: float | None = None
    ended_s: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0


class Engine:
    """A device with its queue. Public methods are for the event loop."""

    def __init__(
        self,
        name: str,
        open_driver: Callable[[], LanguageModel],
        *,
        policy: Policy,
        clock: Clock,
        tracer: Tracer,
        max_queued: int = 10_000,
    ) -> None:
        self.name = name
        self.state: str = "closed"
        self.reason: str | None = None
        self.gauges = Gauges()
        self._open_driver = open_driver
        self._policy = policy
        self._clock = clock
        self._tracer = tracer
        self._max_queued = max_queued
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._queued = 0  # generations submitted and not delivered; event loop only
        self._driver: LanguageModel | None = None
        self._kv: KVSpace | None = None
        self._generations: list[Generation] = []
        self._held_pids: set[int] = set()
        self._last_adapter: str | None = None
        self._report = _Report()

    # --- event loop -------------------------------------------------------------------------------

    @property
    def driver(self) -> LanguageModel:
        """The open driver; only its any-thread methods may be called from here."""
        if self._driver is None:
            raise SyscallError("device", f"device {self.name} is {self.state}: {self.reason}")
        return self._driver

    @property
    def model(self) -> ModelInfo:
        return self.driver.info

    async def start(self) -> None:
        """Open the device. Raises: DeviceError or SyscallError; the engine is then down."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self.state = "opening"
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name=f"engine-{self.name}", daemon=True
        )
        self._thread.start()
        await opened

    async def stop(self) -> None:
        """End every generation and close the device."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def submit(self, generation: Generation) -> None:
        """Queue a generation. Raises: SyscallError("busy") when the queue is full."""
        if self.state != "ready":
            raise SyscallError("device", f"device {self.name} is {self.state}: {self.reason}")
        if self._queued >= self._max_queued:
            raise SyscallError(
                "busy",
                f"{self._queued} generations wait for device {self.name}; retry later",
                is_retryable=True,
                device=self.name,
                limit=self._max_queued,
            )
        self._queued += 1
        self._post(lambda: self._enter(generation))

    def cancel(self, generation: Generation) -> None:
        """Free a generation's sequence before the next step; it ends without a finish reason."""
        self._post(lambda: self._cancel(generation))

    def hold(self, pid: int, *, is_held: bool) -> None:
        """Stop or continue all generations of a process at the next token boundary."""
        self._post(lambda: self._hold(pid, is_held))

    def renice(self, pid: int, nice: int) -> None:
        """Change the priority of a process's generations."""
        self._post(lambda: self._renice(pid, nice))

    async def on_device(self, work: Callable[[LanguageModel], T]) -> T:
        """Run something on the engine thread between two steps."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = contained(lambda: work(self.driver), is_fatal=False)
            except (DeviceError, SyscallError) as problem:
                loop.call_soon_threadsafe(settle, future, None, problem)
            else:
                loop.call_soon_threadsafe(settle, future, result, None)

        self._post(run)
        return await future

    def info(self) -> DeviceInfo:
        """The device as `llmos devices` and `Stat` show it."""
        gauges = self.gauges
        model = None if self._driver is None else self._driver.info
        return DeviceInfo(
            name=self.name,
            driver=model.driver if model else "",
            model=model.name if model else self.name,
            state=self.state,  # pyright: ignore[reportArgumentType]
            reason=self.reason,
            sequences=model.sequences if model else 0,
            running=gauges.running,
            waiting=gauges.waiting,
            cached_sequences=gauges.cached_sequences,
            kv_tokens_used=gauges.kv_tokens,
            kv_tokens_total=model.sequences * model.context_tokens if model else 0,
            prefill_tokens_per_s=_rate(gauges.prefill_tokens, gauges.prefill_s),
            decode_tokens_per_s=_rate(gauges.decode_tokens, gauges.decode_s),
            steps=gauges.steps,
            shared_tokens=gauges.shared_tokens,
        )

    def allocations(self) -> list[Allocation]:
        """The device's large allocations and the KV it has swapped to host memory."""
        found = [] if self._driver is None else list(self._driver.allocations())
        if self.gauges.swapped_bytes:
            found.append(Allocation("swapped_kv", self.gauges.swapped_bytes))
        return found

    def _deliver(self, report: _Report) -> None:
        for generation, piece in report.pieces:
            if generation.pieces is not None:
                generation.pieces.put_nowait(piece)
        for generation, outcome in report.ended:
            self._queued -= 1
            if not generation.done.done():
                generation.done.set_result(outcome)
        if report.started_s is not None:
            self._tracer.span(
                "step",
                "device",
                started_s=report.started_s,
                ended_s=report.ended_s,
                pid=DEVICE_PID,
                track=self.name,
                args={"prefill": report.prefill_tokens, "decode": report.decode_tokens},
            )

    def _post(self, work: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(work)
            self._wake.notify()

    # --- engine thread ----------------------------------------------------------------------------

    def _run(self, opened: asyncio.Future[None]) -> None:
        assert self._loop is not None
        try:
            self._open()
        except (DeviceError, SyscallError) as problem:
            self._loop.call_soon_threadsafe(settle, opened, None, problem)
            return
        self._loop.call_soon_threadsafe(settle, opened, None, None)
        try:
            while self._take_inbox():
                self._iterate()
                self._flush()
        except KernelPanic as panic:
            self._panic(panic)
            return
        for generation in list(self._generations):
            self._fail(generation, SyscallError("device", f"device {self.name} was closed"))
        self._flush()
        if self.state == "ready":
            self.state = "closed"
            self.driver.close()

    def _panic(self, panic: KernelPanic) -> None:
        """An invariant is broken: nothing here can be trusted any more, so let everybody know."""
        assert self._loop is not None
        self.state, self.reason = "down", f"kernel panic: {panic}"
        for generation in list(self._generations):
            generation.sequence = None
            self._fail(generation, SyscallError("device", f"device {self.name}: {self.reason}"))
        self._loop.call_soon_threadsafe(self._deliver, self._report)
        self._loop.call_soon_threadsafe(
            self._loop.call_exception_handler,
            {"message": f"engine {self.name} panicked", "exception": panic},
        )

    def _open(self) -> None:
        try:
            self._driver = contained(self._open_driver, is_fatal=True)
        except (DeviceError, SyscallError) as problem:
            self.state, self.reason = "down", str(problem)
            raise
        info = self._driver.info
        self._kv = KVSpace(sequences=info.sequences, context_tokens=info.context_tokens)
        self.state, self.reason = "ready", None

    def _take_inbox(self) -> bool:
        """Run what was posted; waits while there is nothing to do. False: the engine closes."""
        while True:
            with self._wake:
                while not self._inbox and not self._is_closing and not self._has_work():
                    self._wake.wait()
                work = list(self._inbox)
                self._inbox.clear()
                is_closing = self._is_closing
            for function in work:
                function()
            if is_closing:
                return False
            if self._has_work():
                return True
            self._flush()

    def _has_work(self) -> bool:
        return any(not generation.is_held for generation in self._generations)

    def _iterate(self) -> None:
        self._admit()
        feeds, batch = self._plan()
        if not feeds:
            return
        started = self._clock.now()
        try:
            sampled = contained(lambda: self.driver.step(feeds), is_fatal=True)
        except DeviceError as problem:
            self._after_failure(batch, problem)
            return
        self._publish(feeds, batch, sampled, started, self._clock.now())

    # plan

    def _admit(self) -> None:
        """Give sequences to waiting generations, in the policy's order."""
        waiting = [g for g in self._generations if g.sequence is None and not g.is_held]
        by_key = {g.entry.key: g for g in waiting}
        for entry in self._policy.order([g.entry for g in waiting]):
            generation = by_key[entry.key]
            if self._is_full() and self._victim() is None:
                break
            if self._should_wait_for_prefix(generation):
                continue
            if not self._give_sequence(generation):
                break

    def _give_sequence(self, generation: Generation) -> bool:
        kv = self._require_kv()
        tokens = generation.known(0, generation.length)
        adapter, domain = generation.order.adapter, generation.order.domain
        grant = kv.acquire(tokens, adapter=adapter, domain=domain)
        if grant is None:
            victim = self._victim()
            if victim is None:
                return False
            self._preempt(victim)
            grant = kv.acquire(tokens, adapter=adapter, domain=domain)
            if grant is None:
                return False
        generation.sequence = grant.sequence
        try:
            contained(lambda: self._prepare(generation, grant), is_fatal=False)
        except DeviceError as problem:
            self._after_failure([generation], problem)
            return True
        reused = generation.fed
        generation.entry.turn_tokens = 0
        if generation.cached_tokens is None:
            generation.cached_tokens = min(reused, len(generation.order.prompt))
        return True

    def _prepare(self, generation: Generation, grant: Grant) -> None:
        """Bring the driver to what the grant says, and the generation's own state with it."""
        driver, sequence, reused = self.driver, grant.sequence, grant.reused_tokens
        for freed in grant.freed:
            driver.trim(freed, 0)
        if grant.source is not None:
            driver.fork(grant.source, sequence, reused)
        elif driver.length(sequence) > reused:
            driver.trim(sequence, reused)
        saved, generation.saved = generation.saved, None
        if saved is not None and generation.saved_tokens > reused:
            driver.trim(sequence, 0)
            driver.restore(saved, sequence)
            kv, reused = self._require_kv(), generation.saved_tokens
            kv.truncate(sequence, 0)
            kv.append(sequence, generation.known(0, reused))
        driver.add(
            sequence,
            sampling=generation.order.sampling,
            constraint=generation.order.constraint,
            prompt=generation.order.prompt,
            generated=generation.output,
            adapter=generation.order.adapter,
        )
        generation.fed = reused

    def _is_full(self) -> bool:
        kv = self._require_kv()
        return kv.active_sequences == self.driver.info.sequences

    def _should_wait_for_prefix(self, generation: Generation) -> bool:
        """Whether a running prefill is computing a prefix that this generation also needs."""
        prompt = generation.order.prompt
        for other in self._generations:
            if other.sequence is None or other.is_held or not other.is_prefilling:
                continue
            same_space = (other.order.adapter, other.order.domain) == (
                generation.order.adapter,
                generation.order.domain,
            )
            if not same_space:
                continue
            shared = generation.shared_with.get(other.entry.key)
            if shared is None:
                shared = _common_prefix(prompt, other.order.prompt)
                generation.shared_with[other.entry.key] = shared
            if shared - other.fed >= WORTH_WAITING_TOKENS:
                return True
        return False

    def _victim(self) -> Generation | None:
        holding = [g for g in self._generations if g.sequence is not None]
        for generation in holding:
            if generation.is_held:
                return generation
        waiting = [g.entry for g in self._generations if g.sequence is None and not g.is_held]
        chosen = self._policy.victim(waiting, [g.entry for g in holding])
        return next((g for g in holding if g.entry is chosen), None)

    def _preempt(self, generation: Generation) -> None:
        """Take a generation's sequence; its KV moves to host memory where the driver can."""
        assert generation.sequence is not None
        if generation.fed and self.driver.info.abilities.can_save:
            generation.saved = self.driver.save(generation.sequence)
            generation.saved_tokens = generation.fed
        self._free(generation, keep=False)
        generation.entry.queued_s = self._clock.now()

    def _plan(self) -> tuple[list[Feed], list[Generation]]:
        """What to feed this iteration: every decode, then prompt chunks within the budget."""
        runnable = [g for g in self._generations if g.sequence is not None and not g.is_held]
        by_key = {g.entry.key: g for g in runnable}
        ordered = [by_key[e.key] for e in self._policy.order([g.entry for g in runnable])]
        if not self.driver.info.abilities.can_mix_adapters:
            ordered = self._one_adapter(ordered)
        budget = self.driver.info.batch_tokens
        feeds: list[Feed] = []
        batch: list[Generation] = []
        for generation in ordered:
            if generation.pending == 1 and budget:
                feeds.append(self._feed(generation, 1))
                batch.append(generation)
                budget -= 1
        if feeds:
            budget = min(budget, MIXED_PREFILL_TOKENS)
        for generation in ordered:
            if generation.pending > 1 and budget:
                count = min(generation.pending, budget)
                feeds.append(self._feed(generation, count))
                batch.append(generation)
                budget -= count
        return feeds, batch

    def _feed(self, generation: Generation, count: int) -> Feed:
        assert generation.sequence is not None
        start = generation.fed
        tokens = generation.known(start, start + count)
        return Feed(generation.sequence, tokens, sample=count == generation.pending)

    def _one_adapter(self, ordered: list[Generation]) -> list[Generation]:
        """The generations of one adapter; the adapters take turns."""
        adapters = list(dict.fromkeys(g.order.adapter for g in ordered))
        if len(adapters) <= 1:
            return ordered
        names = sorted(adapters, key=lambda name: name or "")
        later = [n for n in names if (n or "") > (self._last_adapter or "")]
        self._last_adapter = later[0] if later else names[0]
        return [g for g in ordered if g.order.adapter == self._last_adapter]

    # publish

    def _publish(
        self,
        feeds: Sequence[Feed],
        batch: Sequence[Generation],
        sampled: Sequence[Sampled],
        started_s: float,
        ended_s: float,
    ) -> None:
        kv = self._require_kv()
        report = self._report
        chosen = {one.sequence: one for one in sampled}
        for feed, generation in zip(feeds, batch, strict=True):
            kv.append(feed.sequence, feed.tokens)
            if generation.first_fed_s is None:
                generation.first_fed_s = started_s
            if len(feed.tokens) == 1 and generation.output:
                report.decode_tokens += 1
            else:
                report.prefill_tokens += len(feed.tokens)
            generation.fed += len(feed.tokens)
            generation.entry.turn_tokens += len(feed.tokens)
            generation.kv_token_s += generation.fed * (ended_s - started_s)
        for feed, generation in zip(feeds, batch, strict=True):
            if feed.sample:
                self._take_token(generation, chosen[feed.sequence], ended_s)
        report.started_s, report.ended_s = started_s, ended_s
        self._count_step(report)

    def _take_token(self, generation: Generation, sampled: Sampled, now_s: float) -> None:
        if generation.first_token_s is None:
            generation.first_token_s = now_s
        logprob = None
        if sampled.logprob is not None:
            logprob = TokenLogprob(
                token_id=sampled.token,
                text=self._text_of(sampled.token),
                logprob=sampled.logprob,
                top=tuple(
                    TokenChoice(token_id=token, text=self._text_of(token), logprob=value)
                    for token, value in sampled.top
                ),
            )
        written = len(generation.written)
        finish = generation.take(self.driver, sampled.token, is_end=sampled.is_end, logprob=logprob)
        if finish is not None:
            rest = generation.text.finish()
            if rest:
                generation.written.append(rest)
        if len(generation.written) > written and generation.pieces is not None:
            self._report.pieces.append((generation, "".join(generation.written[written:])))
        if finish is not None:
            self._end(generation, finish=finish)

    def _text_of(self, token: int) -> str:
        return self.driver.detokenize([token]).decode("utf-8", errors="replace")

    def _token_text(self, token: int) -> str:
        return self.driver.detokenize([token]).decode("utf-8", errors="replace")

    def _count_step(self, report: _Report) -> None:
        gauges = self.gauges
        seconds = report.ended_s - (report.started_s or report.ended_s)
        is_prefill = report.prefill_tokens > 0
        self.gauges = gauges._replace(
            steps=gauges.steps + 1,
            prefill_tokens=gauges.prefill_tokens + report.prefill_tokens,
            prefill_s=gauges.prefill_s + (seconds if is_prefill else 0.0),
            decode_tokens=gauges.decode_tokens + (0 if is_prefill else report.decode_tokens),
            decode_s=gauges.decode_s + (0.0 if is_prefill else seconds),
        )

    def _flush(self) -> None:
        """Tell the event loop what happened since the last time."""
        kv = self._require_kv()
        holding = [g for g in self._generations if g.sequence is not None]
        self.gauges = self.gauges._replace(
            running=len(holding),
            waiting=len(self._generations) - len(holding),
            cached_sequences=kv.cached_sequences,
            kv_tokens=kv.used_tokens,
            shared_tokens=kv.shared_tokens,
            swapped_bytes=sum(len(g.saved) for g in self._generations if g.saved is not None),
        )
        report = self._report
        if report.pieces or report.ended or report.started_s is not None:
            self._report = _Report()
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._deliver, report)

    # inbox

    def _enter(self, generation: Generation) -> None:
        if self.state != "ready":
            self._fail(generation, SyscallError("device", f"device {self.name}: {self.reason}"))
            return
        generation.is_held = generation.entry.pid in self._held_pids
        self._generations.append(generation)

    def _cancel(self, generation: Generation) -> None:
        if generation in self._generations:
            self._end(generation, finish=None)

    def _hold(self, pid: int, is_held: bool) -> None:
        if is_held:
            self._held_pids.add(pid)
        else:
            self._held_pids.discard(pid)
        for generation in self._generations:
            if generation.entry.pid == pid:
                generation.is_held = is_held

    def _renice(self, pid: int, nice: int) -> None:
        for generation in self._generations:
            if generation.entry.pid == pid:
                generation.entry.nice = nice

    # ends

    def _end(
        self,
        generation: Generation,
        *,
        finish: FinishReason | None,
        error: SyscallError | None = None,
    ) -> None:
        self._free(generation, keep=finish is not None)
        if generation in self._generations:
            self._generations.remove(generation)
        outcome = generation.outcome(
            now_s=self._clock.now(),
            kv_bytes_per_token=self.driver.info.kv_bytes_per_token,
            finish=finish,
            error=error,
        )
        self._report.ended.append((generation, outcome))

    def _fail(self, generation: Generation, error: SyscallError) -> None:
        self._end(generation, finish=None, error=error)

    def _free(self, generation: Generation, *, keep: bool) -> None:
        """Let go of a generation's sequence; `keep` leaves its KV for others to reuse."""
        if generation.sequence is None:
            return
        sequence, generation.sequence = generation.sequence, None
        if not self._require_kv().release(sequence, keep=keep):
            self.driver.trim(sequence, 0)
        generation.fed = 0

    def _after_failure(self, batch: Sequence[Generation], problem: DeviceError) -> None:
        """Fail the calls that a failure hit; after a fatal one, all, and reopen the device."""
        if not problem.is_fatal:
            for generation in batch:
                self._fail(generation, _device_failure(self.name, problem))
            return
        for generation in list(self._generations):
            if generation.sequence is None and generation.saved is None:
                continue  # has nothing on the device: it can still run after a reopen
            generation.sequence = None
            generation.saved = None
            self._fail(generation, _device_failure(self.name, problem))
        self.driver.close()
        try:
            self._open()
        except (DeviceError, SyscallError) as reopening:
            down = SyscallError("device", f"device {self.name} is down: {reopening}")
            for generation in list(self._generations):
                self._fail(generation, down)

    def _require_kv(self) -> KVSpace:
        assert self._kv is not None
        return self._kv


def _device_failure(name: str, problem: DeviceError) -> SyscallError:
    if isinstance(problem, RequestError):
        error = SyscallError("invalid", f"{problem.field}: {problem}", field=problem.field)
    else:
        error = SyscallError(
            "device",
            f"device {name} failed: {problem}",
            is_retryable=problem.is_fatal,
            device=name,
        )
    error.__cause__ = problem
    return error


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 and tokens else None


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
