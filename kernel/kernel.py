"""The kernel: all services over one process table, and what is said to it from outside.

Whoever embeds the kernel acts as init, process 1, through the same handle and the same syscalls as
every other process. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from llmos.kernel.accounts import total
from llmos.kernel.clock import Clock, RealClock
from llmos.kernel.consolidation import LOWEST, Consolidation, ConsolidationSetting
from llmos.kernel.contexts import Contexts
from llmos.kernel.devices import Devices
from llmos.kernel.dispatch import dispatch
from llmos.kernel.engine import DEVICE_PID
from llmos.kernel.files import FileSystem, attach_pipe
from llmos.kernel.gate import Gate
from llmos.kernel.graph import GraphRun, build
from llmos.kernel.inference import Inference
from llmos.kernel.ingestion import Ingestions
from llmos.kernel.ipc import Mailboxes
from llmos.kernel.journal import Journal, NoJournal
from llmos.kernel.learning import JOB_NICE, Learning
from llmos.kernel.ledger import Ledger, resident_bytes
from llmos.kernel.library import Library, open_store
from llmos.kernel.lifecycle import Lifecycle, ProgramExit
from llmos.kernel.process import INIT, Process, ProcessTable
from llmos.kernel.programs import Programs
from llmos.kernel.prompting import Prompting
from llmos.kernel.reembedding import PROGRAM as REEMBED
from llmos.kernel.reembedding import Change, Reembedding
from llmos.kernel.release import Release
from llmos.kernel.release_gate import Measure, Measured
from llmos.kernel.rows_file import given
from llmos.kernel.scoring import Scoring
from llmos.kernel.search import GRACE_S, Machinery, SearchJob
from llmos.kernel.settings import Settings
from llmos.kernel.streams import Console, Pipe
from llmos.kernel.targets import Targets
from llmos.kernel.task_models import TaskModels
from llmos.kernel.threads import settle
from llmos.kernel.toolbox import ToolBox
from llmos.kernel.trace import Tracer
from llmos.kernel.trace_data import Traces
from llmos.kernel.trap import TaskTrap
from llmos.kernel.waits import Waits
from llmos.memory.context_folder import ContextFolder
from llmos.memory.registry import Registry
from llmos.memory.store import Store
from llmos.syscalls import calls
from llmos.syscalls.calls import Call
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import (
    Accounting,
    KernelInfo,
    LedgerEntry,
    Processes,
    Spawned,
    TraceEvent,
    TraceEvents,
)
from llmos.syscalls.rights import Capabilities, Quota
from llmos.syscalls.trap import ProgramFunction, Trap
from llmos.syscalls.values import JsonObject


class Kernel:
    """One kernel. `bind` makes the handle that programs receive out of a trap."""

    def __init__(
        self,
        settings: Settings,
        *,
        bind: Callable[[Trap], Any],
        programs: Mapping[str, ProgramFunction],
        clock: Clock | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.settings = settings
        self.clock: Clock = clock or RealClock()
        self.tracer = Tracer(self.clock, capacity=settings.trace_events)
        self.table = ProcessTable()
        self.waits = Waits(self.clock)
        self.programs = Programs(programs)
        self.mailboxes = Mailboxes(self.table, self.waits, capacity=settings.mailbox_messages)
        self.boot = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        self.files = FileSystem(settings.home / "homes" / self.boot, self.waits)
        self.tools = ToolBox(bind=self._handle, clock=self.clock, waits=self.waits)
        self.devices = Devices(
            settings, registry=self.registry, clock=self.clock, tracer=self.tracer
        )
        self.task_models = TaskModels(
            settings.tasks, registry=self.registry, clock=self.clock, tracer=self.tracer
        )
        self.library = Library(
            self.devices.encoders,
            self._open_store,
            reembedding=Reembedding(self.devices.encoders, settings.embedding, start=self._reembed),
            rerank=None if settings.reranker is None else self.devices.encoders.rerank,
            private_days=settings.private_notes_days,
        )
        self.ingestions = Ingestions(self.library, self.files)
        self.contexts = Contexts(
            self.devices,
            self.library,
            ContextFolder(settings.home / "contexts"),
            generate=lambda process, call: self.inference.generate(process, call),
        )
        self.traces = Traces(
            settings.home,
            table=self.table,
            files=self.files,
            tracer=self.tracer,
            boot=self.boot,
            redactor=settings.redactor,
        )
        self.inference = Inference(
            devices=self.devices,
            contexts=self.contexts,
            toolbox=self.tools,
            clock=self.clock,
            tracer=self.tracer,
            weights=settings.weights,
            sharing=settings.kv.sharing,
            on_answer=self.traces.keep,
        )
        self.gate = Gate(self.table, journal or NoJournal(), default_model=settings.default_model)
        self.lifecycle = Lifecycle(
            table=self.table,
            waits=self.waits,
            clock=self.clock,
            tracer=self.tracer,
            bind=self._handle,
            release=self._release,
            boot=self.boot,
            console_bytes=settings.console_bytes,
            max_processes=settings.max_processes,
        )
        self.learning = Learning(
            settings,
            devices=self.devices,
            registry=self.registry,
            files=self.files,
            spawn=lambda parent, job: self._start(
                parent,
                "finetune",
                job.run,
                shown=(job.name,),
                nice=max(JOB_NICE, parent.nice),
                prepare=job.prepare,
            ),
        )
        self.release = Release(
            settings,
            devices=self.devices,
            registry=self.registry,
            files=self.files,
            measure=self._measure,
        )
        targets = Targets(settings, self.registry)
        self.prompting = Prompting(
            library=self.library,
            registry=self.registry,
            generate=self.inference.generate,
            as_kernel=lambda: self.init,
            targets=targets,
            redactor=settings.redactor,
        )
        self.scoring = Scoring(
            settings,
            files=self.files,
            targets=targets,
            generate=self.inference.measure,
            task_models=self.task_models,
            prompting=self.prompting,
            measure_loss=self.learning.evaluate,
        )
        self._bind = bind
        self._registry: Registry | None = None
        self._booted_s = self.clock.now()
        self.ledger = Ledger()
        self.init = self.lifecycle.init(settings.quota)
        if settings.consolidation is not None:
            self._consolidate(settings.consolidation)

    # --- outside ----------------------------------------------------------------------------------

    @property
    def os(self) -> Any:
        """The handle of init, which may do everything."""
        return self._handle(self.init)

    def handle(self, pid: int) -> Any:
        """The handle of a process. Raises: SyscallError("not_found")."""
        return self._handle(self.table.get(pid))

    async def output(self, pid: int) -> AsyncIterator[bytes]:
        """A process's standard output from its start to its end, as far as it is kept.

        Raises: SyscallError("busy") when it feeds another process.
        """
        console = self.table.get(pid).stdout
        if not isinstance(console, Console):
            raise SyscallError("busy", f"the standard output of {pid} feeds another process")
        async for data in console.follow():
            yield data

    async def feed(self, pid: int, data: bytes) -> None:
        """Write to the standard input of a process that was spawned interactive.

        Raises: SyscallError("broken_pipe") when it has ended or was not.
        """
        await self._stdin(pid).feed(data)

    def close_input(self, pid: int) -> None:
        """End a process's standard input."""
        self._stdin(pid).close_write()

    def events(self) -> AsyncIterator[TraceEvent]:
        """Trace events as they come; a reader that is too slow loses some."""
        return self.tracer.follow()

    def chrome_trace(self) -> JsonObject:
        """The kept trace in the Chrome format, which Perfetto opens."""
        return self.tracer.chrome({DEVICE_PID: "devices", INIT: "init"})

    async def stop(self) -> None:
        """Kill every process and close every device and store."""
        for process in self.table:
            if process.pid != INIT:
                self.lifecycle.signal(process, "KILL")
        tasks = [process.task for process in self.table if process.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        ending = asyncio.create_task(self.ingestions.stop())  # what they embed may fail
        await asyncio.gather(self.devices.stop(), self.task_models.stop())
        await ending
        await self.library.stop()
        await self.traces.stop()
        if self._registry is not None:
            self._registry.close()

    # --- services of the dispatcher ---------------------------------------------------------------

    def spawn(self, process: Process, call: calls.Spawn) -> Spawned:
        """Start a registered program as a child."""
        if call.isolation != "task":
            raise SyscallError(
                "not_available",
                "isolation: programs run as tasks of the kernel yet; leave it at 'task'",
                field="isolation",
            )
        function = self.programs.find(call.program)
        source = None
        if call.stdin_from is not None:
            source = self.table.get(call.stdin_from)
            if not (process.pid == INIT or self.table.descends(source, process)):
                raise SyscallError(
                    "denied",
                    f"process {source.pid} is no descendant of {process.pid}; its output is not "
                    "yours to lead",
                    capability="stdin_from",
                )
        stdin = None
        if call.is_interactive:
            stdin = Pipe(capacity_bytes=self.settings.pipe_bytes, writer=None, reader=None)

        def prepare(child: Process) -> dict[str, Any]:
            if source is not None:
                child.stdin = attach_pipe(
                    source, child.pid, capacity_bytes=self.settings.pipe_bytes
                )
            return {}

        return self._start_as_asked(process, call, function, stdin=stdin, prepare=prepare)

    def fork(self, process: Process, call: calls.Fork) -> Spawned:
        """Start a child that holds copies of the caller's contexts."""
        function = self.programs.find(call.program)
        for context in call.contexts:
            self.contexts.get(process, context)

        def prepare(child: Process) -> dict[str, Any]:
            return {"contexts": self.contexts.hand_down(process, child, call.contexts)}

        return self._start_as_asked(process, call, function, prepare=prepare)

    def prompted(self, process: Process, call: calls.Finetune) -> Spawned:
        """Start the process that makes a version which is prompted with examples."""
        job = self.prompting.job(call, given(self.files, process, call.data))
        return self._start(process, "finetune", job.run, shown=(job.name,), prepare=job.prepare)

    def search(self, process: Process, call: calls.Search) -> Spawned:
        """Start a search for the best settings of a finetune."""
        machinery = Machinery(
            output=self.output,
            end=lambda pid: self.lifecycle.signal(self.table.get(pid), "TERM", deadline_s=GRACE_S),
            registry=self.registry,
            home=self.settings.home,
        )
        job = SearchJob(machinery, call)
        nice = max(JOB_NICE, process.nice)
        return self._start(process, "search", job.run, shown=(job.name,), nice=nice)

    def spawn_graph(self, process: Process, call: calls.SpawnGraph) -> Spawned:
        """Start a task graph as a job."""
        build(call.nodes)
        for node in call.nodes:
            self.programs.find(node.program)

        async def job(handle: Trap) -> Any:
            run = GraphRun(handle, call.nodes, clock=self.clock, max_parallel=call.max_parallel)
            return await run.run()

        shown = (f"{len(call.nodes)} nodes",)
        return self._start(process, "graph", job, shown=shown)

    def renice(self, process: Process, call: calls.Nice) -> None:
        """Change a priority, also of what is on a device now."""
        target = process if call.pid is None else self.table.get(call.pid)
        target.nice = call.nice
        self.devices.renice(target.pid, call.nice)
        for tell in target.on_nice or ():
            tell(call.nice)

    async def sleep(self, process: Process, seconds: float) -> None:
        """Sleep on the kernel's clock."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.clock.call_later(seconds, lambda: settle(future, None, None))
        try:
            await self.waits.block(process, future, state="sleeping", on=f"{seconds:g} s")
        finally:
            timer.cancel()

    def exit(self, process: Process, call: calls.Exit) -> None:
        """Unwind the calling program with a value."""
        if process.pid == INIT:
            raise SyscallError("denied", "init does not exit; stop the kernel", capability="init")
        raise ProgramExit(call.value)

    def ps(self, process: Process) -> Processes:
        """The processes that a process may see."""
        now = self.clock.now()
        seen = [p for p in self.table if self._may_observe(process, p)]
        return Processes(
            processes=tuple(p.info(now, self.inference.tokens_under_way(p)) for p in seen)
        )

    def trace(self, process: Process, call: calls.Trace) -> TraceEvents:
        """The newest events that a process may see."""
        if call.pid is not None:
            target = self.table.get(call.pid)
            if not self._may_observe(process, target):
                raise SyscallError(
                    "denied",
                    f"process {process.pid} may not observe {call.pid}: it needs "
                    "Capabilities(observe_any=True)",
                    capability="observe_any",
                )
            return self.tracer.newest(call.limit, pids={call.pid})
        if process.capabilities.observe_any:
            return self.tracer.newest(call.limit)
        pids = {p.pid for p in self.table if self.table.descends(p, process)}
        return self.tracer.newest(call.limit, pids=pids)

    def stat(self) -> KernelInfo:
        """Devices, memory and counts of the whole kernel."""
        states = Counter(process.shown_state for process in self.table)
        return KernelInfo(
            uptime_s=self.clock.now() - self._booted_s,
            processes=dict(states),
            policy=self.settings.policy,
            devices=(*self.devices.infos(), *self.task_models.infos()),
            ledger=self.ledger.entries(self._named()),
            resident_bytes=resident_bytes(),
            programs=self._programs(),
        )

    # --- internals --------------------------------------------------------------------------------

    def _start_as_asked(
        self,
        parent: Process,
        call: calls.Spawn | calls.Fork,
        function: ProgramFunction,
        *,
        stdin: Pipe | None = None,
        prepare: Callable[[Process], dict[str, Any]],
    ) -> Spawned:
        return self._start(
            parent,
            call.program,
            function,
            args=call.args,
            kwargs=call.kwargs,
            capabilities=call.capabilities,
            quota=call.quota,
            nice=call.nice,
            stdin=stdin,
            client=call.client if isinstance(call, calls.Spawn) else None,
            path_s=call.path_s if isinstance(call, calls.Spawn) else 0.0,
            prepare=prepare,
        )

    def _start(
        self,
        parent: Process,
        program: str,
        function: ProgramFunction,
        *,
        args: tuple[Any, ...] = (),
        kwargs: JsonObject | None = None,
        shown: tuple[Any, ...] | None = None,
        capabilities: Capabilities | None = None,
        quota: Quota | None = None,
        nice: int | None = None,
        stdin: Pipe | None = None,
        client: str | None = None,
        path_s: float = 0.0,
        prepare: Callable[[Process], dict[str, Any]] | None = None,
    ) -> Spawned:
        child = self.lifecycle.spawn(
            parent,
            program=program,
            function=function,
            args=args,
            kwargs=kwargs or {},
            shown=shown,
            capabilities=capabilities,
            quota=quota or Quota(),
            nice=nice,
            stdin=stdin,
            client=client,
            path_s=path_s,
            prepare=prepare,
        )
        if child.nice < 0:
            self.devices.expect_urgent()
        child.on_stop = [
            *(child.on_stop or ()),
            lambda is_held: self.devices.hold(child.pid, is_held=is_held),
        ]
        return Spawned(pid=child.pid)

    def registry(self) -> Registry:
        """The registry of model versions, opened at its first use."""
        if self._registry is None:
            self._registry = Registry(self.settings.home / "models")
        return self._registry

    def _measure(self, base: str) -> Measure:
        """How a gate measures versions of a base: as `Evaluate` does, with the rights of init."""

        async def measure(version: str | None, check: calls.GateCheck) -> Measured:
            call = calls.Evaluate(
                data=check.data,
                model=None if version else base,
                adapter=version,  # by nothing but its own name, which a model or a slot may have
                objective=check.objective,
            )
            found = await self._dispatch(self.init, call)
            losses = {"loss": found.loss, "perplexity": found.perplexity}
            told = {name: value for name, value in losses.items() if value is not None}
            return Measured({**told, **found.metrics}, found.intervals)

        return measure

    def _consolidate(self, setting: ConsolidationSetting) -> None:
        """Start the process that uses idle time."""
        consolidation = Consolidation(
            setting,
            shelf=self.library,
            devices=self.devices.infos,
            clock=self.clock,
            folder=self.settings.home / "memory",
        )

        def prepare(process: Process) -> dict[str, Any]:
            process.acts_for_anyone = True
            return {}

        self._start(
            self.init,
            "consolidation",
            consolidation.run,
            nice=LOWEST,
            prepare=prepare,
        )

    def _reembed(self, change: Change) -> Spawned:
        """Start the process that makes the store's vectors anew; nobody waits for it."""

        def prepare(process: Process) -> dict[str, Any]:
            process.on_end = [lambda: self.lifecycle.reap_soon(process)]
            return change.prepare(process)

        return self._start(
            self.init,
            REEMBED,
            change.run,
            shown=(change.model.source,),
            nice=LOWEST,
            prepare=prepare,
        )

    def _open_store(self) -> Store:
        return open_store(self.settings)

    def _handle(self, process: Process) -> Any:
        trap = TaskTrap(
            process,
            gate=self.gate,
            dispatch=self._dispatch,
            open_stream=self.inference.stream,
            load=self.programs.load,
            clock=self.clock,
            tracer=self.tracer,
        )
        return self._bind(trap)

    def _dispatch(self, process: Process, call: Call[Any]) -> Any:
        return dispatch(self, process, call)

    def _release(self, process: Process) -> None:
        """A process has ended: take back what it holds."""
        process.contexts = None
        self.inference.release(process)
        self.mailboxes.close(process)
        self.files.release(process)

    def _stdin(self, pid: int) -> Pipe:
        stdin = self.table.get(pid).stdin
        if stdin is None:
            raise SyscallError(
                "broken_pipe", f"process {pid} has no standard input; spawn it interactive"
            )
        return stdin

    def _may_observe(self, process: Process, target: Process) -> bool:
        return process.capabilities.observe_any or self.table.descends(target, process)

    def _programs(self) -> dict[str, Accounting]:
        """What each program has used, ended processes included."""
        found = {name: [spent] for name, spent in self.lifecycle.history.items()}
        for process in self.table:
            if not process.is_over and process.pid != INIT:
                found.setdefault(process.program, []).append(process.account.snapshot())
        return {name: total(spent) for name, spent in sorted(found.items())}

    def _named(self) -> list[LedgerEntry]:
        return [
            LedgerEntry(owner="kernel", what="trace", bytes=self.tracer.bytes()),
            LedgerEntry(owner="memory", what="index", bytes=self.library.index_bytes()),
            *self.devices.ledger(),
            *self.task_models.ledger(),
        ]
