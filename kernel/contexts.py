"""The contexts of processes: ids, ownership, and what happens around a window.

`memory/context.py` keeps the window and its policy decides what leaves it; this module counts with
the model's own tokenizer, remembers or summarises what left, recalls what fits a new question, and
keeps saved contexts and core memory. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from llmos.kernel.context_pages import ContextPages, Shelf
from llmos.kernel.context_summary import Generate, summarise
from llmos.kernel.device import Device
from llmos.kernel.devices import Devices
from llmos.kernel.process import Process
from llmos.memory.context import Context
from llmos.memory.context_folder import ContextFolder, SavedContext
from llmos.memory.context_state import ContextState
from llmos.memory.paging import Count
from llmos.memory.segments import Segment
from llmos.syscalls import calls
from llmos.syscalls.content import Message
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import (
    ContextDifference,
    ContextInfo,
    ContextRef,
    ContextSaved,
    CoreText,
    SegmentKind,
)

RECALL_SHARE = 8  # recalled material may take one part in so many of the budget
CORE_CHARS = 2_000


class Contexts:
    """`generate` writes summaries on behalf of the process whose context it is."""

    def __init__(
        self,
        devices: Devices,
        shelf: Shelf,
        folder: ContextFolder,
        *,
        generate: Generate,
    ) -> None:
        self._devices = devices
        self._pages = ContextPages(shelf)
        self._folder = folder
        self._generate = generate
        self._ids = itertools.count(1)

    # --- open and change --------------------------------------------------------------------------

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
        recall_tokens = call.recall_tokens
        context = Context(
            next(self._ids),
            model=engine.name,
            budget_tokens=budget,
            count=_counter(engine),
            policy=call.policy,
            state=ContextState(
                namespace=call.namespace,
                recall_tokens=budget // RECALL_SHARE if recall_tokens is None else recall_tokens,
                has_summary=call.has_summary,
            ),
        )
        if call.messages:
            await self.extend(process, context, call.messages)
        if call.has_core:
            namespace = call.namespace or process.namespace
            text = await asyncio.to_thread(self._folder.core, namespace)
            left = context.set_core(text, is_urgent=True)
            await self._see_off(process, context, left)
        self._own(process, context)
        return ContextRef(context=context.context)

    async def append(self, process: Process, call: calls.ContextAppend) -> ContextInfo:
        """Append messages; what leaves the window is remembered or summarised."""
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
        kind: SegmentKind | None = None,
    ) -> None:
        """Append to a context that was looked up, leaving room for an answer."""
        with self.kept_on_failure(process, context):
            left = context.append(messages, reserve_tokens=reserve_tokens, kind=kind)
            await self._see_off(process, context, left)

    async def prepare(
        self,
        process: Process,
        context: Context,
        messages: Sequence[Message],
        *,
        reserve_tokens: int,
    ) -> None:
        """Append what is to be answered, and recall what fits it where the policy does so."""
        state = context.state
        recall_tokens = state.recall_tokens if context.policy.recalls else 0
        has_pages = bool(state.pages) or state.namespace is not None
        spare_tokens = recall_tokens if has_pages else 0
        with self.kept_on_failure(process, context):
            try:
                await self.extend(
                    process, context, messages, reserve_tokens=reserve_tokens + spare_tokens
                )
            except SyscallError as problem:
                if problem.code != "context_overflow" or not spare_tokens:
                    raise
                await self.extend(process, context, messages, reserve_tokens=reserve_tokens)
            if recall_tokens:
                free_tokens = context.free_tokens - reserve_tokens
                await self._pages.recall(
                    process, context, room_tokens=min(recall_tokens, free_tokens)
                )

    @contextmanager
    def kept_on_failure(self, process: Process, context: Context) -> Generator[None]:
        """Give the process its context back as it was when the block fails or is cancelled."""
        before = context.state.copy()
        try:
            yield
        except BaseException:
            context.state = before
            raise

    def pin(self, process: Process, call: calls.ContextPin) -> ContextInfo:
        """Pin or release a segment."""
        context = self.get(process, call.context)
        context.pin(call.segment, call.is_pinned)
        return context.info()

    async def core_memory(self, process: Process, call: calls.CoreMemory) -> CoreText:
        """Read or edit core memory, and let the caller's contexts that have it show the edit."""
        namespace = call.namespace or process.namespace
        text = await asyncio.to_thread(self._folder.core, namespace)
        edited = _edited(text, call)
        if edited != text:
            await asyncio.to_thread(self._folder.write_core, namespace, edited)
            for context in (process.contexts or {}).values():
                shown = context.state.namespace or process.namespace
                if context.state.core is not None and shown == namespace:
                    with self.kept_on_failure(process, context):
                        left = context.set_core(edited, is_urgent=call.is_urgent)
                        await self._see_off(process, context, left)
        return CoreText(text=edited, limit_chars=CORE_CHARS)

    # --- copies -----------------------------------------------------------------------------------

    def fork(self, process: Process, call: calls.ContextFork) -> ContextRef:
        """Copy a context for the same process."""
        copy = self._copied(self.get(process, call.context))
        self._own(process, copy)
        return ContextRef(context=copy.context)

    def hand_down(self, parent: Process, child: Process, contexts: Sequence[int]) -> list[int]:
        """Give a child copies of a parent's contexts and return their ids.

        A child without the capability for a context's namespace gets the copy without it: what was
        said comes along, what others know there does not.
        """
        copies: list[int] = []
        for context in contexts:
            copy = self._copied(self.get(parent, context))
            inside, allows = copy.state.namespace, child.capabilities.allows
            if inside is not None and not (allows("read", inside) and allows("write", inside)):
                copy.state.namespace = None
            self._own(child, copy)
            copies.append(copy.context)
        return copies

    async def save(self, process: Process, call: calls.ContextSave) -> ContextSaved:
        """Keep a context on the disk under a name."""
        context = self.get(process, call.context)
        namespace = call.namespace or process.namespace
        saved = SavedContext(
            model=context.model,
            budget_tokens=context.budget_tokens,
            policy=context.policy_name,
            owner=process.client or None,
            state=context.state.copy(),
        )
        size = await asyncio.to_thread(self._folder.save, namespace, call.name, saved)
        return ContextSaved(name=call.name, namespace=namespace, bytes=size)

    async def forget(self, process: Process, call: calls.Forget) -> None:
        """Delete what a request for all of a namespace, or all of an owner, means beside notes.

        That is saved contexts, and with a namespace its core memory. Ids, a source or metadata
        choose notes only.
        """
        if call.ids or call.source is not None or call.where:
            return
        if call.owner is None and not call.everything:
            return

        def delete() -> None:
            if call.namespace is not None:
                names = [call.namespace]
            elif call.owner is not None:
                own, allows = process.namespace, process.capabilities.allows
                names = [
                    name
                    for name in self._folder.namespaces()
                    if name == own or allows("write", name)
                ]
            else:
                names = [process.namespace]
            for name in names:
                self._folder.forget(name, owner=call.owner)

        await asyncio.to_thread(delete)

    async def restore(self, process: Process, call: calls.ContextRestore) -> ContextRef:
        """Open a saved context, counted again with the model as it is now."""
        namespace = call.namespace or process.namespace
        saved = await asyncio.to_thread(self._folder.load, namespace, call.name)
        engine = await self._devices.engine(saved.model)
        state = saved.state
        self._require_rights(process, saved, namespace)
        state.is_page_open = False
        context = Context(
            next(self._ids),
            model=engine.name,
            budget_tokens=min(saved.budget_tokens, engine.model.context_tokens),
            count=_counter(engine),
            policy=saved.policy,
            state=state,
        )
        left = context.recount() if state.window else []
        if state.core is not None:
            core = await asyncio.to_thread(self._folder.core, state.namespace or namespace)
            left += context.set_core(core, is_urgent=True)
        await self._see_off(process, context, left)
        self._own(process, context)
        return ContextRef(context=context.context)

    async def diff(self, process: Process, call: calls.ContextDiff) -> ContextDifference:
        """Compare the windows of two contexts."""
        left, right = self.get(process, call.context), self.get(process, call.other)
        shared = 0
        if left.model == right.model and left.window() and right.window():
            engine = await self._devices.engine(left.model)
            rendered = engine.render(left.window()), engine.render(right.window())
            same = itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(*rendered, strict=False)
            )
            shared = sum(1 for _ in same)
        return left.difference(right, shared_tokens=shared)

    # --- look up ----------------------------------------------------------------------------------

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

    async def _see_off(self, process: Process, context: Context, left: Sequence[Segment]) -> None:
        """Remember and sum up what has left a window, as its policy wants."""
        paged_out = [segment for segment in left if segment.state == "paged_out"]
        if paged_out:
            await self._pages.keep(process, context, paged_out)
        if left and context.summary_tokens:
            await summarise(self._generate, process, context, left)

    def _require_rights(self, process: Process, saved: SavedContext, namespace: str) -> None:
        """What opening the context would have required. Raises: SyscallError("denied")."""
        allows = process.capabilities.allows
        inside = saved.state.namespace
        needed = [("models", saved.model)]
        if inside is not None and inside not in (namespace, process.namespace):
            needed += [("read", inside)]
        if inside is not None and inside != process.namespace:
            needed += [("write", inside)]
        for kind, name in needed:
            if not allows(kind, name):
                raise SyscallError(
                    "denied",
                    f"the saved context needs {kind}:{name}, which process {process.pid} does not "
                    f"hold; its parent can grant it at spawn: Capabilities({kind}={{{name!r}}})",
                    capability=f"{kind}:{name}",
                )

    def _copied(self, context: Context) -> Context:
        """A fork; what either side pages out from now on is its own."""
        copy = context.fork(next(self._ids))
        context.state.is_page_open = copy.state.is_page_open = False
        return copy

    def _own(self, process: Process, context: Context) -> None:
        if process.contexts is None:
            process.contexts = {}
        process.contexts[context.context] = context


def _counter(engine: Device) -> Count:
    def count(messages: Sequence[Message]) -> int:
        return len(engine.render(messages))

    return count


def _edited(text: str, call: calls.CoreMemory) -> str:
    """Core memory after an edit. Raises: SyscallError("invalid") naming what is wrong."""
    if call.replace is not None:
        found = text.count(call.replace)
        if found != 1:
            raise SyscallError(
                "invalid",
                f"replace: {call.replace!r} stands {found} times in core memory; give a passage "
                f"that stands there once. It says: {text or '(nothing)'}",
                field="replace",
            )
        text = text.replace(call.replace, call.by)
    if call.append is not None:
        text = f"{text}\n{call.append}" if text else call.append
    text = "\n".join(line for line in text.splitlines() if line.strip())
    if len(text) > CORE_CHARS:
        raise SyscallError(
            "invalid",
            f"core memory would have {len(text)} characters and may have {CORE_CHARS}; replace "
            "what is no longer needed, or use remember",
            field="append" if call.append is not None else "by",
        )
    return text
