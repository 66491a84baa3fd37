"""The engine of a model on another machine: a queue in front of a server with its own scheduler.

It has an `Engine`'s face and none of its thread: requests are tasks of the event loop. What the
kernel still decides is who may be at the server, by the same policies as on a local device, and
what that may cost. What it cannot do there: preempt a request that is under way, or stop it at a
token; `STOP` keeps back only what has not been sent. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from llmos.drivers.chat_model import (
    ChatEnd,
    ChatModel,
    ChatRequest,
    Conversation,
    PassingError,
    TooLongError,
    UnsupportedError,
)
from llmos.drivers.contract import Allocation, DeviceError, ModelInfo, RequestError
from llmos.kernel.budget import Budget, Reservation
from llmos.kernel.clock import Clock, Timer
from llmos.kernel.device import DeviceState
from llmos.kernel.generation import Generation
from llmos.kernel.overload import Ends, overdue, queue_full
from llmos.kernel.policies import Policy
from llmos.syscalls.content import Message
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo, FinishReason, ToolSpec


@dataclass(slots=True, eq=False)
class _Job:
    """A generation with what is asked of the server and set aside for it."""

    generation: Generation
    request: ChatRequest
    reservation: Reservation | None
    task: asyncio.Task[None] | None = None
    deadline: Timer | None = None
    overdue: SyscallError | None = None  # its deadline has passed


class Outbound:
    """A remote model with its queue."""

    def __init__(
        self,
        name: str,
        model: ChatModel,
        *,
        policy: Policy,
        clock: Clock,
        concurrency: int,
        budget: Budget | None = None,
        max_queued: int = 10_000,
    ) -> None:
        self.name = name
        self.state: DeviceState = "closed"
        self._chat = model
        self._policy = policy
        self._clock = clock
        self._concurrency = concurrency
        self._budget = budget
        self._max_queued = max_queued
        self._reason: str | None = None
        self._jobs: dict[Generation, _Job] = {}
        self._held: set[int] = set()
        self._ends = Ends()
        self._opening = asyncio.Lock()
        self._salt = secrets.token_hex(4)
        self._requests = 0
        self._prefilled = (0, 0.0)  # tokens, seconds
        self._decoded = (0, 0.0)

    @property
    def model(self) -> ModelInfo:
        return self._chat.info

    def tokenize(self, text: str) -> list[int]:
        return self._chat.tokenize(text)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), prefix: str = ""
    ) -> list[int]:
        return self._chat.render(Conversation(messages, tools, prefix))

    async def start(self) -> None:
        """Find the server, also again after it was lost. Raises: DeviceError."""
        async with self._opening:
            if self.state == "ready":
                return
            self.state = "opening"
            try:
                await self._chat.open()
            except BaseException as problem:
                self.state, self._reason = "down", str(problem) or type(problem).__name__
                raise
            self.state, self._reason = "ready", None

    async def opened(self) -> None:
        async with self._opening:
            pass

    async def stop(self) -> None:
        self.state, self._reason = "closed", "the kernel stops"
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for generation in list(self._jobs):
            self.cancel(generation)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._chat.close()

    def has_adapter(self, name: str) -> bool:
        """A remote device has none."""
        return False

    async def attach(self, name: str, path: Path) -> None:
        raise SyscallError("not_available", f"{self.name} is remote and takes no adapters")

    def submit(self, generation: Generation) -> None:
        """Queue a generation.

        Raises: SyscallError("busy") when the queue is full, ("quota_exceeded") when the budget is
        spent, ("not_available") when the server has no means for what is asked.
        """
        if self.state != "ready":
            raise self._not_ready()
        if len(self._jobs) >= self._max_queued:
            raise queue_full(
                self.name, waiting=len(self._jobs), limit=self._max_queued, ends=self._ends
            )
        order = generation.order
        conversation = order.conversation
        assert conversation is not None
        reservation = None
        if self._budget is not None:
            reservation = self._budget.reserve(len(order.prompt), order.max_tokens)
            if reservation.new_tokens < order.max_tokens:
                order = dataclasses.replace(order, max_tokens=reservation.new_tokens, limit="quota")
                generation.order = order
        entry = generation.entry
        request = ChatRequest(
            conversation=conversation,
            sampling=order.sampling,
            max_tokens=order.max_tokens,
            stop=order.stop,
            stop_tokens=order.stop_tokens,
            constraint=order.constraint,
            session=f"{self._salt}-{entry.program or entry.pid}",
        )
        try:
            self._chat.check(request)
        except DeviceError as problem:
            if self._budget is not None and reservation is not None:
                self._budget.settle(reservation, prompt_tokens=0, new_tokens=0)
            raise self._failure(problem) from problem
        job = self._jobs[generation] = _Job(generation, request, reservation)
        if entry.deadline_s is not None:
            left_s = entry.deadline_s - self._clock.now()
            job.deadline = self._clock.call_later(left_s, lambda: self._drop(job))
        self._policy.enter(entry)
        self._admit()

    def cancel(self, generation: Generation) -> None:
        """End a generation; what is under way ends at the server, too."""
        job = self._jobs.get(generation)
        if job is None:
            return
        if job.task is not None:
            job.task.cancel()
        else:
            self._end(job)

    def hold(self, pid: int, *, is_held: bool) -> None:
        """Keep back what a process has not sent yet, or send it."""
        (self._held.add if is_held else self._held.discard)(pid)
        self._admit()

    def renice(self, pid: int, nice: int) -> None:
        for generation in self._jobs:
            if generation.entry.pid == pid:
                generation.entry.nice = nice

    def end_domain(self, domain: str) -> None:
        """Nothing to do: the KV is the server's."""

    def info(self) -> DeviceInfo:
        model = self.model
        running = sum(job.task is not None for job in self._jobs.values())
        return DeviceInfo(
            name=self.name,
            driver="remote",
            model=model.name,
            state=self.state,
            reason=self._reason,
            sequences=self._concurrency,
            running=running,
            waiting=len(self._jobs) - running,
            prefill_tokens_per_s=_rate(*self._prefilled),
            decode_tokens_per_s=_rate(*self._decoded),
            steps=self._requests,
            spent_tokens=self._budget.spent_tokens if self._budget else None,
            spent=self._budget.spent if self._budget else None,
        )

    def allocations(self) -> list[Allocation]:
        return []

    # --- internals --------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Send what the policy puts first, as far as the server may be asked at once."""
        running = sum(job.task is not None for job in self._jobs.values())
        room = self._concurrency - running
        if room <= 0 or self.state != "ready":
            return
        waiting = {
            generation.entry.key: job
            for generation, job in self._jobs.items()
            if job.task is None and generation.entry.pid not in self._held
        }
        ordered = self._policy.order([job.generation.entry for job in waiting.values()])
        for entry in ordered[:room]:
            job = waiting[entry.key]
            job.generation.first_fed_s = self._clock.now()
            job.task = asyncio.get_running_loop().create_task(self._serve(job))
            # A task that is cancelled before its first step runs none of its own code.
            job.task.add_done_callback(lambda _, job=job: self._end_if_not(job))

    async def _serve(self, job: _Job) -> None:
        self._requests += 1
        try:
            await self._ask(job)
        except DeviceError as problem:
            if problem.is_fatal:
                self._lose(problem)
            self._end(job, error=self._failure(problem))
        except Exception as problem:  # noqa: BLE001 - a lost task would leave its caller waiting
            bug = DeviceError(f"{type(problem).__name__}: {problem}")
            bug.__cause__ = problem
            self._end(job, error=self._failure(bug))

    async def _ask(self, job: _Job) -> None:
        """One request, to its end. Raises: DeviceError."""
        generation, text = job.generation, job.generation.text
        end: ChatEnd | None = None
        async with aclosing(self._chat.stream(job.request)) as answer:
            async for piece in answer:
                if generation.first_token_s is None:
                    generation.first_token_s = self._clock.now()
                if isinstance(piece, ChatEnd):
                    end = piece
                    break
                self._write(generation, text.push(piece.encode(errors="replace")))
                if text.stopped:  # the server may not look for as many strings as we do
                    break
        if not text.stopped:
            self._write(generation, text.finish())
        finish: FinishReason = "stop"
        if end is not None and end.finish == "length":
            finish = generation.order.limit
        self._end(job, finish=finish, end=end)

    def _write(self, generation: Generation, piece: str) -> None:
        if piece:
            generation.written.append(piece)
            if generation.pieces is not None:
                generation.pieces.put_nowait(piece)

    def _end(
        self,
        job: _Job,
        *,
        finish: FinishReason | None = None,
        error: SyscallError | None = None,
        end: ChatEnd | None = None,
    ) -> None:
        """Take a generation out and deliver its outcome; what was not told is counted here."""
        generation = job.generation
        del self._jobs[generation]
        if job.deadline is not None:
            job.deadline.cancel()
        now = self._clock.now()
        if finish is not None:
            self._ends.count(now, is_last=not self._jobs)
        outcome = generation.outcome(now_s=now, kv_bytes_per_token=0, finish=finish, error=error)
        told = end or ChatEnd("stop")
        is_begun = generation.first_token_s is not None
        prompt = outcome.prompt_tokens if told.prompt_tokens is None else told.prompt_tokens
        new = told.completion_tokens
        if new is None:
            new = len(self._chat.tokenize(outcome.text))
        outcome = dataclasses.replace(
            outcome,
            prompt_tokens=prompt,
            cached_tokens=told.cached_tokens or 0,
            requests=told.requests,
            told_tokens=new,
        )
        if is_begun:
            computed = max(0, prompt - outcome.cached_tokens)
            self._prefilled = _sum(self._prefilled, computed, outcome.prefill_s)
            self._decoded = _sum(self._decoded, max(0, new - 1), outcome.decode_s)
            self._policy.served(generation.entry, prompt_tokens=computed, new_tokens=new)
        if self._budget is not None and job.reservation is not None:
            self._budget.settle(
                job.reservation,
                prompt_tokens=prompt if is_begun else 0,
                new_tokens=new if is_begun else 0,
            )
        self._policy.leave(generation.entry)
        if not generation.done.done():
            generation.done.set_result(outcome)
        self._admit()

    def _end_if_not(self, job: _Job) -> None:
        if job.generation in self._jobs:
            self._end(job, error=job.overdue)

    def _drop(self, job: _Job) -> None:
        """End a generation that nobody waits for any more, and its request at the server."""
        generation = job.generation
        waited_s = self._clock.now() - generation.entry.arrived_s
        tokens = len(self._chat.tokenize("".join(generation.written)))
        job.overdue = overdue(self.name, waited_s=waited_s, tokens=tokens)
        if job.task is None:
            self._end(job, error=job.overdue)
        else:
            job.task.cancel()

    def _lose(self, problem: DeviceError) -> None:
        """The server is gone: what waits need not find out one by one."""
        if self.state == "ready":
            self.state, self._reason = "down", str(problem)
        for job in list(self._jobs.values()):
            if job.task is None:
                self._end(job, error=self._failure(problem))

    def _failure(self, problem: DeviceError) -> SyscallError:
        match problem:
            case UnsupportedError():
                error = SyscallError(
                    "not_available", f"{problem.field}: {problem}", field=problem.field
                )
            case TooLongError():
                error = SyscallError(
                    "context_overflow",
                    f"the prompt is too long for {self.name}: {problem}",
                    limit_tokens=self.model.context_tokens,
                )
            case RequestError():
                error = SyscallError("invalid", f"{problem.field}: {problem}", field=problem.field)
            case _:
                error = SyscallError(
                    "device",
                    f"device {self.name} failed: {problem}",
                    is_retryable=problem.is_fatal or isinstance(problem, PassingError),
                    device=self.name,
                )
        error.__cause__ = problem
        return error

    def _not_ready(self) -> SyscallError:
        return SyscallError(
            "device",
            f"device {self.name} is {self.state}: {self._reason}",
            is_retryable=self.state == "down",
            device=self.name,
        )


def _sum(total: tuple[int, float], tokens: int, seconds: float) -> tuple[int, float]:
    return total[0] + tokens, total[1] + seconds


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 and tokens else None
