"""Promotions, rollbacks and deletions while agents run, on the scripted device."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import Allocation, DeviceError, Feed, ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.drivers.task_folder import TaskHead
from llmos.kernel import swaps
from llmos.kernel.clock import VirtualClock
from llmos.kernel.kernel import Kernel
from llmos.kernel.release_gate import Measured
from llmos.kernel.settings import ModelSetting, TaskSetting
from llmos.memory.registry import Registry
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import GateCheck
from llmos.syscalls.results import Exported, ModelVersion
from llmos.syscalls.rights import Capabilities


class Decoder:
    """A model whose weights say who they are, and whose steps a test can hold."""

    def __init__(self) -> None:
        self.opened: list[Scripted] = []
        self.closed: list[Scripted] = []
        self.open_error: Exception | None = None
        self.held: set[Scripted] = set()
        self.gate = threading.Semaphore(0)

    def open(self, files: Path | None = None) -> Scripted:
        if files is not None and self.open_error is not None:
            raise self.open_error
        said = "base" if files is None else (files / "weights").read_text()
        decoder = self

        class Noted(Scripted):
            def close(self) -> None:
                decoder.closed.append(self)
                super().close()

        def step(feeds: Sequence[Feed]) -> None:
            if driver in self.held:
                self.gate.acquire()

        driver = Noted(ModelSpec("m", Path("m")), script={"who": f"{said} speaks"}, on_step=step)
        self.opened.append(driver)
        return driver

    @property
    def models(self) -> dict[str, ModelSetting]:
        return {"m": ModelSetting("m", "small", "scripted", self.open, open_at=self.open)}

    def hold(self) -> None:
        """Hold the steps of the devices that are open now."""
        self.held.update(self.opened)

    def free(self) -> None:
        self.held.clear()
        self.gate.release(1000)


Body = Callable[[Kernel, Decoder, VirtualClock], Any]


@pytest.fixture
def scene(boot_kernel: Any, tmp_path: Path) -> Callable[..., None]:
    """Run a body with a kernel that has versions of two kinds: adapters a, b and full f, g."""

    def run(body: Body, **settings: Any) -> None:
        decoder, clock = Decoder(), VirtualClock()

        async def scenario() -> None:
            async with boot_kernel(models=decoder.models, clock=clock, **settings) as kernel:
                for name, kind in (
                    ("a", "adapter"),
                    ("b", "adapter"),
                    ("f", "full"),
                    ("g", "full"),
                ):
                    add(kernel.registry(), tmp_path, name, kind)
                try:
                    await body(kernel, decoder, clock)
                finally:
                    decoder.free()

        asyncio.run(scenario())

    return run


def add(registry: Registry, tmp_path: Path, name: str, kind: str = "adapter") -> None:
    folder = tmp_path / "trained" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text(name)
    registry.add(
        ModelVersion.model_validate(
            {"name": name, "kind": kind, "base": "small", "path": str(folder)}
        )
    )


async def who(os: OS, **options: Any) -> str:
    return (await os.generate("who", max_tokens=100, **options)).text


async def started(kernel: Kernel, count: int) -> list[int]:
    """Start programs that ask, and wait until their generations are on the device."""
    pids = [await kernel.os.spawn(who) for _ in range(count)]
    while len(kernel.inference._under_way) < count:
        await asyncio.to_thread(lambda: None)
    return pids


async def closed(decoder: Decoder, clock: VirtualClock, count: int) -> None:
    """Wait until so many drivers have closed."""
    while len(decoder.closed) < count:
        clock.advance(swaps.LINGER_S)
        await asyncio.to_thread(lambda: None)


def test_a_promotion_and_a_rollback_reach_the_next_call(scene: Any) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        told = [await who(kernel.os)]
        for step in (
            kernel.os.model_promote("a"),
            kernel.os.model_promote("b"),
            kernel.os.model_rollback("small"),
            kernel.os.model_promote("f"),
            kernel.os.model_rollback(),
            kernel.os.model_rollback(),
        ):
            await step
            told.append(await who(kernel.os))
        assert told == [
            "base speaks",
            "a: base speaks",
            "b: base speaks",
            "a: base speaks",
            "f speaks",
            "a: base speaks",
            "base speaks",
        ]

    scene(body)


def test_old_sequences_end_on_their_old_adapter(scene: Any) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        await kernel.os.model_promote("a")
        await who(kernel.os)
        decoder.hold()
        pids = await started(kernel, 3)
        promoting = asyncio.create_task(kernel.os.model_promote("b"))
        decoder.free()
        await promoting
        assert await kernel.os.results(pids) == ["a: base speaks"] * 3
        assert await who(kernel.os) == "b: base speaks"

    scene(body)


def test_old_sequences_end_on_their_old_weights_and_then_the_old_device_closes(
    scene: Any,
) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        await who(kernel.os)
        decoder.hold()
        pids = await started(kernel, 3)
        await kernel.os.model_promote("f")
        assert await who(kernel.os) == "f speaks"
        clock.advance(100 * swaps.LINGER_S)
        assert await who(kernel.os) == "f speaks"
        assert decoder.closed == []
        decoder.free()
        assert await kernel.os.results(pids) == ["base speaks"] * 3
        await closed(decoder, clock, 1)
        assert decoder.closed == [decoder.opened[0]]
        assert await who(kernel.os) == "f speaks"

    scene(body)


def test_no_call_is_lost_while_versions_come_and_go(scene: Any) -> None:
    async def talk(os: OS) -> list[str]:
        return [await who(os) for _ in range(12)]

    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        pids = [await kernel.os.spawn(talk) for _ in range(6)]
        for name in ("a", "f", "b", "g", "f"):
            await kernel.os.model_promote(name)
            clock.advance(swaps.LINGER_S)
        answers = [answer for told in await kernel.os.results(pids) for answer in told]
        assert len(answers) == 72
        assert set(answers) <= {
            "base speaks",
            "a: base speaks",
            "b: base speaks",
            "f speaks",
            "g speaks",
        }

    scene(body)


def test_what_a_device_cannot_open_is_not_promoted_and_nothing_changes(scene: Any) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        await kernel.os.model_promote("a")
        await who(kernel.os)
        decoder.open_error = DeviceError("these are no weights")
        with pytest.raises(SyscallError, match="no weights") as problem:
            await kernel.os.model_promote("f")
        assert problem.value.code == "device"
        assert kernel.registry().promoted("small") == "a"
        assert await who(kernel.os) == "a: base speaks"

    scene(body)


def test_weights_that_do_not_fit_beside_the_old_ones_are_not_promoted(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        available = -1

    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        await who(kernel.os)
        monkeypatch.setattr("llmos.kernel.swaps.psutil.virtual_memory", Memory)
        with pytest.raises(SyscallError, match="does not fit") as problem:
            await kernel.os.model_promote("f")
        assert problem.value.fields["free_bytes"] == -1
        assert len(decoder.opened) == 1
        assert await who(kernel.os) == "base speaks"

    scene(body)


def test_a_damaged_version_is_not_promoted(scene: Any) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        await who(kernel.os)
        for name in ("a", "f"):
            file = Path(str(kernel.registry().get(name).path)) / "weights"
            blob = file.resolve()
            blob.chmod(0o644)
            blob.write_text("?")
            with pytest.raises(SyscallError, match="damaged") as problem:
                await kernel.os.model_promote(name)
            assert problem.value.code == "storage"
        assert kernel.registry().promoted("small") is None
        assert await who(kernel.os) == "base speaks"

    scene(body)


def test_a_promotion_by_another_process_is_followed(scene: Any, tmp_path: Path) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        assert await who(kernel.os) == "base speaks"
        other = Registry(tmp_path / "models")
        other.promote("a")
        assert await who(kernel.os) == "a: base speaks"
        other.promote("f")
        while await who(kernel.os) != "f speaks":
            pass
        other.rollback("small")
        while await who(kernel.os) != "a: base speaks":
            pass
        other.close()

    scene(body)


def test_full_weights_serve_from_the_first_call_after_a_start(scene: Any) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        await kernel.os.model_promote("f")
        assert await who(kernel.os) == "f speaks"
        assert await who(kernel.os, adapter="f") == "f speaks"
        with pytest.raises(SyscallError, match="trained on small, not on f"):
            await who(kernel.os, adapter="a")
        with pytest.raises(SyscallError, match="no adapter"):
            await who(kernel.os, adapter="g")

    scene(body)


def test_an_adapter_on_full_weights_serves_with_them_only(scene: Any, tmp_path: Path) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        kernel.registry().add(ModelVersion(name="on-f", kind="adapter", base="f"))
        kernel.registry().add(
            ModelVersion(name="x", kind="adapter", base="f", path=str(tmp_path / "trained" / "a"))
        )
        await kernel.os.model_promote("f")
        assert await who(kernel.os, adapter="x") == "x: f speaks"
        await kernel.os.model_promote("x")
        assert await who(kernel.os) == "x: f speaks"
        await kernel.os.model_rollback("small")
        assert await who(kernel.os) == "base speaks"

    scene(body)


def test_kv_of_one_adapter_is_no_other_ones(scene: Any, tmp_path: Path) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        async def cached(adapter: str | None) -> int:
            return (await kernel.os.generate("who", adapter=adapter)).usage.cached_tokens

        assert await cached("a") == 0
        assert await cached("a") > 0
        assert await cached("b") == 0
        assert await cached(None) == 0
        assert await cached("b") > 0

        # One of the same name with other files is another one, to the device and to the cache.
        await kernel.os.model_delete("a")
        (tmp_path / "trained" / "a" / "weights").write_text("another")
        source = str(tmp_path / "trained" / "a")
        kernel.registry().add(ModelVersion(name="a", kind="adapter", base="small", path=source))
        assert await cached("a") == 0
        assert len(decoder.opened[0]._adapters) == 3

    scene(body)


def test_a_version_that_a_running_agent_uses_is_not_deleted(scene: Any) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        await kernel.os.model_promote("a")
        await who(kernel.os)
        await who(kernel.os, adapter="b")  # the device has it, so it need not be asked again
        decoder.hold()
        (pid,) = await started(kernel, 1)
        await kernel.os.model_promote("b")
        with pytest.raises(SyscallError, match=f"process {pid}") as problem:
            await kernel.os.model_delete("a")
        assert (problem.value.code, problem.value.fields["pids"]) == ("busy", [pid])
        decoder.free()
        assert await kernel.os.result(pid) == "a: base speaks"
        assert (await kernel.os.model_delete("a")).freed_bytes == 1
        with pytest.raises(SyscallError, match="no version a"):
            await who(kernel.os, adapter="a")
        with pytest.raises(SyscallError, match="serves small"):
            await kernel.os.model_delete("b")

    scene(body)


def test_full_weights_that_an_old_sequence_runs_on_are_not_deleted(scene: Any) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        await kernel.os.model_promote("f")
        await who(kernel.os)
        decoder.hold()
        (pid,) = await started(kernel, 1)
        await kernel.os.model_promote("g")
        with pytest.raises(SyscallError, match=f"process {pid}"):
            await kernel.os.model_delete("f")
        decoder.free()
        assert await kernel.os.result(pid) == "f speaks"
        await kernel.os.model_delete("f")

    scene(body)


# --- the gate ---


class Figures:
    """What an evaluation gives, by version."""

    def __init__(self, **accuracy: float) -> None:
        self.accuracy = accuracy
        self.asked: list[str | None] = []

    def of(self, base: str) -> Any:
        async def measure(version: str | None, check: GateCheck) -> Measured:
            self.asked.append(version)
            return Measured({"accuracy": self.accuracy[version or base]})

        return measure


def gated(**options: Any) -> dict[str, tuple[GateCheck, ...]]:
    check = {"name": "tools", "data": "/sets/tools", "metric": "accuracy", **options}
    return {"small": (GateCheck.model_validate(check),)}


def test_a_gate_refuses_a_regression_and_the_refusal_is_kept(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = Figures(small=0.5, a=0.8, b=0.7)

    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        monkeypatch.setattr(kernel.release, "_measure", figures.of)
        await kernel.os.model_promote("a", reason="first")
        with pytest.raises(SyscallError, match=r"worse by 0\.1; allowed is 0\.05") as problem:
            await kernel.os.model_promote("b")
        assert problem.value.code == "refused"
        assert await who(kernel.os) == "a: base speaks"
        (refusal,) = (await kernel.os.model_lineage("b")).decisions
        assert (refusal.is_allowed, refusal.before) == (False, "a")
        assert refusal.figures[0].value == 0.7
        assert refusal.figures[0].current == 0.8
        (allowed,) = (await kernel.os.model_lineage("a")).decisions[-1:]
        assert (allowed.is_allowed, allowed.reason) == (True, "first")
        assert allowed.figures[0].current == 0.5

        forced = await kernel.os.model_promote("b", force=True, reason="known")
        assert forced.is_promoted
        newest = (await kernel.os.model_lineage("b")).decisions[0]
        assert (newest.is_forced, newest.reason) == (True, "known")

    scene(body, gates=gated(max_regression=0.05))


def test_a_safety_check_binds_a_forced_promotion_too(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        monkeypatch.setattr(kernel.release, "_measure", Figures(a=0.8).of)
        with pytest.raises(SyscallError, match="tools"):
            await kernel.os.model_promote("a", force=True)
        assert kernel.registry().promoted("small") is None

    scene(body, gates=gated(at_least=0.9, is_safety=True))


def test_a_promoted_version_is_not_measured_again(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = Figures(a=0.8)

    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        monkeypatch.setattr(kernel.release, "_measure", figures.of)
        await kernel.os.model_promote("a")
        await kernel.os.model_promote("a")
        assert figures.asked == ["a"]
        await kernel.os.model_rollback("small")
        assert kernel.registry().promoted("small") is None

    scene(body, gates=gated(at_least=0.5))


def test_a_caller_brings_checks_of_files_that_it_may_read(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    check = GateCheck(
        name="mine", data=str(tmp_path / "mine.jsonl"), metric="accuracy", at_least=0.9
    )

    async def promote(os: OS) -> None:
        await os.model_promote("a", checks=[check])

    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        monkeypatch.setattr(kernel.release, "_measure", Figures(a=0.8).of)
        for rights, code in (
            (Capabilities(), "denied"),
            (Capabilities(learn=True), "denied"),
            (Capabilities(learn=True, folders_read=frozenset({str(tmp_path)})), "refused"),
        ):
            pid = await kernel.os.spawn(promote, capabilities=rights)
            ended = await kernel.os.wait(pid)
            assert ended.error is not None and ended.error.code == code

    scene(body)


class Lengths:
    """A task model that calls a text of up to `most` words short."""

    heads = (TaskHead("length", "classify", ("short", "long")),)
    max_length_tokens = 50
    batch_tokens = 200

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._most = int((folder / "weights").read_text())

    def count(self, text: str | Sequence[str]) -> int:
        return len(text)

    def classes(self, task: str | None = None) -> tuple[str, ...]:
        return self.heads[0].labels

    def classify(self, texts: Sequence[str], *, task: str | None = None) -> list[list[float]]:
        return [[0.75, 0.25] if len(text.split()) <= self._most else [0.25, 0.75] for text in texts]

    def tag(self, sentences: Any, *, task: str | None = None) -> list[list[tuple[str, float]]]:
        raise AssertionError("it has no such head")

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


def test_a_gate_measures_task_models_as_evaluate_does(boot_kernel: Any, tmp_path: Path) -> None:
    data = tmp_path / "lengths.jsonl"
    texts = {"one": "short", "two words": "short", "three words here": "long"}
    data.write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts.items())
    )
    check = GateCheck(
        name="lengths", data=str(data), metric="accuracy", at_least=0.6, max_regression=0.1
    )

    async def scenario() -> None:
        tasks = TaskSetting(open=lambda folder, base: Lengths(folder))
        async with boot_kernel(tasks=tasks, gates={"length": (check,)}) as kernel:
            for name, most in (("good", "2"), ("worse", "1"), ("bad", "0")):
                folder = tmp_path / "trained" / name
                folder.mkdir(parents=True)
                (folder / "weights").write_text(most)
                kernel.registry().add(
                    ModelVersion(
                        name=name,
                        kind="task",
                        base="minilm",
                        path=str(folder),
                        slot="length",
                        card={"objective": "classify"},
                    )
                )
            with pytest.raises(SyscallError, match=r"0\.2667 under 0\.6"):
                await kernel.os.model_promote("bad")
            await kernel.os.model_promote("good")
            with pytest.raises(SyscallError, match=r"0\.6667 against 1, worse by 0\.3333"):
                await kernel.os.model_promote("worse")
            label = (await kernel.os.classify("two words", "length")).labels[0][0]
            assert label.label == "short"
            *_, decision = (await kernel.os.model_lineage("good")).decisions
            assert decision.figures[0].interval is not None

    asyncio.run(scenario())


def test_only_decoders_serve_a_base(scene: Any) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        kernel.registry().add(ModelVersion(name="t", kind="task", base="minilm"))
        with pytest.raises(SyscallError, match="give it another slot"):
            await kernel.os.model_promote("t", slot="small")
        assert (await kernel.os.model_promote("t", slot="people")).slot == "people"
        with pytest.raises(SyscallError, match="kind task"):
            await kernel.os.model_export("t")

    scene(body)


def test_a_slot_is_told_apart_from_the_names_of_versions(scene: Any) -> None:
    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        for name in ("t", "u", "people"):
            kernel.registry().add(ModelVersion(name=name, kind="task", base="minilm"))
        with pytest.raises(SyscallError, match="u is the name of a version"):
            await kernel.os.model_promote("t", slot="u")
        await kernel.os.model_promote("t", slot="guests")
        kernel.registry().add(ModelVersion(name="guests", kind="task", base="minilm"))
        with pytest.raises(SyscallError, match="guests is a slot that another version serves"):
            await kernel.os.model_promote("guests")

    scene(body)


def test_a_gate_measures_a_version_that_has_the_name_of_a_model(scene: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "who", "completion": "base speaks"}] * 2
    data = tmp_path / "who.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check = GateCheck(
        name="who", data=str(data), objective="generate", metric="exact_match", at_least=0.9
    )

    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        add(kernel.registry(), tmp_path, "m", "adapter")
        with pytest.raises(SyscallError, match=r"exact_match is 0, 0\.9 under 0\.9"):
            await kernel.os.model_promote("m")

    scene(body, gates={"small": (check,)})


def test_an_export_of_a_model_that_was_made_from_nothing_finds_its_weights(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []

    async def export(version: Any, folder: Path, weights: Path, base: Path, *rest: Any) -> Exported:
        given.append(base)
        return Exported(path="there", format="safetensors", bytes=1)

    async def body(kernel: Kernel, decoder: Decoder, clock: VirtualClock) -> None:
        monkeypatch.setattr("llmos.kernel.model_export.export", export)
        source = str(tmp_path / "trained" / "f")
        kernel.registry().add(ModelVersion(name="new", kind="full", base="new", path=source))
        await kernel.os.model_export("new")
        assert given == [kernel.registry().load("new")]

    scene(body)
