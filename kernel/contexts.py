"""The contexts of processes: ids, ownership, and paging out into the long-term store.

`memory/context.py` decides what stays in a window; this module counts with the model's own
tokenizer and remembers what left. Event-loop thread only.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from llmos.kernel.devices import Devices
from llmos.kernel.library import Library
from llmos.kernel.process import Process
from llmos.memory.context import Context
from llmos.memory.segments import Segment
from llmos.syscalls import calls
from llmos.syscalls.content import Message
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ContextInfo, ContextRef


class Contexts:
    def __init__(self, devices: Devices, library: Library | None) -> None:
        self._devices = devices
        self._library = library
        self._ids = itertools.count(1)

    async def open(self, process: Process, call: calls.ContextOpen) -> ContextRef:
        """Open a context and append its first messages."""
        engine = await self._devices.engine(call.model)
        window = engine.model.context_tokens
        budget = call.budget_tokens or window
        if budget > window:
            raise SyscallError(
                "invalid",
                f"budget_tokens: {budget} is more than {engine.name}'s window of {window} tokens",
                field="budget_tokens",
            )

        def count(messages: Sequence[Message]) -> int:
            return len(engine.render(messages))

        context = Context(next(self._ids), model=engine.name, budget_tokens=budget, count=count)
        if call.messages:
            await self.extend(process, context, call.messages)
        self._own(process, context)
        return ContextRef(context=context.context)

    async def append(self, process: Process, call: calls.ContextAppend) -> ContextInfo:
        """Append messages; what leaves the window is remembered."""
        context = self.get(process, call.context)
        await self.extend(process, context, call.messages, kind=call.kind)
        return context.info()

    async def extend(
        self,
        process: Process,
        context: Context,
        messages: Sequence[Message],
        *,
        reserve_tokens: int = 0,
        **options: object,
    ) -> None:
        """Append to a context that was looked up, leaving room for an answer."""
        with self.kept_on_failure(process, context):
            left = context.append(messages, reserve_tokens=reserve_tokens, **options)  # pyright: ignore[reportArgumentType]
            await self._page_out(process, context, left)

    @contextmanager
    def kept_on_failure(self, process: Process, context: Context) -> Generator[None]:
        """Give the process its context back as it was when the block fails or is cancelled."""
        before = context.fork(context.context)
        try:
            yield
        except BaseException:
            if process.contexts is not None and process.contexts.get(before.context) is context:
                process.contexts[before.context] = before
            raise

    def fork(self, process: Process, call: calls.ContextFork) -> ContextRef:
        """Copy a context for the same process."""
        copy = self.get(process, call.context).fork(next(self._ids))
        self._own(process, copy)
        return ContextRef(context=copy.context)

    def hand_down(self, parent: Process, child: Process, contexts: Sequence[int]) -> list[int]:
        """Give a child copies of a parent's contexts and return their ids."""
        copies: list[int] = []
        for context in contexts:
            copy = self.get(parent, context).fork(next(self._ids))
            self._own(child, copy)
            copies.append(copy.context)
        return copies

    def pin(self, process: Process, call: calls.ContextPin) -> ContextInfo:
        """Pin or release a segment."""
        context = self.get(process, call.context)
        context.pin(call.segment, call.is_pinned)
        return context.info()

    def stat(self, process: Process, call: calls.ContextStat) -> ContextInfo:
        return self.get(process, call.context).info()

    def close(self, process: Process, call: calls.ContextClose) -> None:
        """Close a context."""
        context = self.get(process, call.context)
        assert process.contexts is not None
        del process.contexts[context.context]

    def get(self, process: Process, context: int) -> Context:
        """A context of this process. Raises: SyscallError("not_found")."""
        found = (process.contexts or {}).get(context)
        if found is None:
            raise SyscallError(
                "not_found",
                f"process {process.pid} has no context {context}; open one or fork one",
                what="context",
                name=context,
            )
        return found

    def _own(self, process: Process, context: Context) -> None:
        if process.contexts is None:
            process.contexts = {}
        process.contexts[context.context] = context

    async def _page_out(
        self, process: Process, context: Context, segments: Sequence[Segment]
    ) -> None:
        notes = [
            calls.Note(
                text=segment.message.text,
                metadata={"role": segment.message.role, "context": context.context},
                source=f"context:{context.context}",
                position=segment.index,
            )
            for segment in segments
            if segment.message.text.strip()
        ]
        if notes and self._library is not None:
            await self._library.remember_in(process.namespace, notes)
