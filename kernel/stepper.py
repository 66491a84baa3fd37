"""What the engine thread does: plan, step and publish, over the generations of one device.

Iteration-level scheduling (Orca, OSDI'22): before every step the plan is made anew from whoever
wants tokens, so generations join and leave the batch between tokens, prompts are fed in chunks
beside running decodes, and a stop, a kill or a change of priority takes effect at the next step.

Owns the open driver and its generations, on one thread; where their KV is, `residency.py` knows;
the event loop is known only as something that collects reports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from llmos.drivers.contract import (
    DeviceError,
    LanguageModel,
    RequestError,
    Sampled,
    SequenceError,
    SequenceId,
)
from llmos.kernel.adapter_slots import AdapterLimits, AdapterSlots
from llmos.kernel.batch import Batcher, Fed
from llmos.kernel.clock import Clock
from llmos.kernel.draft_model import DraftModel
from llmos.kernel.generation import Generation
from llmos.kernel.overload import Ends, overdue
from llmos.kernel.pace import Pace
from llmos.kernel.planner import Limits
from llmos.kernel.policy import Policy, is_urgent
from llmos.kernel.report import Gauges, Report
from llmos.kernel.residency import Residency, shareable_tokens
from llmos.kernel.threads import contained
from llmos.memory.tiers import Tiers, share_of_memory
from llmos.syscalls.errors import KernelPanic, SyscallError
from llmos.syscalls.results import FinishReason, TokenChoice, TokenLogprob

log = logging.getLogger("llmos.kernel")

# A generation waits for a running prefill that will spare it at least this much.
WORTH_WAITING_TOKENS = 8
# Iterations without a step, although somebody wants one, before that is taken for a bug of ours.
MAX_IDLE_ITERATIONS = 100

State = Literal["closed", "opening", "ready", "down"]


class Stepper:
    """The engine thread's side of a device. `open` first; then everything on that one thread.

    `driver`, `draft_model`, `adapters`, `state`, `reason` and `gauges` are replaced whole and may
    be read from any thread; `ends` may be asked from any.
    """

    def __init__(
        self,
        name: str,
        open_driver: Callable[[], LanguageModel],
        *,
        policy: Policy,
        clock: Clock,
        limits: Limits | None = None,
        tiers: Tiers | None = None,
        adapters: AdapterLimits | None = None,
        open_draft: Callable[[], LanguageModel] | None = None,
    ) -> None:
        self.name = name
        self.state: State = "closed"
        self.reason: str | None = None
        self.gauges = Gauges()
        self.ends = Ends()
        self.driver: LanguageModel | None = None
        self._adapters = AdapterSlots(adapters or AdapterLimits())
        self.draft_model: DraftModel | None = None
        self._open_driver = open_driver
        self._open_draft = open_draft
        self._policy = policy
        self._clock = clock
        self._limits = limits or Limits()
        self._pace = Pace()
        self._batcher: Batcher | None = None
        self._residency: Residency | None = None
        self._tiers = tiers or Tiers(host_bytes=share_of_memory(), now=clock.now)
        self._generations: list[Generation] = []
        self._held_pids: set[int] = set()
        self._report = Report()
        self._idle_iterations = 0
        # the device failed while something ended; it is reopened before anything else runs
        self._fault: DeviceError | None = None

    @property
    def has_work(self) -> bool:
        """Whether a generation wants tokens now."""
        return any(not generation.is_held for generation in self._generations)

    def open(self) -> None:
        """Open the driver. Raises: DeviceError or SyscallError; the device is then down."""
        self.state = "opening"
        try:
            self.driver = contained(self._open_driver, is_fatal=True)
            self._open_draft_model()
        except Exception as problem:
            self.state, self.reason = "down", str(problem)
            raise
        self._batcher = Batcher(
            self.driver.info, self._policy, self._limits, self._pace, self.draft_model
        )
        self._residency = Residency(
            self.driver,
            attach=self._bring,
            pace=self._pace,
            tiers=self._tiers,
        )
        self._adapters.opened(self.driver, let_go=self._residency.let_adapter_go)
        self.state, self.reason = "ready", None

    def _open_draft_model(self) -> None:
        if self._open_draft is None:
            return
        try:
            opened = contained(self._open_draft, is_fatal=True)
            self.draft_model = DraftModel(opened, self._device, self._clock)
        except Exception:
            self._close_driver()
            raise

    def close(self) -> None:
        """End what still runs, and close the driver."""
        self._fail_all(self._unusable("was closed"))
        if self.state == "ready":
            self.state = "closed"
            self._require_residency().close()
            self._close_driver()

    def panic(self, problem: Exception) -> None:
        """An invariant is broken: nothing here can be trusted, so everybody is told."""
        self.state, self.reason = "down", f"kernel panic: {problem}"
        for generation in self._generations:
            generation.sequence = None
        self._fail_all(self._unusable(self.reason))
        self._close_driver()

    # --- what the event loop asks for -----------------------------------------------------------

    def enter(self, generation: Generation) -> None:
        """Take in a generation; it runs from the next iteration on, as far as there is room."""
        if self.state != "ready":
            self._fail(generation, self._unusable(str(self.reason)))
            return
        generation.is_held = generation.entry.pid in self._held_pids
        self._generations.append(generation)
        self._policy.enter(generation.entry)

    def cancel(self, generation: Generation) -> None:
        """End a generation without a finish reason and free its sequence."""
        if generation in self._generations:
            self._end(generation, finish=None)

    def hold(self, pid: int, is_held: bool) -> None:
        """Leave a process's generations out of the steps, or take them in again."""
        if is_held:
            self._held_pids.add(pid)
        else:
            self._held_pids.discard(pid)
        for generation in self._generations:
            if generation.entry.pid == pid:
                generation.is_held = is_held

    def renice(self, pid: int, nice: int) -> None:
        """Change the priority of a process's generations."""
        for generation in self._generations:
            if generation.entry.pid == pid:
                generation.entry.nice = nice

    def end_domain(self, domain: str) -> None:
        """Free cached KV that nobody can ask for any more, because its domain has ended."""
        if self.state != "ready":
            return
        try:
            self._require_residency().end_domain(domain)
        except DeviceError as problem:
            self._fault = problem

    def expect_urgent(self) -> None:
        """Keep steps short for a while: an urgent process has started."""
        if self._batcher is not None:
            self._batcher.expect_urgent()

    @property
    def adapters(self) -> frozenset[str]:
        """The adapters that are attached."""
        return self._adapters.names

    def attach(self, name: str, path: Path) -> None:
        """Attach an adapter, unless it is; while there is no room for it, once there is.

        Raises: DeviceError.
        """
        self._adapters.know(name, path)
        try:
            self._bring(name)
        except DeviceError as problem:
            if problem.is_fatal:
                self._fault = problem
            raise

    def iterate(self) -> None:
        """Run one iteration, if anybody can make progress."""
        self._drop_overdue()
        if self._fault is None:
            self._admit()
        if self._fault is not None:
            self._after_failure([], self._fault)
            return
        assert self._batcher is not None
        batch = self._batcher.plan(
            [g for g in self._generations if g.sequence is not None and not g.is_held]
        )
        if not batch:
            self._count_idle()
            return
        self._idle_iterations = 0
        started = self._clock.now()
        try:
            sampled = contained(
                lambda: self._device.step([fed.feed for fed in batch]), is_fatal=True
            )
        except DeviceError as problem:
            self._after_failure([fed.generation for fed in batch], problem)
            return
        self._publish(batch, sampled, started, self._clock.now())

    def _drop_overdue(self) -> None:
        """End the generations that nobody waits for any more."""
        now = self._clock.now()
        for generation in list(self._generations):
            deadline_s = generation.entry.deadline_s
            if deadline_s is not None and now >= deadline_s:
                waited_s, tokens = now - generation.entry.arrived_s, len(generation.output)
                self._fail(generation, overdue(self.name, waited_s=waited_s, tokens=tokens))

    def _count_idle(self) -> None:
        """An iteration had nothing to feed; many in a row, and somebody waits for ever."""
        self._idle_iterations = self._idle_iterations + 1 if self.has_work else 0
        if self._idle_iterations > MAX_IDLE_ITERATIONS:
            states = [(g.entry.key, g.sequence, g.fed, g.length) for g in self._generations]
            raise KernelPanic(f"generations wait that nothing serves: {states}")

    # --- plan ------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give sequences to waiting generations, in the policy's order."""
        waiting = [g for g in self._generations if g.sequence is None and not g.is_held]
        by_key = {g.entry.key: g for g in waiting}
        for entry in self._policy.order([g.entry for g in waiting]):
            generation = by_key[entry.key]
            if self._should_wait_for_prefix(generation):
                continue
            if not self._give_sequence(generation):
                break

    def _give_sequence(self, generation: Generation) -> bool:
        """Place a generation, in another's stead if the policy says so."""
        try:
            if not self._place(generation):
                return False
        except DeviceError as problem:
            self._after_failure([generation], problem)
            return True
        generation.entry.turn_tokens = 0
        if generation.cached_tokens is None:
            generation.cached_tokens = min(generation.fed, len(generation.order.prompt))
        return True

    def _place(self, generation: Generation) -> bool:
        residency = self._require_residency()
        if not self._place_adapter(generation):
            return False
        if not residency.is_full and residency.place(generation):
            return True
        victim = self._victim(generation)
        if victim is None:
            return False
        self._preempt(victim)
        return residency.place(generation)

    def _place_adapter(self, generation: Generation) -> bool:
        """Bring a generation's adapter, in another's stead if the policy says so."""
        adapter = generation.order.adapter
        while adapter is not None and not self._bring(adapter):
            victim = self._victim(generation, has_adapter=True)
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _bring(self, adapter: str) -> bool:
        """Attach a known adapter, unless it is; False: those of live sequences leave no room."""
        live = {g.order.adapter for g in self._generations if g.sequence is not None}
        in_use = frozenset(name for name in live if name is not None)
        return contained(lambda: self._adapters.bring(adapter, in_use=in_use), is_fatal=False)

    def _should_wait_for_prefix(self, generation: Generation) -> bool:
        """Whether a running prefill is computing a prefix that this generation also needs."""
        if not self._require_residency().can_lend_early:
            return False
        is_mine_urgent = is_urgent(self._policy, generation.entry)
        for other in self._generations:
            if other.sequence is None or other.is_held or not other.is_prefilling:
                continue
            if is_mine_urgent and not is_urgent(self._policy, other.entry):
                continue  # beside urgent ones, what it would wait for gets little of the device
            shared = generation.shared_with.get(other.entry.key)
            if shared is None:
                shared = shareable_tokens(generation.order, other.order)
                generation.shared_with[other.entry.key] = shared
            if shared - other.fed >= WORTH_WAITING_TOKENS:
                return True
        return False

    def _victim(self, waiting: Generation, *, has_adapter: bool = False) -> Generation | None:
        """Who must give up its sequence for this one; `has_adapter`: of those that hold one."""
        holding = [
            g
            for g in self._generations
            if g.sequence is not None and (g.order.adapter is not None or not has_adapter)
        ]
        for generation in holding:
            if generation.is_held:
                return generation
        chosen = self._policy.victim([waiting.entry], [g.entry for g in holding])
        return next((g for g in holding if g.entry is chosen), None)

    def _preempt(self, generation: Generation) -> None:
        try:
            self._require_residency().swap_out(generation)
        except DeviceError as problem:
            self._fault = problem
        generation.entry.queued_s = self._clock.now()

    # --- publish ---------------------------------------------------------------------------------

    def _publish(
        self, batch: Sequence[Fed], sampled: Iterable[Sampled], started_s: float, ended_s: float
    ) -> None:
        report, step = self._report, self.gauges.steps + 1
        chosen: dict[SequenceId, list[Sampled]] = {}
        for one in sampled:
            chosen.setdefault(one.sequence, []).append(one)
        for generation, feed, is_decode in batch:
            tokens = chosen.get(feed.sequence, [])
            # All but the last are guesses that were right, and in KV with what was fed.
            kept = [*feed.tokens, *(one.token for one in tokens[:-1])]
            self._require_residency().record(feed.sequence, kept)
            if generation.first_fed_s is None:
                generation.first_fed_s = started_s
            prompt_tokens = 0 if is_decode else len(feed.tokens)
            report.prefill_tokens += prompt_tokens
            report.decode_tokens += len(tokens) if is_decode else 0
            self._policy.served(
                generation.entry, prompt_tokens=prompt_tokens, new_tokens=len(tokens)
            )
            generation.fed += len(kept)
            generation.last_step = step
            generation.entry.turn_tokens += len(kept)
            generation.kv_token_s += generation.fed * (ended_s - started_s)
        assert self._batcher is not None
        self._batcher.learn(batch, ended_s - started_s)
        report.started_s, report.ended_s = started_s, ended_s
        self._count_step(report)
        for generation, feed, _ in batch:
            for one in chosen.get(feed.sequence, []):
                if not self._take_sampled(generation, one, ended_s):
                    break

    def _take_sampled(self, generation: Generation, sampled: Sampled, now_s: float) -> bool:
        """Take a sampled token and those that it forces; False when the generation is over."""
        drafter = generation.drafter
        if drafter is not None:
            drafter.observe([sampled.token])
            drafter.read(sampled.forced)
        if not self._take_token(generation, sampled, now_s):
            return False
        ends = self._device.info.end_tokens
        return all(
            self._take_token(generation, sampled._replace(token=token, is_end=token in ends), now_s)
            for token in sampled.forced
        )

    def _take_token(self, generation: Generation, sampled: Sampled, now_s: float) -> bool:
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
        finish = generation.take(
            self._device, sampled.token, is_end=sampled.is_end, logprob=logprob
        )
        if finish is not None:
            rest = generation.text.finish()
            if rest:
                generation.written.append(rest)
        if len(generation.written) > written and generation.pieces is not None:
            self._report.pieces.append((generation, "".join(generation.written[written:])))
        if finish is not None:
            self._end(generation, finish=finish)
        return finish is None

    def _text_of(self, token: int) -> str:
        return self._device.detokenize([token]).decode("utf-8", errors="replace")

    def _count_step(self, report: Report) -> None:
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

    def take_report(self) -> Report | None:
        """What happened since the last time, if anything, for the event loop."""
        holdings = self._require_residency().holdings()
        holding = [g for g in self._generations if g.sequence is not None]
        self.gauges = self.gauges._replace(
            running=len(holding),
            waiting=len(self._generations) - len(holding),
            **holdings._asdict(),
        )
        report = self._report
        if not report.pieces and not report.ended and report.started_s is None:
            return None
        self._report = Report()
        return report

    # --- ends ------------------------------------------------------------------------------------

    def _end(
        self,
        generation: Generation,
        *,
        finish: FinishReason | None,
        error: SyscallError | None = None,
    ) -> None:
        if self._residency is not None:
            try:
                self._residency.let_go(generation, keep=finish is not None)
            except DeviceError as problem:
                self._fault = problem
        if generation in self._generations:
            self._generations.remove(generation)
            self._policy.leave(generation.entry)
        if self._batcher is not None:
            self._batcher.left(generation)
        if finish is not None:
            self.ends.count(self._clock.now(), is_last=not self._generations)
            if self._batcher is not None:
                self._batcher.ended(generation)
        outcome = generation.outcome(
            now_s=self._clock.now(),
            kv_bytes_per_token=self._device.info.kv_bytes_per_token,
            finish=finish,
            error=error,
        )
        self._report.ended.append((generation, outcome))

    def _fail(self, generation: Generation, error: SyscallError) -> None:
        self._end(generation, finish=None, error=error)

    def _after_failure(self, batch: Sequence[Generation], problem: DeviceError) -> None:
        """Fail the calls that a failure hit; after a fatal one, all, and reopen the device."""
        if isinstance(problem, SequenceError):
            batch = [g for g in batch if g.sequence == problem.sequence]
        if not problem.is_fatal:
            for generation in batch:
                self._fail(generation, device_failure(self.name, problem))
            return
        self._fault = None
        for generation in list(self._generations):
            if generation.sequence is None:
                continue  # has nothing on the device: it can still run after a reopen
            generation.sequence = None
            self._fail(generation, device_failure(self.name, problem))
        self._close_driver()
        try:
            self.open()
        except (DeviceError, SyscallError) as reopening:
            self._fail_all(self._unusable(f"is down: {reopening}"))

    def _close_driver(self) -> None:
        try:
            if self.draft_model is not None:
                self.draft_model.close()
            self._device.close()
        except Exception:
            log.warning("device %s did not close well", self.name, exc_info=True)

    def _fail_all(self, error: SyscallError) -> None:
        for generation in list(self._generations):
            self._fail(generation, error)

    def _unusable(self, why: str) -> SyscallError:
        return SyscallError("device", f"device {self.name} {why}", device=self.name)

    @property
    def _device(self) -> LanguageModel:
        assert self.driver is not None
        return self.driver

    def _require_residency(self) -> Residency:
        assert self._residency is not None
        return self._residency


def device_failure(name: str, problem: DeviceError) -> SyscallError:
    """What a caller is told of a driver's error."""
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
