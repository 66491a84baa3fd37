"""The gate: what stands between a trap and the dispatcher.

Every call passes here: a signal that is due is delivered, capabilities are checked (what is not
granted is denied), and the journal may answer. Quotas are charged where the amount is known: here
for nothing but the call itself, in the services for tokens, KV and tool time.
"""

from __future__ import annotations

from typing import Any

from llmos.kernel.journal import Journal
from llmos.kernel.process import INIT, Process, ProcessTable
from llmos.syscalls import calls as c
from llmos.syscalls.errors import Killed, SyscallError
from llmos.syscalls.values import Value


class Gate:
    def __init__(self, table: ProcessTable, journal: Journal, *, default_model: str | None) -> None:
        self._table = table
        self._journal = journal
        self._default_model = default_model

    async def admit(self, process: Process, call: c.Call[Any]) -> Value | None:
        """Let a call in, or answer it from the journal.

        Raises: Killed when a signal is due; SyscallError("denied") for a missing capability.
        """
        await self.boundary(process)
        process.account.syscalls += 1
        self._check(process, call)
        return self._journal.recall(process, call)

    def record(self, process: Process, call: c.Call[Any], result: Value) -> None:
        """Tell the journal what a call returned."""
        self._journal.record(process, call, result)

    async def boundary(self, process: Process) -> None:
        """The point where signals take effect: parks a stopped process, ends a killed one."""
        if process.is_over or process.is_killed:
            raise Killed("KILL")
        while process.is_stopped:
            assert process.resumed is not None
            await process.resumed.wait()
            if process.is_over:
                raise Killed("KILL")
        if process.is_terminating:
            process.is_terminating = False
            raise Killed("TERM")

    def _check(self, process: Process, call: c.Call[Any]) -> None:
        match call:
            case c.Tokenize(model="tiktoken"):
                return  # a plain count is no use of a model
            case c.Generate() | c.Tokenize() | c.ContextOpen() | c.Evaluate():
                self._require(process, "models", call.model or self._default_model)
                if isinstance(call, c.Generate):
                    for name in call.tools:
                        self._require(process, "tools", name)
                if isinstance(call, c.Evaluate):
                    for name in call.against:
                        self._require(process, "models", name)
                if isinstance(call, c.ContextOpen):
                    self._require_namespace(process, "read", call.namespace)
                    self._require_namespace(process, "write", call.namespace)
            case c.ContextSave():
                self._require_namespace(process, "write", call.namespace)
            case c.ContextRestore():
                self._require_namespace(process, "read", call.namespace)
            case c.CoreMemory():
                self._require_namespace(process, "read", call.namespace)
                if call.append is not None or call.replace is not None:
                    self._require_namespace(process, "write", call.namespace)
            case c.Remember() | c.Forget() | c.Ingest():
                self._require_namespace(process, "write", call.namespace)
                if isinstance(call, c.Remember) and call.owner is not None:
                    self._require_init(process, "owner", "for whom a note is kept")
            case c.Retrieve() | c.Related():
                for namespace in call.namespaces or ():
                    self._require_namespace(process, "read", namespace)
            case c.ToolCall():
                self._require(process, "tools", call.name)
            case (
                c.Finetune()
                | c.Search()
                | c.ModelPromote()
                | c.ModelRollback()
                | c.ModelDelete()
                | c.ModelExport()
            ):
                if not process.capabilities.learn:
                    raise _denied(process, "learn", "learn=True")
            case c.TraceConsent():
                self._require_namespace(process, "write", call.namespace)
            case c.TraceData():
                if not process.capabilities.learn:
                    raise _denied(process, "learn", "learn=True")
                for namespace in call.namespaces or ():
                    self._require_namespace(process, "read", namespace)
            case c.Spawn() | c.Fork():
                self._require(process, "programs", call.program)
                if isinstance(call, c.Spawn) and call.client is not None:
                    self._require_init(process, "client", "for whom a process runs")
                if call.nice is not None:
                    self._require_nice(process, call.nice, process.nice)
            case c.SpawnGraph():
                for node in call.nodes:
                    self._require(process, "programs", node.program)
            case c.Signal():
                self._require_signal(process, call.pid)
            case c.Nice():
                target = process if call.pid is None else self._table.get(call.pid)
                if call.pid is not None:
                    self._require_signal(process, call.pid)
                # What the caller could start anew at its own nice, it may also put back there.
                self._require_nice(process, call.nice, min(process.nice, target.nice))
            case c.Publish() | c.Subscribe():
                self._require(process, "topics", call.topic)
            case _:
                # The rest touch only what the process owns, or check paths and pids themselves.
                return

    def _require(self, process: Process, kind: str, name: str | None) -> None:
        if name is not None and not process.capabilities.allows(kind, name):
            raise _denied(process, f"{kind}:{name}", f"{kind}={{{name!r}}}")

    def _require_namespace(self, process: Process, kind: str, namespace: str | None) -> None:
        if namespace is not None and namespace != process.namespace:
            self._require(process, kind, namespace)

    def _require_init(self, process: Process, field: str, what: str) -> None:
        if process.pid != INIT and not process.acts_for_anyone:
            raise SyscallError(
                "denied",
                f"{field}: only whoever embeds the kernel says {what}; leave it out, and it is "
                "whom the caller runs for",
                capability=field,
            )

    def _require_signal(self, process: Process, pid: int) -> None:
        if process.capabilities.signal_any:
            return
        if not self._table.descends(self._table.get(pid), process):
            raise _denied(process, "signal_any", "signal_any=True")

    def _require_nice(self, process: Process, nice: int, least: int) -> None:
        if nice < least and not process.capabilities.raise_priority:
            raise SyscallError(
                "denied",
                f"process {process.pid} ({process.program}) cannot set a nice of {nice}: below "
                f"{least} it takes raise_priority, which its parent can grant at spawn: "
                f"Capabilities(raise_priority=True); ask for {least} or more",
                capability="raise_priority",
                least=least,
            )


def _denied(process: Process, capability: str, grant: str) -> SyscallError:
    return SyscallError(
        "denied",
        f"process {process.pid} ({process.program}) does not hold {capability}; "
        f"its parent can grant it at spawn: Capabilities({grant})",
        capability=capability,
    )
