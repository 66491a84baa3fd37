"""Memory's calls through the kernel: facts, owners, skills, and who may see and delete what."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.agents.skills import skill
from llmos.drivers.contract import Allocation, EmbeddingInfo
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import EmbeddingSetting
from llmos.syscalls.calls import Note, Remember, Spawn
from llmos.syscalls.content import assistant, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Exited, Fact
from llmos.syscalls.rights import Capabilities

DIMENSIONS = 64


class Words:
    """An embedding of the words of a text, whatever their order."""

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo("words", "cpu", DIMENSIONS, max_tokens=500, parameters=0, identity="w")

    def count(self, text: str) -> int:
        return len(text.split())

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> list[float]:
        counts = [0.0] * DIMENSIONS
        for word in text.lower().replace(".", "").split():
            counts[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
        length = sum(count * count for count in counts) ** 0.5
        return [count / length for count in counts]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


Scenario = Callable[[Kernel], Awaitable[None]]


@pytest.fixture
def run(boot_kernel: Any) -> Callable[..., None]:
    """Run a scenario with a kernel whose embeddings are of words."""

    def start(scenario: Scenario, **programs: Any) -> None:
        async def whole() -> None:
            embedding = EmbeddingSetting(name="words", dimensions=DIMENSIONS, open=Words)
            async with boot_kernel(embedding=embedding, programs=programs) as kernel:
                await scenario(kernel)

        asyncio.run(whole())

    return start


async def ended(
    os: OS, program: str, *args: Any, client: str | None = None, **rights: frozenset[str]
) -> Exited:
    """Run a program with some capabilities, for a client."""
    spawned = await os.call(
        Spawn(program=program, args=args, client=client, capabilities=Capabilities(**rights))
    )
    return await os.wait(spawned.pid)


def lives(city: str, since: float | None = None) -> Note:
    return Note(
        text=f"Ann lives in {city}.",
        fact=Fact(subject="Ann", relation="lives in", object=city),
        valid_from=since,
    )


def test_a_fact_supersedes_the_one_before_and_related_walks_to_it(run: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        os = kernel.os
        (oslo,) = (await os.remember([lives("Oslo", 10)])).ids
        told = await os.remember([lives("Rome", 20)])
        assert told.superseded == (oslo,)
        (fact,) = await os.related("ann")
        assert (fact.object, fact.note, fact.hops) == ("Rome", told.ids[0], 1)
        assert [one.object for one in await os.related("ANN", at=15)] == ["Oslo"]
        assert len(await os.related("ann", with_history=True)) == 2
        assert [hit.text for hit in await os.retrieve("Where does Ann live?")] == [
            "Ann lives in Rome."
        ]

    run(scenario)


def test_a_fact_told_twice_is_kept_once(run: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        first = await kernel.os.remember([lives("Oslo")])
        again = await kernel.os.remember(
            [Note(text="Ann has moved to Oslo.", fact=lives("oslo").fact, importance=0.8)]
        )
        assert (again.ids, again.duplicates, again.superseded) == (first.ids, 1, ())
        (hit,) = await kernel.os.retrieve("Ann")
        assert hit.importance == 0.8

    run(scenario)


def test_semantic_notes_that_say_nearly_the_same_are_kept_once(run: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        notes = [
            Note(text="The pump in the cellar leaks.", kind="semantic"),
            Note(text="THE pump in the CELLAR leaks", kind="semantic"),
            Note(text="The pump in the cellar never leaks.", kind="semantic"),
        ]
        remembered = await kernel.os.remember(notes)
        assert remembered.duplicates == 1 and remembered.ids[0] == remembered.ids[1]
        again = await kernel.os.remember(
            [Note(text="the pump in the cellar leaks", kind="semantic")]
        )
        assert again.duplicates == 1

    run(scenario)


def test_what_happened_is_kept_each_time_unless_the_caller_says(run: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        await kernel.os.remember("the pump leaks")
        assert (await kernel.os.remember("leaks the pump")).duplicates == 0
        assert (await kernel.os.remember("pump the leaks", merge_above=0.9)).duplicates == 1

    run(scenario)


def test_examples_are_turns_with_the_nearest_last(run: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        await kernel.os.remember(
            [
                skill("add two and three", "5"),
                skill("translate the word cat", "Katze"),
                Note(text="translate the word dog please", kind="episodic"),
            ]
        )
        turns = await kernel.os.examples("translate the word dog", 2)
        assert turns == [
            user("add two and three"),
            assistant("5"),
            user("translate the word cat"),
            assistant("Katze"),
        ]

    run(scenario)


def test_an_owner_is_forgotten_everywhere_that_the_caller_may_write(run: Any) -> None:
    async def keep(os: OS, text: str, namespace: str) -> None:
        await os.remember(text, namespace=namespace)

    async def erase(os: OS, owner: str) -> int:
        return await os.forget(owner=owner)

    async def scenario(kernel: Kernel) -> None:
        os = kernel.os
        both = frozenset({"one", "two"})
        for owner in ("ann", "bob"):
            for space in ("one", "two"):
                await ended(os, "keep", f"{owner} in {space}", space, client=owner, write=both)
        gone = await ended(os, "erase", "ann", write=frozenset({"one"}))
        assert gone.unwrap() == 1
        left = await os.retrieve("ann bob", namespaces=["one", "two"])
        assert {hit.text for hit in left} == {"ann in two", "bob in one", "bob in two"}
        assert await os.forget(owner="ann") == 1

    run(scenario, keep=keep, erase=erase)


def test_only_who_embeds_the_kernel_says_for_whom_a_note_is_kept(run: Any) -> None:
    async def claim(os: OS) -> None:
        await os.remember("mine, says Bob", owner="ann")

    async def scenario(kernel: Kernel) -> None:
        refused = await ended(kernel.os, "claim")
        assert refused.error is not None and refused.error.code == "denied"
        await kernel.os.call(Remember(notes=(Note(text="of Ann"),), namespace="x", owner="ann"))
        assert await kernel.os.forget(owner="ann", namespace="x") == 1

    run(scenario, claim=claim)


def test_no_call_reaches_a_namespace_without_its_capability(run: Any) -> None:
    async def walk(os: OS) -> int:
        return len(await os.related("ann"))

    async def walk_there(os: OS) -> None:
        await os.related("ann", namespaces=["secret"])

    async def wipe(os: OS) -> None:
        await os.forget(everything=True, namespace="secret")

    async def scenario(kernel: Kernel) -> None:
        os = kernel.os
        await os.remember([lives("Oslo")], namespace="secret")
        assert (await ended(os, "walk")).unwrap() == 0
        assert (await ended(os, "walk", read=frozenset({"secret"}))).unwrap() == 1
        for program in ("walk_there", "wipe"):
            error = (await ended(os, program)).error
            assert error is not None and error.code == "denied"
        assert len(await os.related("ann")) == 1

    run(scenario, walk=walk, walk_there=walk_there, wipe=wipe)


def test_everything_is_all_of_one_namespace_and_no_selector_is_refused(run: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        os = kernel.os
        await os.remember(["one", "two"])
        await os.remember("other", namespace="b")
        with pytest.raises(SyscallError, match="everything"):
            await os.forget()
        assert await os.forget(everything=True) == 2
        assert [hit.text for hit in await os.retrieve("other")] == ["other"]

    run(scenario)


def test_history_is_forgotten_with_the_rest(run: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        os = kernel.os
        await os.remember([lives("Oslo", 1), lives("Rome", 2)])
        assert await os.forget(everything=True) == 2
        assert await os.related("ann", with_history=True) == ()

    run(scenario)


def test_a_rerank_without_a_model_says_what_to_configure(run: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        with pytest.raises(SyscallError, match="reranker") as refused:
            await kernel.os.retrieve("x", rerank=True)
        assert refused.value.code == "not_available"

    run(scenario)


def test_a_note_of_a_fact_is_semantic_and_can_be_nothing_else() -> None:
    assert lives("Oslo").kind == "semantic"
    with pytest.raises(ValueError, match="semantic"):
        Note(text="x", kind="episodic", fact=lives("Oslo").fact)
