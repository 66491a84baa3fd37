"""The demonstration job: many agents at once over the files of a folder.

Indexers in parallel; then, all at the same time, a research graph that answers the question, agents
that use tools, a debate between forks of one context, a review and a summary. A reporter process
hears of all of it on the topic `demo`. What the model gets wrong is shown as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from llmos.agents.critic import critic
from llmos.agents.debate import debate
from llmos.agents.grounding import shown_source
from llmos.agents.handle import OS
from llmos.agents.indexing import indexer, namespace_of, require_indexed
from llmos.agents.react import react
from llmos.agents.research import research
from llmos.agents.summarise import summarise
from llmos.syscalls.results import Exited, FileInfo
from llmos.syscalls.values import JsonObject, JsonValue

TOPIC = "demo"
QUESTION = "What does a fork share?"
CLAIM = "Agents should share one model."
_INDEXERS = 3
_WORKERS = 4
_SUMMARY_BYTES = 6_000  # a larger file would take most of the time
_SAID = ("answer", "summary", "winner", "reason", "score", "remark")
_NICE = 5  # of what the question does not wait for


async def demo(
    os: OS, folder: str, *, question: str = QUESTION, model: str | None = None
) -> JsonObject:
    """Run the job. `folder` is an absolute path that the process may read.

    Returns `{"question", "answer", "sources", "research", "index", "agents", "events"}`; `agents`
    has the outcome of every other agent by name.
    Raises: SyscallError("not_found") for a folder without text files; the research's error when it
    fails.
    """
    reporter = await os.spawn(demo_reporter, parent=os.pid)
    await os.receive(sender=reporter)  # it has subscribed
    files = await os.list(folder, is_recursive=True)
    await _tell(os, f"{len(files)} files, {sum(file.bytes for file in files)} bytes")
    index = await _index(os, folder, files)
    require_indexed(index)
    texts = _indexed_files(files, index)
    await _tell(os, f"indexed: {index['notes']} new chunks, {index['unchanged']} files unchanged")
    agents = await _start(os, folder, texts, question, model)
    await _tell(os, f"{len(agents)} agents started: {', '.join(agents)}")
    ended = await _ended(os, agents)
    await os.publish(TOPIC, None)
    events = await os.result(reporter)
    answer: JsonObject = ended["research"].unwrap()
    return {
        "question": question,
        "answer": answer["answer"],
        "sources": [shown_source(one, folder) for one in answer["sources"]],
        "research": answer,
        "index": index,
        "agents": {name: _outcome(one) for name, one in ended.items() if name != "research"},
        "events": events,
    }


async def demo_reporter(os: OS, *, parent: int) -> int:
    """Write what is published on the topic until a null comes; returns how much that was."""
    await os.subscribe(TOPIC)
    await os.send(parent, "ready")
    count = 0
    while True:
        said = (await os.receive(topic=TOPIC)).body
        if said is None:
            return count
        count += 1
        await os.print(said)


async def _index(os: OS, folder: str, files: Sequence[FileInfo]) -> JsonObject:
    """Index in parallel, the largest files spread over the indexers."""
    by_size = sorted(files, key=lambda file: -file.bytes)
    shares = [[file.path for file in by_size[n::_INDEXERS]] for n in range(_INDEXERS)]
    namespace = namespace_of(folder)
    pids = [await os.spawn(indexer, folder, namespace, paths=share) for share in shares if share]
    done: list[JsonObject] = await os.results(pids)
    return {
        "namespace": namespace,
        "files": sum(one["files"] for one in done),
        "unchanged": sum(one["unchanged"] for one in done),
        "notes": sum(one["notes"] for one in done),
        "skipped": [line for one in done for line in one["skipped"]],
    }


def _indexed_files(files: Sequence[FileInfo], index: JsonObject) -> list[FileInfo]:
    """The files that memory could take in."""
    skipped = {line.partition(": ")[0] for line in index["skipped"]}
    return [file for file in files if file.path not in skipped]


async def _start(
    os: OS, folder: str, files: Sequence[FileInfo], question: str, model: str | None
) -> Mapping[str, int]:
    """Start all agents; pids by name."""
    total = sum(file.bytes for file in files)
    by_size = sorted(files, key=lambda file: file.bytes)
    summed = [by_size[0], *(file for file in by_size if file.bytes <= _SUMMARY_BYTES)][-1]
    return {
        "research": await os.spawn(
            research, question, namespace=namespace_of(folder), workers=_WORKERS, model=model
        ),
        "calculator": await os.spawn(
            react,
            f"What is {total} * 8?",
            tools=["calculator", "read_file"],
            max_steps=3,
            model=model,
            nice=_NICE,
        ),
        "reader": await os.spawn(
            react,
            "What does note.md say?",
            tools=["read_file", "list_files"],
            files={"note.md": by_size[0].path},  # a short name, which a small model spells right
            max_steps=3,
            model=model,
            nice=_NICE,
        ),
        "programmer": await os.spawn(
            react,
            "Use Python to add the numbers from 1 to 50.",
            tools=["python", "calculator"],
            max_steps=3,
            model=model,
            nice=_NICE,
        ),
        "debate": await os.spawn(debate, CLAIM, rounds=2, model=model, nice=_NICE),
        "critic": await os.spawn(critic, CLAIM, model=model, nice=_NICE),
        "summary": await os.spawn(summarise, summed.path, words=40, model=model, nice=_NICE),
    }


async def _ended(os: OS, agents: Mapping[str, int]) -> dict[str, Exited]:
    """Wait for all, telling of each as it ends."""

    async def one(name: str, pid: int) -> Exited:
        exited = await os.wait(pid)
        await _tell(os, f"{name}: {_said(exited)}")
        return exited

    waits = [one(name, pid) for name, pid in agents.items()]
    return dict(zip(agents, await asyncio.gather(*waits), strict=True))


async def _tell(os: OS, line: str) -> None:
    await os.publish(TOPIC, line)
    await os.print(line)


def _outcome(exited: Exited) -> JsonObject:
    return {"status": exited.status, "value": exited.value, "why": _why(exited)}


def _why(exited: Exited) -> str | None:
    if exited.status == "ok":
        return None
    return exited.error.message if exited.error else f"killed by {exited.signal}"


def _said(exited: Exited) -> str:
    """What an agent has to say, in one line."""
    if exited.status != "ok":
        return f"failed: {_why(exited)}"
    value: JsonValue = exited.value
    said = [str(value[key]) for key in _SAID if key in value]
    return " ".join(" ".join(said).split()) or "done"
