"""The handle that an agent program receives: one method per syscall, nothing else.

It builds the call and traps; all rules live behind the trap. A program is an async function whose
first parameter is this handle and whose arguments and return value are JSON values.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from llmos.agents.learning import LearningCalls
from llmos.agents.skills import shown
from llmos.syscalls import calls
from llmos.syscalls import results as r
from llmos.syscalls.content import Message, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import GREEDY, Constraint, JsonSchemaConstraint, Sampling
from llmos.syscalls.rights import Capabilities, Quota
from llmos.syscalls.trap import ProgramFunction
from llmos.syscalls.values import JsonObject, JsonValue
from llmos.syscalls.wire import json_value

R = TypeVar("R")
M = TypeVar("M", bound=BaseModel)

Messages = str | Sequence[Message]


def _messages(messages: Messages) -> tuple[Message, ...]:
    return (user(messages),) if isinstance(messages, str) else tuple(messages)


def _closed(schema: Any) -> Any:
    """A JSON Schema whose objects have no fields but those that it names.

    pydantic's are open, and an open object is one that a model may go on filling for ever.
    """
    if isinstance(schema, dict):
        items: Any = schema.items()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        closed: JsonObject = {key: _closed(value) for key, value in items}
        if closed.get("type") == "object" and "properties" in closed:
            closed.setdefault("additionalProperties", False)
        return closed
    if isinstance(schema, list):
        return [_closed(item) for item in schema]  # pyright: ignore[reportUnknownVariableType]
    return schema


class OS(LearningCalls):
    """A process's door to the kernel. Every method raises `SyscallError` when it is refused."""

    __slots__ = ()

    @property
    def pid(self) -> int:
        """This process."""
        return self._trap.pid

    async def call(self, call: calls.Call[R]) -> R:
        """Issue any syscall as a value."""
        return await self._trap.call(call)

    # --- generate ---------------------------------------------------------------------------------

    async def generate(
        self,
        messages: Messages = (),
        *,
        context: int | None = None,
        model: str | None = None,
        adapter: str | None = None,
        sampling: Sampling = GREEDY,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
        tools: Sequence[str] = (),
        prefix: str = "",
        deadline_s: float | None = None,
    ) -> r.Generated:
        """Continue a conversation; a plain string is one user message."""
        return await self._trap.call(
            calls.Generate(
                messages=_messages(messages),
                context=context,
                model=model,
                adapter=adapter,
                sampling=sampling,
                max_tokens=max_tokens,
                stop=tuple(stop),
                constraint=constraint,
                tools=tuple(tools),
                prefix=prefix,
                deadline_s=deadline_s,
            )
        )

    def stream(
        self,
        messages: Messages = (),
        *,
        context: int | None = None,
        model: str | None = None,
        adapter: str | None = None,
        sampling: Sampling = GREEDY,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
        tools: Sequence[str] = (),
        prefix: str = "",
        deadline_s: float | None = None,
    ) -> AsyncIterator[r.Delta | r.Generated]:
        """Continue a conversation piece by piece; the last item is the whole `Generated`."""
        return self._trap.stream(
            calls.Generate(
                messages=_messages(messages),
                context=context,
                model=model,
                adapter=adapter,
                sampling=sampling,
                max_tokens=max_tokens,
                stop=tuple(stop),
                constraint=constraint,
                tools=tuple(tools),
                prefix=prefix,
                deadline_s=deadline_s,
            )
        )

    def stream_call(self, call: calls.Generate) -> AsyncIterator[r.Delta | r.Generated]:
        """Issue a generation as a value and yield as `stream` does."""
        return self._trap.stream(call)

    async def generate_as(
        self,
        shape: type[M],
        messages: Messages,
        *,
        context: int | None = None,
        model: str | None = None,
        sampling: Sampling = GREEDY,
        max_tokens: int = 256,
    ) -> M:
        """Generate JSON constrained to a pydantic model's schema and validate it.

        Fields that the shape does not name are not written, whatever it does with them when read.
        Raises: SyscallError("failed") when `max_tokens` ended the JSON before it was whole.
        """
        generated = await self.generate(
            messages,
            context=context,
            model=model,
            sampling=sampling,
            max_tokens=max_tokens,
            constraint=JsonSchemaConstraint(json_schema=_closed(shape.model_json_schema())),
        )
        try:
            return shape.model_validate_json(generated.text)
        except ValidationError as problem:
            raise SyscallError(
                "failed",
                f"the model's JSON is not a {shape.__name__} (finish: {generated.finish}); "
                f"raise max_tokens above {max_tokens} or relax the schema",
                text=generated.text[:500],
            ) from problem

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> r.Embedded:
        """Embed texts as unit-length vectors."""
        return await self._trap.call(calls.Embed(texts=tuple(texts), model=model))

    async def tokenize(self, text: str, *, model: str | None = None) -> r.Tokens:
        """Count a text's tokens."""
        return await self._trap.call(calls.Tokenize(text=text, model=model))

    # --- context ----------------------------------------------------------------------------------

    async def context_open(
        self,
        messages: Messages = (),
        *,
        model: str | None = None,
        budget_tokens: int | None = None,
        policy: r.ContextPolicy = "default",
        recall_tokens: int | None = None,
        namespace: str | None = None,
        has_core: bool = False,
        has_summary: bool = False,
    ) -> int:
        """Open a context and return its id; options as in `calls.ContextOpen`."""
        opened = await self._trap.call(
            calls.ContextOpen(
                messages=_messages(messages),
                model=model,
                budget_tokens=budget_tokens,
                policy=policy,
                recall_tokens=recall_tokens,
                namespace=namespace,
                has_core=has_core,
                has_summary=has_summary,
            )
        )
        return opened.context

    async def context_append(
        self, context: int, messages: Messages, *, kind: r.SegmentKind | None = None
    ) -> r.ContextInfo:
        """Append messages to a context."""
        return await self._trap.call(
            calls.ContextAppend(context=context, messages=_messages(messages), kind=kind)
        )

    async def context_fork(self, context: int) -> int:
        """Copy a context, sharing its computed state, and return the copy's id."""
        return (await self._trap.call(calls.ContextFork(context=context))).context

    async def context_pin(
        self, context: int, segment: int, *, is_pinned: bool = True
    ) -> r.ContextInfo:
        """Keep a segment in the window, or release it."""
        return await self._trap.call(
            calls.ContextPin(context=context, segment=segment, is_pinned=is_pinned)
        )

    async def context_stat(self, context: int) -> r.ContextInfo:
        """What the model sees of a context and what was done to it."""
        return await self._trap.call(calls.ContextStat(context=context))

    async def context_save(
        self, context: int, name: str, *, namespace: str | None = None
    ) -> r.ContextSaved:
        """Keep a context on the disk under a name."""
        return await self._trap.call(
            calls.ContextSave(context=context, name=name, namespace=namespace)
        )

    async def context_restore(self, name: str, *, namespace: str | None = None) -> int:
        """Open a saved context and return its id."""
        restored = await self._trap.call(calls.ContextRestore(name=name, namespace=namespace))
        return restored.context

    async def context_diff(self, context: int, other: int) -> r.ContextDifference:
        """How the windows of two contexts differ."""
        return await self._trap.call(calls.ContextDiff(context=context, other=other))

    async def core_memory(
        self,
        *,
        append: str | None = None,
        replace: str | None = None,
        by: str = "",
        namespace: str | None = None,
        is_urgent: bool = False,
    ) -> str:
        """Read or edit core memory and return its text; options as in `calls.CoreMemory`."""
        core = await self._trap.call(
            calls.CoreMemory(
                namespace=namespace, append=append, replace=replace, by=by, is_urgent=is_urgent
            )
        )
        return core.text

    async def context_close(self, context: int) -> None:
        """Close a context and free what it holds."""
        await self._trap.call(calls.ContextClose(context=context))

    # --- memory -----------------------------------------------------------------------------------

    async def remember(
        self,
        notes: str | Sequence[str | calls.Note],
        *,
        namespace: str | None = None,
        merge_above: float | None = None,
        owner: str | None = None,
    ) -> r.Remembered:
        """Store notes, all or none; options as in `calls.Remember`."""
        listed: Sequence[str | calls.Note] = [notes] if isinstance(notes, str) else notes
        return await self._trap.call(
            calls.Remember(
                notes=tuple(
                    calls.Note(text=note) if isinstance(note, str) else note for note in listed
                ),
                namespace=namespace,
                merge_above=merge_above,
                owner=owner,
            )
        )

    async def retrieve(
        self,
        query: str,
        *,
        k: int = 5,
        mode: Literal["dense", "lexical", "hybrid"] = "hybrid",
        namespaces: Sequence[str] | None = None,
        where: JsonObject | None = None,
        kinds: Sequence[r.NoteKind] | None = None,
        at: float | None = None,
        with_history: bool = False,
        recency_s: float | None = None,
        diversity: float = 0.0,
        rerank: bool = False,
        neighbours: int = 0,
        with_parent: bool = False,
        hops: int = 0,
    ) -> tuple[r.Hit, ...]:
        """The k best notes for a query; options as in `calls.Retrieve`."""
        found = await self._trap.call(
            calls.Retrieve(
                query=query,
                k=k,
                mode=mode,
                namespaces=None if namespaces is None else tuple(namespaces),
                where=where or {},
                kinds=None if kinds is None else tuple(kinds),
                at=at,
                with_history=with_history,
                recency_s=recency_s,
                diversity=diversity,
                rerank=rerank,
                neighbours=neighbours,
                with_parent=with_parent,
                hops=hops,
            )
        )
        return found.hits

    async def related(
        self,
        entity: str,
        *,
        hops: int = 1,
        namespaces: Sequence[str] | None = None,
        at: float | None = None,
        with_history: bool = False,
        limit: int = 100,
    ) -> tuple[r.RelatedFact, ...]:
        """The facts about an entity and about those that they lead to, nearest first."""
        found = await self._trap.call(
            calls.Related(
                entity=entity,
                hops=hops,
                namespaces=None if namespaces is None else tuple(namespaces),
                at=at,
                with_history=with_history,
                limit=limit,
            )
        )
        return found.facts

    async def examples(
        self, query: str, k: int = 3, *, namespaces: Sequence[str] | None = None
    ) -> list[Message]:
        """Worked examples of what is most like a query, as turns to put before it.

        The nearest is the last. `agents/skills.py` makes the notes that they are kept in.
        """
        hits = await self.retrieve(query, k=k, kinds=("procedural",), namespaces=namespaces)
        return shown(hits)

    async def forget(
        self,
        *,
        ids: Sequence[int] = (),
        source: str | None = None,
        where: JsonObject | None = None,
        namespace: str | None = None,
        owner: str | None = None,
        everything: bool = False,
    ) -> int:
        """Delete notes and return how many there were; selectors as in `calls.Forget`."""
        forgotten = await self._trap.call(
            calls.Forget(
                ids=tuple(ids),
                source=source,
                where=where or {},
                namespace=namespace,
                owner=owner,
                everything=everything,
            )
        )
        return forgotten.count

    async def ingest(
        self,
        paths: str | Sequence[str],
        *,
        namespace: str | None = None,
        chunk_tokens: int | None = None,
        encoding: str | None = None,
        forget_gone: bool = False,
    ) -> r.Ingested:
        """Take files and folders into memory, or bring them up to date; as in `calls.Ingest`."""
        return await self._trap.call(
            calls.Ingest(
                paths=(paths,) if isinstance(paths, str) else tuple(paths),
                namespace=namespace,
                chunk_tokens=chunk_tokens,
                encoding=encoding,
                forget_gone=forget_gone,
            )
        )

    async def memory_stat(self) -> r.MemoryInfo:
        """The state of the long-term store."""
        return await self._trap.call(calls.MemoryStat())

    # --- tools ------------------------------------------------------------------------------------

    async def tool_call(
        self, name: str, arguments: JsonObject | None = None, *, timeout_s: float | None = None
    ) -> r.ToolOutput:
        """Run a tool."""
        return await self._trap.call(
            calls.ToolCall(name=name, arguments=arguments or {}, timeout_s=timeout_s)
        )

    async def tool_list(self) -> tuple[r.ToolSpec, ...]:
        """The tools that this process may use."""
        return (await self._trap.call(calls.ToolList())).tools

    # --- process ----------------------------------------------------------------------------------

    async def spawn(
        self,
        program: str | ProgramFunction,
        *args: JsonValue,
        capabilities: Capabilities | None = None,
        quota: Quota | None = None,
        nice: int | None = None,
        stdin_from: int | None = None,
        is_interactive: bool = False,
        client: str | None = None,
        path_s: float = 0.0,
        **kwargs: JsonValue,
    ) -> int:
        """Start a child program and return its pid."""
        spawned = await self._trap.call(
            calls.Spawn(
                program=self._name(program),
                args=tuple(json_value(arg) for arg in args),
                kwargs={key: json_value(value) for key, value in kwargs.items()},
                capabilities=capabilities,
                quota=quota or Quota(),
                nice=nice,
                stdin_from=stdin_from,
                is_interactive=is_interactive,
                client=client,
                path_s=path_s,
            )
        )
        return spawned.pid

    async def fork(
        self,
        program: str | ProgramFunction,
        *args: JsonValue,
        contexts: Sequence[int],
        capabilities: Capabilities | None = None,
        quota: Quota | None = None,
        nice: int | None = None,
        **kwargs: JsonValue,
    ) -> int:
        """Start a child that holds forks of `contexts`, passed to it as keyword `contexts`."""
        spawned = await self._trap.call(
            calls.Fork(
                program=self._name(program),
                contexts=tuple(contexts),
                args=tuple(json_value(arg) for arg in args),
                kwargs={key: json_value(value) for key, value in kwargs.items()},
                capabilities=capabilities,
                quota=quota or Quota(),
                nice=nice,
            )
        )
        return spawned.pid

    def node(
        self,
        name: str,
        program: str | ProgramFunction,
        *args: JsonValue,
        after: Sequence[str] = (),
        retries: int = 0,
        timeout_s: float | None = None,
        on_failure: Literal["propagate", "tolerate"] = "propagate",
        **kwargs: JsonValue,
    ) -> calls.GraphNode:
        """A node for `spawn_graph`; its program gets the values of `after` as keyword `inputs`."""
        return calls.GraphNode(
            name=name,
            program=self._name(program),
            args=tuple(json_value(arg) for arg in args),
            kwargs={key: json_value(value) for key, value in kwargs.items()},
            after=tuple(after),
            retries=retries,
            timeout_s=timeout_s,
            on_failure=on_failure,
        )

    async def spawn_graph(
        self, nodes: Sequence[calls.GraphNode], *, max_parallel: int | None = None
    ) -> int:
        """Start a task graph as a job and return its pid."""
        spawned = await self._trap.call(
            calls.SpawnGraph(nodes=tuple(nodes), max_parallel=max_parallel)
        )
        return spawned.pid

    async def wait(self, pid: int | None = None, *, timeout_s: float | None = None) -> r.Exited:
        """Wait for a child (None: whichever is first) to end, and reap it."""
        return await self._trap.call(calls.Wait(pid=pid, timeout_s=timeout_s))

    async def result(self, pid: int, *, timeout_s: float | None = None) -> JsonValue:
        """Wait for a child and return its value; raises its error when it failed."""
        return (await self.wait(pid, timeout_s=timeout_s)).unwrap()

    async def results(self, pids: Sequence[int]) -> list[JsonValue]:
        """The values of several children, in order."""
        return list(await asyncio.gather(*(self.result(pid) for pid in pids)))

    async def signal(self, pid: int, signal: calls.SignalName, *, deadline_s: float = 5.0) -> None:
        """Signal a process."""
        await self._trap.call(calls.Signal(pid=pid, signal=signal, deadline_s=deadline_s))

    async def nice(self, nice: int, *, pid: int | None = None) -> None:
        """Set a priority, -20 (first) to 19 (last)."""
        await self._trap.call(calls.Nice(nice=nice, pid=pid))

    async def sleep(self, seconds: float) -> None:
        """Sleep on the kernel's clock."""
        await self._trap.call(calls.Sleep(seconds=seconds))

    async def exit(self, value: JsonValue = None) -> None:
        """End this process with a value; does not return."""
        await self._trap.call(calls.Exit(value=json_value(value)))

    async def ps(self) -> tuple[r.ProcessInfo, ...]:
        """The processes that this one may see."""
        return (await self._trap.call(calls.Ps())).processes

    # --- ipc --------------------------------------------------------------------------------------

    async def send(
        self, to: int, body: JsonValue, *, on_full: Literal["wait", "refuse"] = "wait"
    ) -> None:
        """Put a message into a process's mailbox."""
        await self._trap.call(calls.Send(to=to, body=json_value(body), on_full=on_full))

    async def receive(
        self,
        *,
        sender: int | None = None,
        topic: str | None = None,
        timeout_s: float | None = None,
    ) -> r.Mail:
        """Take the oldest message."""
        return await self._trap.call(calls.Receive(sender=sender, topic=topic, timeout_s=timeout_s))

    async def publish(self, topic: str, body: JsonValue) -> r.Sent:
        """Send to all subscribers of a topic."""
        return await self._trap.call(calls.Publish(topic=topic, body=json_value(body)))

    async def subscribe(self, topic: str, *, is_on: bool = True) -> None:
        """Start or stop receiving a topic's messages."""
        await self._trap.call(calls.Subscribe(topic=topic, is_on=is_on))

    # --- files ------------------------------------------------------------------------------------

    async def open(self, path: str, mode: Literal["r", "w", "a"] = "r") -> int:
        """Open a file and return its descriptor."""
        return (await self._trap.call(calls.Open(path=path, mode=mode))).fd

    async def read(self, fd: int = 0, *, max_bytes: int = 65536) -> r.Data:
        """Read from a descriptor; 0 is standard input."""
        return await self._trap.call(calls.Read(fd=fd, max_bytes=max_bytes))

    async def write(self, data: bytes | str, *, fd: int = 1) -> int:
        """Write to a descriptor; 1 is standard output."""
        raw = data.encode() if isinstance(data, str) else data
        return (await self._trap.call(calls.Write(fd=fd, data=raw))).bytes

    async def close(self, fd: int) -> None:
        """Close a descriptor."""
        await self._trap.call(calls.Close(fd=fd))

    async def list(self, path: str = ".", *, is_recursive: bool = False) -> tuple[r.FileInfo, ...]:
        """The entries of a folder."""
        return (await self._trap.call(calls.List(path=path, is_recursive=is_recursive))).files

    async def read_text(self, path: str) -> str:
        """A whole file as UTF-8 text; undecodable bytes are shown as U+FFFD."""
        fd = await self.open(path)
        try:
            return await self._read_all(fd)
        finally:
            await self.close(fd)

    async def read_input(self) -> str:
        """All of standard input as text."""
        return await self._read_all(0)

    async def write_text(self, path: str, text: str) -> None:
        """Write a whole file."""
        fd = await self.open(path, "w")
        try:
            await self.write(text, fd=fd)
        finally:
            await self.close(fd)

    async def print(self, *values: object) -> None:
        """Write a line to standard output."""
        await self.write(" ".join(str(value) for value in values) + "\n")

    # --- observe ----------------------------------------------------------------------------------

    async def trace(self, *, pid: int | None = None, limit: int = 1000) -> r.TraceEvents:
        """The newest trace events."""
        return await self._trap.call(calls.Trace(pid=pid, limit=limit))

    async def stat(self) -> r.KernelInfo:
        """The kernel's devices, memory ledger and counters."""
        return await self._trap.call(calls.Stat())

    # --- internals --------------------------------------------------------------------------------

    def _name(self, program: str | ProgramFunction) -> str:
        return program if isinstance(program, str) else self._trap.load(program)

    async def _read_all(self, fd: int) -> str:
        pieces: list[bytes] = []
        while True:
            data = await self.read(fd)
            pieces.append(data.data)
            if data.is_eof:
                return b"".join(pieces).decode("utf-8", errors="replace")
