"""From a call to the service that answers it: one match over the closed union."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

from llmos.syscalls import calls as c
from llmos.syscalls.calls import Syscall
from llmos.syscalls.results import Done
from llmos.syscalls.values import Value

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel
    from llmos.kernel.process import Process

DONE = Done()


async def dispatch(kernel: Kernel, process: Process, any_call: c.Call[Any]) -> Value:
    """Serve an admitted call.

    Raises: SyscallError when the service refuses it or fails; Killed when a signal ends the wait.
    """
    call: Syscall = any_call  # pyright: ignore[reportAssignmentType]
    match call:
        case c.Generate():
            return await kernel.inference.generate(process, call)
        case c.Embed():
            return await kernel.inference.embed(process, call)
        case c.Tokenize():
            return await kernel.inference.tokenize(call)
        case c.ContextOpen():
            return await kernel.contexts.open(process, call)
        case c.ContextAppend():
            return await kernel.contexts.append(process, call)
        case c.ContextFork():
            return kernel.contexts.fork(process, call)
        case c.ContextPin():
            return kernel.contexts.pin(process, call)
        case c.ContextStat():
            return kernel.contexts.stat(process, call)
        case c.ContextSave():
            return await kernel.contexts.save(process, call)
        case c.ContextRestore():
            return await kernel.contexts.restore(process, call)
        case c.ContextDiff():
            return await kernel.contexts.diff(process, call)
        case c.CoreMemory():
            return await kernel.contexts.core_memory(process, call)
        case c.ContextClose():
            kernel.contexts.close(process, call)
            return DONE
        case c.Remember():
            return await kernel.library.remember(process, call)
        case c.Retrieve():
            return await kernel.library.retrieve(process, call)
        case c.Related():
            return await kernel.library.related(process, call)
        case c.Ingest():
            return await kernel.ingestions.ingest(process, call)
        case c.Forget():
            forgotten = await kernel.library.forget(process, call)
            await kernel.contexts.forget(process, call)
            return forgotten
        case c.MemoryStat():
            return await kernel.library.stat(process)
        case c.ToolCall():
            return await kernel.tools.call(process, call)
        case c.ToolList():
            return kernel.tools.list(process)
        case c.Finetune(method="prompt"):
            return kernel.prompted(process, call)
        case c.Finetune():
            return kernel.learning.finetune(process, call)
        case c.Evaluate():
            return await kernel.scoring.evaluate(process, call)
        case c.Search():
            return kernel.search(process, call)
        case c.ModelList():
            return kernel.release.models(call)
        case c.ModelPromote():
            return await kernel.release.promote(process, call)
        case c.ModelRollback():
            return await kernel.release.rollback(call)
        case c.ModelDelete():
            prompted = kernel.prompting.version(call.name)
            deleted = await kernel.release.delete(call)
            if prompted is not None and prompted.name == call.name:
                await kernel.prompting.forget(prompted)
            return deleted
        case c.ModelExport():
            return await kernel.release.export(process, call)
        case c.TraceConsent():
            return await kernel.traces.consent(process, call)
        case c.Outcome():
            return await kernel.traces.outcome(process, call)
        case c.TraceData():
            return await kernel.traces.data(process, call)
        case c.Classify():
            if version := kernel.prompting.version(call.model):
                return await kernel.prompting.classify(process, version, call)
            return await kernel.task_models.classify(process, call)
        case c.Tag():
            return await kernel.task_models.tag(process, call)
        case c.Spawn():
            return kernel.spawn(process, call)
        case c.Fork():
            return kernel.fork(process, call)
        case c.SpawnGraph():
            return kernel.spawn_graph(process, call)
        case c.Wait():
            return await kernel.lifecycle.wait(process, call)
        case c.Signal():
            target = kernel.table.get(call.pid)
            kernel.lifecycle.signal(target, call.signal, deadline_s=call.deadline_s)
            return DONE
        case c.Nice():
            kernel.renice(process, call)
            return DONE
        case c.Sleep():
            await kernel.sleep(process, call.seconds)
            return DONE
        case c.Exit():
            kernel.exit(process, call)
            return DONE
        case c.Ps():
            return kernel.ps(process)
        case c.Send():
            return await kernel.mailboxes.send(process, call)
        case c.Receive():
            return await kernel.mailboxes.receive(process, call)
        case c.Publish():
            return kernel.mailboxes.publish(process, call)
        case c.Subscribe():
            kernel.mailboxes.subscribe(process, call)
            return DONE
        case c.Open():
            return kernel.files.open(process, call)
        case c.Read():
            return await kernel.files.read(process, call)
        case c.Write():
            return await kernel.files.write(process, call)
        case c.Close():
            kernel.files.close(process, call.fd)
            return DONE
        case c.List():
            return kernel.files.list(process, call)
        case c.Trace():
            return kernel.trace(process, call)
        case c.Stat():
            return kernel.stat()
        case _:
            assert_never(call)
