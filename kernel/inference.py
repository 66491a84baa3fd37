"""Generation, embedding and token counts as services: from a call to tokens, and back to a result.

Knows prompts, contexts, tools and quotas; the engine knows none of them. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass

from llmos.drivers.chat_model import Conversation
from llmos.drivers.plain_tokens import PLAIN_ENCODING, plain_tokens
from llmos.drivers.tool_text import parse_tool_requests
from llmos.drivers.utf8 import TextStream
from llmos.kernel.clock import Clock
from llmos.kernel.contexts import Contexts
from llmos.kernel.device import Device
from llmos.kernel.devices import Devices
from llmos.kernel.generation import Generation, Order, Outcome
from llmos.kernel.kv_domain import PublicPrefixes, Sharing, domain_of, ends_with
from llmos.kernel.origins import Origin, Origins
from llmos.kernel.policies import Entry
from llmos.kernel.process import INIT, Process
from llmos.kernel.router import Ask, Used
from llmos.kernel.text_device import TOKEN_CHARS
from llmos.kernel.toolbox import ToolBox
from llmos.kernel.trace import Tracer
from llmos.memory.context import Context
from llmos.syscalls import calls
from llmos.syscalls.content import Message, TextPart, user
from llmos.syscalls.errors import Killed, SyscallError
from llmos.syscalls.results import (
    Delta,
    Embedded,
    FinishReason,
    Generated,
    ModelVersion,
    Tokens,
    ToolSpec,
    Usage,
)
from llmos.syscalls.values import JsonObject

# About 20 ms of tokenizing.
LONG_TEXT_CHARS = 65_536
# How much of a text is about a token, where only the ratio of devices matters.
CHARS_PER_TOKEN = 4


# Told of every answer: who asked, what the model read, what it said.
OnAnswer = Callable[[Process, Conversation, Generated], None]


@dataclass(slots=True, eq=False)
class _Ticket:
    """A submitted generation with what must be settled when it ends."""

    generation: Generation
    engine: Device
    process: Process
    adapter: str | None
    tokens_out: int
    kv_bytes: int
    origin: Origin


class Inference:
    def __init__(
        self,
        *,
        devices: Devices,
        contexts: Contexts,
        toolbox: ToolBox,
        clock: Clock,
        tracer: Tracer,
        weights: Mapping[str, float],
        sharing: Sharing,
        on_answer: OnAnswer,
    ) -> None:
        self._devices = devices
        self._contexts = contexts
        self._toolbox = toolbox
        self._clock = clock
        self._tracer = tracer
        self._sharing: Sharing = sharing
        self._on_answer = on_answer
        self._public = PublicPrefixes()
        self._origins = Origins()
        self._weights = weights
        self._keys = itertools.count(1)
        self._under_way: dict[int, set[_Ticket]] = {}

    async def generate(self, process: Process, call: calls.Generate) -> Generated:
        """Generate to the end."""
        return await self._whole(process, call, is_told=True)

    async def measure(self, process: Process, call: calls.Generate) -> Generated:
        """Generate to the end, for an evaluation: held-out rows never become training data."""
        return await self._whole(process, call, is_told=False)

    async def _whole(self, process: Process, call: calls.Generate, *, is_told: bool) -> Generated:
        result: Generated | None = None
        async for piece in self._run(process, call, pieces=None, is_told=is_told):
            if isinstance(piece, Generated):
                result = piece
        assert result is not None
        return result

    def stream(self, process: Process, call: calls.Generate) -> AsyncIterator[Delta | Generated]:
        """Generate piece by piece; closing the iterator cancels."""
        return self._run(process, call, pieces=asyncio.Queue())

    async def embed(self, process: Process, call: calls.Embed) -> Embedded:
        """Embed texts; their tokens are charged as tokens in."""
        for index, text in enumerate(call.texts):
            if not text.strip():
                raise SyscallError("invalid", f"texts.{index}: it is blank", field=f"texts.{index}")
        embedder = await self._devices.encoders.embedder()
        if call.model is not None and call.model != embedder.name:
            raise SyscallError(
                "unknown_model",
                f"no embedding model is configured as {call.model!r}; known is {embedder.name}",
                name=call.model,
                known=[embedder.name],
            )
        count = embedder.driver.count
        most = embedder.model.max_tokens
        tokens = sum(min(count(text[: most * TOKEN_CHARS]), most) for text in call.texts)
        process.account.charge("tokens_in", tokens)
        process.account.tokens_in += tokens
        vectors = await embedder.embed(call.texts)
        return Embedded(
            vectors=tuple(tuple(vector) for vector in vectors),
            model=embedder.name,
            dimensions=embedder.model.dimensions,
            tokens=tokens,
        )

    async def tokenize(self, call: calls.Tokenize) -> Tokens:
        """Count exactly for a local model; `model="tiktoken"` counts without opening one."""
        if call.model == "tiktoken":
            ids = plain_tokens(call.text)
            return Tokens(ids=tuple(ids), count=len(ids), is_exact=False, tokenizer=PLAIN_ENCODING)
        engine = await self._devices.engine(call.model)
        ids = await _off_loop(len(call.text), lambda: engine.tokenize(call.text))
        is_exact = engine.model.abilities.counts_exactly
        tokenizer = engine.name if is_exact else PLAIN_ENCODING
        return Tokens(ids=tuple(ids), count=len(ids), is_exact=is_exact, tokenizer=tokenizer)

    def tokens_under_way(self, process: Process) -> int:
        """Tokens that the process's unfinished generations have produced."""
        tickets = self._under_way.get(process.pid, ())
        return sum(len(ticket.generation.output) for ticket in tickets)

    def release(self, process: Process) -> None:
        """The process has ended: free its sequences before the next step."""
        for ticket in self._under_way.get(process.pid, ()):
            ticket.engine.cancel(ticket.generation)
        if ends_with(process, self._sharing):
            self._devices.end_domain(domain_of(process, self._sharing))

    # --- one generation ---------------------------------------------------------------------------

    async def _run(
        self,
        process: Process,
        call: calls.Generate,
        *,
        pieces: asyncio.Queue[str] | None,
        is_told: bool = True,
    ) -> AsyncGenerator[Delta | Generated]:
        """Generate on a device that can, once more on another if the first one fails for good.

        What has been streamed cannot be taken back, so then the failure is the caller's. `is_told`
        says whether the answer is one for the traces.
        """
        origin = self._origins.of(process, call.messages, self._clock.now())
        model, ask = self._asked(process, call, origin)
        allows = process.capabilities.allows
        names = self._devices.candidates(model, may_use=lambda name: allows("models", name))
        names = self._devices.with_adapter(names, call.adapter)
        engine = await self._devices.choose(model, names, ask)
        is_streamed = False
        try:
            async with aclosing(
                self._attempt(process, call, engine, origin, ask, pieces, is_told)
            ) as attempt:
                async for piece in attempt:
                    is_streamed = True
                    yield piece
            return
        except SyscallError as problem:
            others = [name for name in names if name != engine.name]
            can_go_on = problem.code == "device" and problem.is_retryable and not is_streamed
            if not can_go_on or not others:
                raise
            failure = problem
        self._tracer.mark(
            "failover", "device", pid=process.pid, args={"from": engine.name, "why": str(failure)}
        )
        try:
            engine = await self._devices.choose(model, others, ask)
        except SyscallError:
            raise failure from None
        async with aclosing(
            self._attempt(process, call, engine, origin, ask, pieces, is_told)
        ) as attempt:
            async for piece in attempt:
                yield piece

    def _asked(
        self, process: Process, call: calls.Generate, origin: Origin
    ) -> tuple[str | None, Ask]:
        """The model or class that is meant, and about how much is to be done."""
        model = call.model
        chars = len(call.prompt or "") + sum(len(message.text) for message in call.messages)
        if call.context is not None:
            context = self._contexts.get(process, call.context)
            if self._devices.is_class(model) and context.model in self._devices.candidates(model):
                model = context.model  # whose window and counts the context keeps to
        return model, Ask(origin.program, chars // CHARS_PER_TOKEN, call.max_tokens)

    async def _attempt(
        self,
        process: Process,
        call: calls.Generate,
        engine: Device,
        origin: Origin,
        ask: Ask,
        pieces: asyncio.Queue[str] | None,
        is_told: bool,
    ) -> AsyncGenerator[Delta | Generated]:
        context = None if call.context is None else self._contexts.get(process, call.context)
        # A turn that got no answer is taken back, so that asking again does not double it.
        with (
            self._contexts.kept_on_failure(process, context) if context else nullcontext(),
            self._devices.serving(call.adapter, engine, process.pid) as adapter,
        ):
            ticket = await self._submit(process, call, engine, adapter, context, origin, pieces)
            generation = ticket.generation
            prompt_tokens = len(generation.order.prompt)
            self._devices.began(engine, generation, ask._replace(prompt_tokens=prompt_tokens))
            earlier = (process.state, process.waiting_on)
            process.state, process.waiting_on = "waiting_device", engine.name
            try:
                if pieces is not None:
                    async for delta in _deltas(generation, pieces):
                        yield delta
                outcome = await asyncio.shield(generation.done)
            finally:
                if not generation.done.done():
                    engine.cancel(generation)
                if not process.is_over:
                    process.state, process.waiting_on = earlier
            if outcome.error is not None:
                raise outcome.error
            if outcome.finish is None:  # cancelled, because the process has ended
                raise Killed("KILL")
            generated = self._result(call, ticket, outcome)
            if is_told and generation.order.conversation is not None:
                self._on_answer(process, generation.order.conversation, generated)
            if context is not None:
                await self._contexts.extend(process, context, [generated.message])
            else:
                self._origins.answered(process, ticket.origin, call.messages, generated.message)
        yield generated

    async def _submit(
        self,
        process: Process,
        call: calls.Generate,
        engine: Device,
        adapter: ModelVersion | None,
        context: Context | None,
        origin: Origin,
        pieces: asyncio.Queue[str] | None,
    ) -> _Ticket:
        text_stream = _text_stream(call.stop)
        specs = [*self._toolbox.specs(process, call.tools), *call.tool_specs]
        key = None if adapter is None else await self._devices.attach(adapter, engine)
        if call.prompt is not None:
            _require_prompt_alone(call)
            text = call.prompt
            conversation = Conversation(prompt=text)
            prompt = await _off_loop(len(text), lambda: engine.tokenize(text))
            public = 0
        else:
            messages = await self._conversation(process, call, context, engine, specs)
            conversation = Conversation(messages, specs, call.prefix)
            size = sum(len(message.text) for message in messages)
            prompt = await _off_loop(
                size, lambda: engine.render(messages, tools=specs, prefix=call.prefix)
            )
            public = self._public.tokens(
                prompt,
                messages,
                specs,
                model=engine.name,
                render=lambda start: engine.render(start, tools=specs),
            )
        if not prompt:
            raise SyscallError("invalid", "prompt: the model reads no token in it", field="prompt")
        max_tokens, limit = _room(call, engine, len(prompt))
        account = process.account
        account.charge("tokens_in", len(prompt))
        granted, kv_bytes = 0, 0
        try:
            granted = account.reserve_up_to("tokens_out", max_tokens)
            if granted < max_tokens:
                limit = "quota"
            kv_bytes = (len(prompt) + granted) * engine.model.kv_bytes_per_token
            account.charge("kv_bytes", kv_bytes)
        except SyscallError:
            account.refund("tokens_in", len(prompt))
            account.refund("tokens_out", granted)
            raise
        account.tokens_in += len(prompt)
        account.kv_bytes += kv_bytes
        now = self._clock.now()
        seed = call.sampling.seed
        if seed is None:  # a preempted generation must be able to go on with the same draws
            seed = secrets.randbits(62)
        generation = Generation(
            order=Order(
                prompt=prompt,
                sampling=call.sampling.model_copy(update={"seed": seed}),
                max_tokens=granted,
                limit=limit,
                constraint=call.constraint,
                adapter=key,
                stop=call.stop,
                stop_tokens=frozenset(call.stop_tokens),
                domain=domain_of(process, self._sharing),
                public_tokens=0 if self._sharing == "none" else public,
                conversation=conversation,
            ),
            entry=Entry(
                key=next(self._keys),
                pid=process.pid,
                nice=process.nice,
                arrived_s=now,
                queued_s=now,
                program=origin.program,
                program_arrived_s=origin.arrived_s,
                client=origin.client or str(origin.program),
                weight=self._weights.get(origin.client, 1.0),
                deadline_s=None if call.deadline_s is None else now + call.deadline_s,
                path_s=origin.path_s,
            ),
            pieces=pieces,
            done=asyncio.get_running_loop().create_future(),
            text=text_stream,
        )
        name = None if adapter is None else adapter.name
        ticket = _Ticket(generation, engine, process, name, granted, kv_bytes, origin)
        self._under_way.setdefault(process.pid, set()).add(ticket)
        generation.done.add_done_callback(lambda done: self._settle(ticket, done.result()))
        try:
            engine.submit(generation)
        except SyscallError:
            account.refund("tokens_in", len(prompt))
            account.tokens_in -= len(prompt)
            generation.done.set_result(
                generation.outcome(now_s=now, kv_bytes_per_token=0, finish=None)
            )
            raise
        return ticket

    async def _conversation(
        self,
        process: Process,
        call: calls.Generate,
        context: Context | None,
        engine: Device,
        specs: Sequence[ToolSpec],
    ) -> Sequence[Message]:
        if context is None:
            if not call.messages:
                raise SyscallError(
                    "invalid", "messages: give at least one, or a context", field="messages"
                )
            _require_text(call.messages)
            return call.messages
        if not self._devices.stands_in(engine.name, context.model):
            raise SyscallError(
                "invalid",
                f"model: context {context.context} was opened for {context.model}, "
                f"not for {engine.name}",
                field="model",
            )
        _require_text(call.messages)
        reserve = min(call.max_tokens, context.budget_tokens // 2)
        reserve += _surround_tokens(engine, specs, call.prefix)
        await self._contexts.prepare(process, context, call.messages, reserve_tokens=reserve)
        window = context.window()
        if not window:
            raise SyscallError(
                "invalid", f"messages: context {context.context} is empty", field="messages"
            )
        return window

    def _settle(self, ticket: _Ticket, outcome: Outcome) -> None:
        """Replace what was reserved by what was used, whoever still waits for the result."""
        under_way = self._under_way[ticket.process.pid]
        under_way.discard(ticket)
        if not under_way:
            del self._under_way[ticket.process.pid]
        account = ticket.process.account
        used = outcome.completion_tokens
        # A remote device tells what it read; until then it was an estimate.
        surplus = len(ticket.generation.order.prompt) - outcome.prompt_tokens
        account.refund("tokens_in", surplus)
        account.tokens_in -= surplus
        account.refund("tokens_out", ticket.tokens_out - used)
        account.refund("kv_bytes", ticket.kv_bytes)
        account.kv_bytes -= ticket.kv_bytes
        account.tokens_out += used
        account.tokens_cached += outcome.cached_tokens
        account.queued_s += outcome.queued_s
        account.prefill_s += outcome.prefill_s
        account.decode_s += outcome.decode_s
        account.kv_byte_s += outcome.kv_byte_s
        told = Used(
            prompt_tokens=outcome.prompt_tokens,
            cached_tokens=outcome.cached_tokens,
            new_tokens=used,
            prefill_s=outcome.prefill_s,
            decode_s=outcome.decode_s,
        )
        self._devices.ended(
            ticket.engine, ticket.generation, None if outcome.finish is None else told
        )
        entry, process = ticket.generation.entry, ticket.process
        start = entry.arrived_s
        read: JsonObject = {
            "prompt": outcome.prompt_tokens,
            "cached": outcome.cached_tokens,
            # A child of init may go on for an earlier one: each request over HTTP has its own.
            "conversation": entry.program if process.parent == INIT else process.pid,
            "client": entry.client,
            "nice": entry.nice,
        }
        for name, seconds in (
            ("queued", outcome.queued_s),
            ("prefill", outcome.prefill_s),
            ("decode", outcome.decode_s),
        ):
            if seconds > 0:
                self._tracer.span(
                    name,
                    "generate",
                    started_s=start,
                    ended_s=start + seconds,
                    pid=ticket.process.pid,
                    track=ticket.engine.name,
                    args=read if name == "prefill" else {"tokens": used},
                )
            start += seconds

    def _result(self, call: calls.Generate, ticket: _Ticket, outcome: Outcome) -> Generated:
        assert outcome.finish is not None
        text, finish = call.prefix + outcome.text, outcome.finish
        message = Message(role="assistant", parts=(TextPart(text=text),))
        if outcome.requests:
            parts = (TextPart(text=text),) if text else ()
            message = Message(role="assistant", parts=parts, tool_requests=outcome.requests)
            finish = "tool_requests"
        elif call.tools or call.tool_specs:
            salt = str(ticket.generation.entry.key)
            spoken, requests = parse_tool_requests(text, salt=salt)
            if requests:
                parts = (TextPart(text=spoken),) if spoken else ()
                message = Message(role="assistant", parts=parts, tool_requests=tuple(requests))
                finish = "tool_requests"
        wants_logprobs = call.sampling.logprobs is not None
        return Generated(
            message=message,
            finish=finish,
            usage=Usage(
                prompt_tokens=outcome.prompt_tokens,
                cached_tokens=outcome.cached_tokens,
                completion_tokens=outcome.completion_tokens,
                queued_s=outcome.queued_s,
                prefill_s=outcome.prefill_s,
                decode_s=outcome.decode_s,
            ),
            model=ticket.engine.name,
            device=ticket.engine.model.device,
            adapter=ticket.adapter,
            token_ids=outcome.tokens,
            logprobs=outcome.logprobs if wants_logprobs else None,
        )


async def _off_loop(size_chars: int, work: Callable[[], list[int]]) -> list[int]:
    """Tokenize; a text so long that others would notice, on a thread of its own."""
    return await asyncio.to_thread(work) if size_chars > LONG_TEXT_CHARS else work()


async def _deltas(generation: Generation, pieces: asyncio.Queue[str]) -> AsyncIterator[Delta]:
    """Pieces as they come, until the generation is over and all have been read."""
    done = generation.done
    while True:
        while not pieces.empty():
            yield Delta(text=pieces.get_nowait())
        if done.done():
            return
        reading = asyncio.ensure_future(pieces.get())
        try:
            await asyncio.wait((reading, done), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not reading.done():
                reading.cancel()
        if reading.done() and not reading.cancelled():
            yield Delta(text=reading.result())


def _room(call: calls.Generate, engine: Device, prompt_tokens: int) -> tuple[int, FinishReason]:
    """How many tokens may follow the prompt, and what it means to reach that many.

    Raises: SyscallError("context_overflow") when the prompt fills the window; nothing is cut.
    """
    window = engine.model.context_tokens
    room = window - prompt_tokens
    if room < 1:
        raise SyscallError(
            "context_overflow",
            f"the prompt has {prompt_tokens} tokens and the window of {engine.name} holds {window} "
            "with the answer; shorten the prompt, or open a context, which pages old turns out",
            prompt_tokens=prompt_tokens,
            limit_tokens=window,
        )
    if room < call.max_tokens:
        return room, "context_full"
    return call.max_tokens, "length"


def _surround_tokens(engine: Device, specs: Sequence[ToolSpec], prefix: str) -> int:
    """What tools and a prefix add to every prompt, which a context does not count."""
    if not specs and not prefix:
        return 0
    probe = [user("a")]
    return len(engine.render(probe, tools=specs, prefix=prefix)) - len(engine.render(probe))


def _require_text(messages: Sequence[Message]) -> None:
    for message in messages:
        for part in message.parts:
            if not isinstance(part, TextPart):
                raise SyscallError(
                    "not_available",
                    f"no configured model reads {part.type} parts; send text",
                    part=part.type,
                )


def _require_prompt_alone(call: calls.Generate) -> None:
    for field in ("messages", "context", "tools", "tool_specs", "prefix"):
        if getattr(call, field):
            raise SyscallError(
                "invalid", f"{field}: a plain prompt excludes it; leave it out", field=field
            )
    if not call.prompt:
        raise SyscallError("invalid", "prompt: it is empty", field="prompt")


def _text_stream(stop: tuple[str, ...]) -> TextStream:
    if not all(stop):
        raise SyscallError("invalid", "stop: a stop string is empty; leave it out", field="stop")
    return TextStream(stop)
