"""Traces as training data: what agents ask and get is kept with consent, judged, and handed out.

Owns who consented, the way of an episode into the store, who may judge it and who gets it. The
store is `memory/episodes.py`, the rows are `memory/trace_rows.py`.

A generation waits for nothing here: an episode is a reference in a list until a worker thread
writes it, with others, at most `FLUSH_S` later. So a crash can lose that much, and a full disk
makes it wait; of more than `MOST_PENDING` that wait the oldest are lost, and counted. Event-loop
thread only.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmos.drivers.chat_model import Conversation
from llmos.drivers.rows.redaction import load_redactor
from llmos.kernel.files import FileSystem
from llmos.kernel.process import INIT, Process, ProcessTable
from llmos.memory import episodes as store_of
from llmos.memory.episodes import Happened, Judgement, Whose
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Generated
from llmos.syscalls.traces import (
    Consent,
    Judged,
    Outcome,
    TraceConsent,
    TraceData,
    TraceRows,
)

if TYPE_CHECKING:
    from llmos.kernel.trace import Tracer
    from llmos.memory.episodes import EpisodeStore
    from llmos.memory.trace_rows import TraceRowSet

FLUSH_S = 0.25
MOST_PENDING = 10_000
_PIECE_BYTES = 1 << 20  # written to a file at once


class Traces:
    """The episodes of a kernel."""

    def __init__(
        self,
        folder: Path,
        *,
        table: ProcessTable,
        files: FileSystem,
        tracer: Tracer,
        boot: str,
        redactor: str | None,
    ) -> None:
        self._folder = folder
        self._table = table
        self._files = files
        self._tracer = tracer
        self._boot = boot
        self._redactor = redactor
        self._store: EpisodeStore | None = None
        self._consents: dict[str, bool] | None = None  # None: not read yet
        self._pending: list[Happened] = []
        self._lost = 0
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    # --- keeping ----------------------------------------------------------------------------------

    def keep(self, process: Process, conversation: Conversation, answer: Generated) -> None:
        """An answer was given: remember it if its namespace consents."""
        if self._consents is None:
            self._consents = self._read_consents()
        if not self._consents or not conversation.messages:
            return
        namespace = self._consented(process)
        if namespace is None:
            return
        self._pending.append(
            Happened(
                namespace=namespace,
                boot=self._boot,
                pid=process.pid,
                lineage=self._lineage(process),
                program=process.program,
                task=_task(process, conversation),
                model=answer.model,
                adapter=answer.adapter,
                at=time.time(),
                messages=tuple(conversation.messages),
                tools=tuple(conversation.tools),
                answer=answer.message,
                finish=answer.finish,
                prompt_tokens=answer.usage.prompt_tokens,
                answer_tokens=answer.usage.completion_tokens,
            )
        )
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_soon)

    async def stop(self) -> None:
        """Write what waits and close the store."""
        try:
            await self._flush()
        finally:
            if self._flushing is not None:
                await asyncio.wait((self._flushing,))
            if self._store is not None:
                self._store.close()

    # --- syscalls ---------------------------------------------------------------------------------

    async def consent(self, process: Process, call: TraceConsent) -> Consent:
        """Record a consent; a withdrawal deletes the namespace's episodes, waiting ones too."""
        namespace = call.namespace or process.namespace
        if not call.is_granted:
            self._pending = [one for one in self._pending if one.namespace != namespace]
        at, by = time.time(), _who(process)
        async with self._turn:  # after a write that is on its way
            store = await self._opened()
            deleted = await asyncio.to_thread(
                store.consent, namespace, is_granted=call.is_granted, by=by, at=at
            )
            self._consents = await asyncio.to_thread(store.consents)
        return Consent(
            namespace=namespace,
            is_granted=call.is_granted,
            at=at,
            by=by,
            deleted_episodes=deleted,
        )

    async def outcome(self, process: Process, call: Outcome) -> Judged:
        """Record how episodes turned out.

        Raises: SyscallError: "not_found" when there are none (none was consented to, or answered
        yet), "denied" for the caller's own and for those of strangers.
        """
        await self._flush()
        store = await self._opened()
        if call.episode is not None:
            found = await asyncio.to_thread(store.of_id, call.episode)
            name: str | int = call.episode
        else:
            assert call.pid is not None
            found = await asyncio.to_thread(store.of_process, self._boot, call.pid)
            name = f"of process {call.pid}"
        if not found:
            raise SyscallError(
                "not_found",
                f"there is no episode {name}: either nothing was answered or its namespace has not "
                "consented (TraceConsent)",
                what="episode",
                name=name,
            )
        for one in found:
            self._require_may_judge(process, one)
        judgement = Judgement(
            by=_who(process),
            at=time.time(),
            reward=call.reward,
            verdict=call.verdict,
            thumb=call.thumb,
            task=call.task,
            note=call.note,
        )
        judged = tuple(one.id for one in found)
        await asyncio.to_thread(store.judge, judged, judgement)
        return Judged(episodes=judged)

    async def data(self, process: Process, call: TraceData) -> TraceRows:
        """Write rows into the caller's home.

        Raises: SyscallError: "denied" for a namespace that never consented or withdrew (`gate.py`
        has checked the rights), "not_found" when no episode makes a row.
        """
        await self._flush()
        store = await self._opened()
        consents = await asyncio.to_thread(store.consents)
        namespaces = call.namespaces or (process.namespace,)
        for namespace in namespaces:
            if not consents.get(namespace):
                raise SyscallError(
                    "denied",
                    f"the namespace {namespace} has not consented that its traces are learnt from; "
                    "its owner can, with TraceConsent",
                    capability=f"consent:{namespace}",
                )
        episodes = await asyncio.to_thread(
            store.find,
            namespaces,
            min_score=call.min_reward if call.objective == "instruct" else None,
            is_judged=call.objective == "prefer",
            since=call.since,
            limit=call.limit,
        )
        made = await asyncio.to_thread(self._compose, episodes, call)
        left_out = dict(made.left_out) | ({"lost": self._lost} if self._lost else {})
        if not made.lines:
            reasons = ", ".join(f"{why} {count}" for why, count in left_out.items())
            raise SyscallError(
                "not_found",
                f"none of {len(episodes)} episodes makes a row"
                + (f" ({reasons})" if reasons else "")
                + "; judge some with Outcome, or lower min_reward",
                what="episodes",
                name=", ".join(namespaces),
            )
        await self._write(process, call.path, made)
        return TraceRows(
            path=call.path,
            rows=len(made.lines),
            episodes=len(episodes),
            left_out=left_out,
            redacted=dict(made.redacted),
            digest=made.digest,
            models=tuple(sorted({one.adapter or one.model for one in episodes})),
        )

    # --- internals --------------------------------------------------------------------------------

    def _compose(self, episodes: Sequence[store_of.Episode], call: TraceData) -> TraceRowSet:
        from llmos.memory.trace_rows import compose

        return compose(
            episodes,
            call.objective,
            min_score=call.min_reward,
            redactor=load_redactor(self._redactor) if call.redact else None,
            is_deduped=call.dedupe,
        )

    async def _write(self, process: Process, path: str, made: TraceRowSet) -> None:
        data = "".join(made.lines).encode()
        fd = self._files.open(process, calls.Open(path=path, mode="w")).fd
        try:
            for start in range(0, len(data), _PIECE_BYTES):
                piece = data[start : start + _PIECE_BYTES]
                await self._files.write(process, calls.Write(fd=fd, data=piece))
        finally:
            self._files.close(process, fd)

    def _require_may_judge(self, process: Process, one: Whose) -> None:
        """Init, an ancestor, or who may learn from the namespace; never the process itself."""
        is_here = one.boot == self._boot
        if process.pid == INIT or (is_here and process.pid in one.lineage[:-1]):
            return
        rights = process.capabilities
        is_own = is_here and process.pid == one.lineage[-1]
        if not is_own and rights.learn and rights.allows("read", one.namespace):
            return
        raise SyscallError(
            "denied",
            f"process {process.pid} may not judge episode {one.id}: a process does not judge "
            "itself; its ancestors do, and who holds learn and may read its namespace",
            capability=f"read:{one.namespace}",
        )

    def _consented(self, process: Process) -> str | None:
        """The namespace under which a process's traces are kept, or None."""
        assert self._consents is not None
        if process.client:
            return process.client if self._consents.get(process.client) else None
        one: Process | None = process
        while one is not None:
            namespace = one.namespace
            if (is_granted := self._consents.get(namespace)) is not None:
                return namespace if is_granted else None
            one = None if one.pid == INIT else self._table.find(one.parent)
        return None

    def _lineage(self, process: Process) -> tuple[int, ...]:
        pids = [process.pid]
        parent = self._table.find(process.parent)
        while parent is not None and parent.pid != INIT and pids[-1] != INIT:
            pids.append(parent.pid)
            parent = self._table.find(parent.parent)
        return tuple(reversed(pids))

    def _read_consents(self) -> dict[str, bool]:
        """What was consented to before this boot; a file that is not there is not made."""
        if not (self._folder / store_of.FILE).exists():
            return {}
        self._store = store_of.EpisodeStore(self._folder)
        return self._store.consents()

    async def _opened(self) -> EpisodeStore:
        if self._store is None:
            self._store = await asyncio.to_thread(store_of.EpisodeStore, self._folder)
        return self._store

    def _flush_soon(self) -> None:
        self._timer = None
        self._flushing = asyncio.get_running_loop().create_task(self._flush_or_wait())

    async def _flush_or_wait(self) -> None:
        """Write in the background; what the disk refuses waits for the next time."""
        try:
            await self._flush()
        except SyscallError as problem:
            self._tracer.mark("episodes_wait", "learn", pid=INIT, args={"why": str(problem)})

    async def _flush(self) -> None:
        """Write what waits. Raises: SyscallError("storage"); then it waits on."""
        async with self._turn:
            batch, self._pending = self._pending, []
            if not batch:
                return
            try:
                store = await self._opened()
                await asyncio.to_thread(store.add, batch)
            except BaseException:
                waiting = [*batch, *self._pending]
                self._pending = waiting[-MOST_PENDING:]
                self._lost += len(waiting) - len(self._pending)
                raise


def _task(process: Process, conversation: Conversation) -> str:
    """What is attempted: the program, with a digest of the first thing that the user says."""
    first = next((one.text for one in conversation.messages if one.role == "user"), "")
    return f"{process.program}:{hashlib.sha256(first.encode()).hexdigest()[:12]}"


def _who(process: Process) -> str:
    """A process as records name it."""
    name = "init" if process.pid == INIT else f"{process.program} (pid {process.pid})"
    return f"{name} for {process.client}" if process.client else name
