"""Task models as syscalls: shared passes, loading and eviction, promotions, failures, who may."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import Allocation, DeviceError
from llmos.drivers.task_folder import TaskHead
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import TaskSetting
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning_results import ModelVersion
from llmos.syscalls.rights import Capabilities, Quota

SIZE_BYTES = 100


class Scripted:
    """Says "short" of texts of up to three words, and that words with capitals are names.

    Each pass releases `began`; `go` holds it back while it is not set. The text "poison" fails,
    "fatal" for good.
    """

    def __init__(self, folder: Path, began: threading.Semaphore, go: threading.Event) -> None:
        self.name = folder.name
        self.passes: list[list[Any]] = []
        self.is_closed = False
        self._began = began
        self._go = go

    heads = (
        TaskHead("length", "classify", ("short", "long")),
        TaskHead("names", "tag", ("O", "B-name", "I-name")),
    )
    max_length_tokens = 50
    batch_tokens = 200

    def count(self, text: str | Sequence[str]) -> int:
        return len(text.split() if isinstance(text, str) else text)

    def classes(self, task: str | None = None) -> tuple[str, ...]:
        return self.heads[0].labels

    def classify(self, texts: Sequence[str], *, task: str | None = None) -> list[list[float]]:
        self._begin(texts)
        return [[0.75, 0.25] if len(text.split()) <= 3 else [0.25, 0.75] for text in texts]

    def tag(
        self, sentences: Sequence[Sequence[str]], *, task: str | None = None
    ) -> list[list[tuple[str, float]]]:
        self._begin(sentences)
        return [
            [("B-name", 0.75) if word[0].isupper() else ("O", 1.0) for word in words]
            for words in sentences
        ]

    def allocations(self) -> list[Allocation]:
        return [Allocation("weights", SIZE_BYTES)]

    def close(self) -> None:
        self.is_closed = True

    def _begin(self, texts: Sequence[Any]) -> None:
        self.passes.append(list(texts))
        self._began.release()
        assert self._go.wait(10)
        if "poison" in texts:
            raise DeviceError("the text is poison")
        if "fatal" in texts:
            raise DeviceError("the device burns", is_fatal=True)


class Served:
    """A kernel with scripted task models; `opened` are those that were, by version, in order."""

    def __init__(
        self,
        kernel: Kernel,
        opened: list[Scripted],
        began: threading.Semaphore,
        go: threading.Event,
    ) -> None:
        self.kernel = kernel
        self.os: OS = kernel.os
        self.opened = opened
        self.go = go
        self._began = began

    async def began_a_pass(self) -> None:
        """Wait until a pass has begun that was not waited for."""
        assert await asyncio.to_thread(self._began.acquire, True, 10)

    def names(self) -> list[str]:
        return [model.name for model in self.opened]

    def add(self, name: str, **fields: Any) -> None:
        add(self.kernel, name, **fields)


def add(kernel: Kernel, name: str, *, slot: str | None = None, kind: Any = "task") -> None:
    """Put a version of one small file into the registry."""
    folder = kernel.settings.home / "made" / name
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(name)
    kernel.registry().add(
        ModelVersion(name=name, kind=kind, base="minilm", path=str(folder), slot=slot)
    )


Serve = Callable[..., Any]


@pytest.fixture
def serve(boot_kernel: Any) -> Serve:
    @asynccontextmanager
    async def served(*, models: int = 10, broken: Sequence[str] = ()) -> AsyncIterator[Served]:
        opened: list[Scripted] = []
        began, go = threading.Semaphore(0), threading.Event()
        go.set()
        remaining = list(broken)

        def opening(folder: Path, base: str | None) -> Scripted:
            assert base == "minilm"
            if folder.name in remaining:
                remaining.remove(folder.name)
                raise DeviceError("its weights are not there")
            opened.append(Scripted(folder, began, go))
            return opened[-1]

        setting = TaskSetting(open=opening, memory_bytes=models * SIZE_BYTES)
        async with boot_kernel(tasks=setting) as kernel:
            try:
                yield Served(kernel, opened, began, go)
            finally:
                go.set()

    return served


def run(scenario: Any) -> None:
    asyncio.run(scenario())


def test_texts_get_their_labels_the_most_likely_first(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve() as served:
            served.add("v1")
            found = await served.os.classify(["a b", "a b c d e"], "v1")
            first, second = found.labels
            assert [(one.label, one.probability) for one in first] == [
                ("short", 0.75),
                ("long", 0.25),
            ]
            assert second[0].label == "long"
            assert (found.model, found.tokens) == ("v1", 7)
            best = await served.os.classify("a", "v1", top_k=1)
            assert len(best.labels[0]) == 1

    run(scenario)


def test_texts_and_split_sentences_get_their_entities(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve() as served:
            served.add("v1")
            found = await served.os.tag(["saw Ann, today", ["Bo", "!"]], "v1", task="names")
            text, sentence = found.texts
            assert [(one.text, one.start, one.end) for one in text.entities] == [("Ann", 4, 7)]
            assert text.words == ("saw", "Ann", ",", "today")
            assert sentence.text == "Bo !"
            assert sentence.tags == ("B-name", "O")
            assert found.tokens == 6

    run(scenario)


def test_texts_of_all_agents_share_passes(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve() as served:
            served.add("v1")
            served.go.clear()
            first = asyncio.ensure_future(served.os.classify("first", "v1"))
            await served.began_a_pass()
            others = [
                asyncio.ensure_future(served.os.classify(f"text {n}", "v1")) for n in range(8)
            ]
            for _ in range(10):  # each is let go on until it waits
                await asyncio.sleep(0)
            assert served.kernel.task_models.infos()[0].waiting == len(others)
            served.go.set()
            await asyncio.gather(first, *others)
            assert list(map(len, served.opened[0].passes)) == [1, 8]

    run(scenario)


def test_a_model_is_loaded_once_and_the_one_used_longest_ago_goes(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve(models=2) as served:
            for name in ("a", "b", "c"):
                served.add(name)
            for name in ("a", "b", "a", "c", "a"):
                await served.os.classify("x", name)
            assert served.names() == ["a", "b", "c"]
            assert {one.name for one in served.kernel.task_models.infos()} == {"a", "c"}
            await served.os.classify("x", "b")
            assert served.names() == ["a", "b", "c", "b"]
            assert {one.name for one in served.kernel.task_models.infos()} == {"a", "b"}
            owners = {one.owner for one in served.kernel.task_models.ledger()}
            assert owners == {"a", "b"}
        assert all(model.is_closed for model in served.opened)

    run(scenario)


def test_a_model_that_a_call_waits_for_is_not_evicted(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve(models=1) as served:
            served.add("a")
            served.add("b")
            served.go.clear()
            waiting = asyncio.ensure_future(served.os.classify("x", "a"))
            await served.began_a_pass()
            other = asyncio.ensure_future(served.os.classify("x", "b"))
            await served.began_a_pass()
            assert len(served.kernel.task_models.infos()) == 2
            served.go.set()
            assert (await waiting).model == "a"
            assert (await other).model == "b"
            assert len(served.kernel.task_models.infos()) == 1

    run(scenario)


def test_a_promotion_reaches_the_next_call_and_calls_under_way_end_on_what_they_began(
    serve: Serve,
) -> None:
    async def scenario() -> None:
        async with serve() as served:
            served.add("v1", slot="lengths")
            served.add("v2", slot="lengths")
            registry = served.kernel.registry()
            registry.promote("v1")
            served.go.clear()
            under_way = asyncio.ensure_future(served.os.classify("x", "lengths"))
            await served.began_a_pass()
            registry.promote("v2")
            next_one = asyncio.ensure_future(served.os.classify("x", "lengths"))
            await asyncio.sleep(0)
            served.go.set()
            assert (await under_way).model == "v1"
            assert (await next_one).model == "v2"
            registry.rollback("lengths")
            assert (await served.os.classify("x", "lengths")).model == "v1"

    run(scenario)


def test_a_model_that_cannot_be_opened_fails_its_callers_and_is_tried_again(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve(broken=["bad"]) as served:
            served.add("bad")
            served.add("good")
            with pytest.raises(SyscallError, match="its weights are not there") as refused:
                await served.os.classify("x", "bad")
            assert refused.value.code == "device"
            assert (await served.os.classify("x", "good")).model == "good"
            assert (await served.os.classify("x", "bad")).model == "bad"

    run(scenario)


def test_a_failing_pass_fails_its_own_callers_and_a_dead_device_is_replaced(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve() as served:
            served.add("v1")
            served.add("v2")
            with pytest.raises(SyscallError, match="poison"):
                await served.os.classify("poison", "v1")
            await served.os.classify("x", "v1")
            await served.os.classify("x", "v2")
            with pytest.raises(SyscallError, match="burns"):
                await served.os.classify("fatal", "v1")
            assert (await served.os.classify("x", "v2")).model == "v2"
            assert (await served.os.classify("x", "v1")).model == "v1"
            assert served.names() == ["v1", "v2", "v1"]

    run(scenario)


async def label(os: OS, model: str, text: str = "a b") -> str:
    return (await os.classify(text, model)).model


def test_a_process_may_use_the_versions_that_it_is_granted(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve() as served:
            served.add("intent-1", slot="intents")
            served.add("other")
            served.kernel.registry().promote("intent-1")
            for grant in ("intent-*", "intents"):
                rights = Capabilities(models=frozenset({grant}))
                pid = await served.os.spawn(label, "intents", capabilities=rights)
                assert (await served.os.wait(pid)).value == "intent-1"
                pid = await served.os.spawn(label, "other", capabilities=rights)
                error = (await served.os.wait(pid)).error
                assert error is not None and error.code == "denied"
                assert "models:other" in error.message

    run(scenario)


def test_tokens_are_charged_and_a_quota_ends_the_calls(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve() as served:
            served.add("v1")
            pid = await served.os.spawn(label, "v1", quota=Quota(tokens_in=2))
            await served.os.wait(pid)
            (spent,) = (await served.os.stat()).programs.values()
            assert spent.tokens_in == 2
            pid = await served.os.spawn(label, "v1", "a b c", quota=Quota(tokens_in=2))
            error = (await served.os.wait(pid)).error
            assert error is not None and error.code == "quota_exceeded"

    run(scenario)


def test_a_process_that_waits_is_seen_to_and_its_version_is_not_deleted(serve: Serve) -> None:
    async def scenario() -> None:
        async with serve() as served:
            served.add("v1")
            served.go.clear()
            pid = await served.os.spawn(label, "v1")
            await served.began_a_pass()
            (seen,) = [one for one in await served.os.ps() if one.pid == pid]
            assert (seen.state, seen.waiting_on) == ("waiting_device", "v1")
            with pytest.raises(SyscallError, match="is used now"):
                served.kernel.registry().remove("v1")
            served.go.set()
            await served.os.wait(pid)
            events = (await served.os.trace()).events
            spans = [(one.name, one.pid) for one in events if one.track == "v1"]
            assert spans == [("label", 0), ("classify", pid)]
            served.kernel.registry().remove("v1")
            with pytest.raises(SyscallError) as refused:
                await served.os.classify("x", "v1")
            assert refused.value.code == "unknown_model"

    run(scenario)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ({"texts": ["a", " "], "model": "v1"}, "texts.1"),
        ({"texts": "a", "model": "v1", "task": "no"}, "task"),
        ({"texts": "a", "model": "v1", "task": "names"}, "task"),
        ({"texts": "a", "model": "lora"}, "model"),
    ],
)
def test_what_cannot_be_labelled_is_refused_by_its_field(
    serve: Serve, call: dict[str, Any], field: str
) -> None:
    async def scenario() -> None:
        async with serve() as served:
            served.add("v1")
            served.add("lora", kind="adapter")
            with pytest.raises(SyscallError) as refused:
                await served.os.classify(**call)
            assert (refused.value.code, refused.value.fields["field"]) == ("invalid", field)

    run(scenario)


def test_a_kernel_without_task_models_says_so(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            add(kernel, "v1")
            with pytest.raises(SyscallError) as refused:
                await kernel.os.classify("x", "v1")
            assert refused.value.code == "not_available"

    run(scenario)
