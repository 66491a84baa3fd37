"""Generation through the whole kernel on the scripted device."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import (
    Abilities,
    DeviceError,
    Feed,
    ModelSpec,
    RequestError,
    SequenceError,
)
from llmos.drivers.scripted import Scripted, pseudo_text
from llmos.kernel.clock import VirtualClock
from llmos.kernel.kernel import Kernel
from llmos.kernel.policy import PolicyName, PolicySettings
from llmos.kernel.settings import ModelSetting
from llmos.kernel.stepper import Stepper
from llmos.syscalls.calls import Generate
from llmos.syscalls.content import system, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import ChoiceConstraint, JsonSchemaConstraint, Sampling
from llmos.syscalls.results import Delta, Generated, ModelVersion
from llmos.syscalls.rights import Quota

STORY = "Once upon a time a kernel scheduled many agents, and none of them was ever lost. The end."


class Bench:
    """A scripted device whose steps a test can hold and count."""

    def __init__(self, *, script: dict[str, str] | None = None, **spec: Any) -> None:
        self.opened: list[Scripted] = []
        self.batches: list[int] = []
        self.failures: list[Exception] = []
        self.gate = threading.Semaphore(0)
        self.is_gated = False
        self._script = {"story": STORY} if script is None else script
        self._abilities: Abilities | None = spec.pop("abilities", None)
        self._spec = ModelSpec("scripted", Path("scripted"), **spec)
        self.on_open: Callable[[], None] = lambda: None

    def open(self) -> Scripted:
        self.on_open()
        driver = Scripted(
            self._spec, script=self._script, on_step=self._on_step, abilities=self._abilities
        )
        for failure in self.failures:
            driver.fail_next_step(failure)
        self.failures = []
        self.opened.append(driver)
        return driver

    @property
    def models(self) -> dict[str, ModelSetting]:
        return {"scripted": ModelSetting("scripted", "scripted", "scripted", self.open)}

    async def step(self, count: int = 1) -> None:
        """Let some steps happen and wait until they have."""
        target = len(self.batches) + count
        for _ in range(count):
            self.gate.release()
        while len(self.batches) < target:
            await asyncio.to_thread(lambda: None)

    def _on_step(self, feeds: Sequence[Feed]) -> None:
        if self.is_gated:
            self.gate.acquire()
        self.batches.append(len(feeds))

    def free(self) -> None:
        self.is_gated = False
        self.gate.release(1000)


async def write(os: OS, prompt: str = "story", max_tokens: int = 500) -> str:
    return (await os.generate(prompt, max_tokens=max_tokens)).text


async def quiet(kernel: Kernel) -> None:
    """Wait until the device holds nothing of a process's and has told the kernel so."""
    engine = await kernel.devices.engine(None)
    while True:
        await engine.on_device(lambda driver: None)
        info = engine.info()
        if info.running == info.waiting == 0:
            # What the engine said last is delivered before this answer.
            await engine.on_device(lambda driver: None)
            return


def test_text_usage_and_accounting_of_one_generation(boot_kernel: Any) -> None:
    bench = Bench()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            generated = await kernel.os.generate("story", max_tokens=500)
            assert (generated.text, generated.finish) == (STORY, "stop")
            assert generated.usage.completion_tokens == len(STORY)
            account = kernel.init.account
            assert account.tokens_in == generated.usage.prompt_tokens
            assert account.tokens_out == len(STORY)
            assert account.kv_bytes == 0

    asyncio.run(scenario())


def test_a_stream_yields_the_text_in_pieces_and_then_the_result(boot_kernel: Any) -> None:
    bench = Bench(script={"story": "héllo wörld"})

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            pieces = [piece async for piece in kernel.os.stream("story")]
            assert isinstance(pieces[-1], Generated)
            deltas = [piece.text for piece in pieces[:-1] if isinstance(piece, Delta)]
            assert "".join(deltas) == pieces[-1].text == "héllo wörld"
            assert "\ufffd" not in "".join(deltas)

    asyncio.run(scenario())


def test_a_closed_stream_frees_its_sequence(boot_kernel: Any) -> None:
    bench = Bench()
    bench.is_gated = True

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            stream = kernel.os.stream("story", max_tokens=500)
            first = asyncio.ensure_future(anext(stream))
            await bench.step(3)
            assert isinstance(await first, Delta)
            await stream.aclose()
            bench.free()
            await quiet(kernel)
            info = kernel.devices.infos()[0]
            assert (info.running, info.kv_tokens_used) == (0, 0)
            assert kernel.init.account.kv_bytes == 0

    asyncio.run(scenario())


def test_a_plain_text_is_counted_without_any_model(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            tokens = await kernel.os.tokenize("Count these four<|endoftext|>", model="tiktoken")
            assert (tokens.count, tokens.is_exact) == (len(tokens.ids), False)
            assert 4 < tokens.count < 20

    asyncio.run(scenario())


def test_a_stop_string_ends_the_text_before_it(boot_kernel: Any) -> None:
    bench = Bench()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            generated = await kernel.os.generate("story", stop=["kernel"], max_tokens=500)
            assert (generated.text, generated.finish) == ("Once upon a time a ", "stop")

    asyncio.run(scenario())


def test_many_agents_share_the_batch_and_none_is_lost(boot_kernel: Any) -> None:
    bench = Bench(script={}, sequences=8)

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            alone = [
                (await kernel.os.generate(f"number {index}", max_tokens=40)).text
                for index in range(50)
            ]
            bench.is_gated = True  # until all have asked: a fast device would serve them singly
            pids = [await kernel.os.spawn(write, f"number {index}", 40) for index in range(50)]
            while any(kernel.table.get(pid).state != "waiting_device" for pid in pids):
                await asyncio.to_thread(lambda: None)
            bench.free()
            assert await kernel.os.results(pids) == alone
            await quiet(kernel)
            assert max(bench.batches) == 8
            assert len(kernel.table) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("policy", get_args(PolicyName))
@pytest.mark.parametrize("can_save", [True, False])
def test_preemption_changes_no_text(boot_kernel: Any, policy: str, can_save: bool) -> None:
    abilities = Abilities(can_save=can_save)
    bench = Bench(script={}, sequences=2, abilities=abilities)
    sampling = Sampling(temperature=1.0, seed=7, repetition_penalty=1.1)

    async def sample(os: OS, index: int) -> str:
        await os.nice(index % 5)
        prompt = f"topic {index}"
        return (await os.generate(prompt, sampling=sampling, max_tokens=40)).text

    async def scenario() -> None:
        scheduling = PolicySettings(quantum_tokens=8)
        async with boot_kernel(models=bench.models, policy=policy, scheduling=scheduling) as kernel:
            alone = [await kernel.os.result(await kernel.os.spawn(sample, i)) for i in range(9)]
            pids = [await kernel.os.spawn(sample, index) for index in range(9)]
            assert await kernel.os.results(pids) == alone

    asyncio.run(scenario())


def test_a_better_priority_takes_the_place_of_a_running_generation(boot_kernel: Any) -> None:
    bench = Bench(script={}, sequences=1)
    bench.is_gated = True
    order: list[str] = []

    async def job(os: OS, name: str) -> None:
        await os.generate(name, max_tokens=20)
        order.append(name)

    async def scenario() -> None:
        async with boot_kernel(models=bench.models, policy="priority") as kernel:
            slow = await kernel.os.spawn(job, "background", nice=10)
            await bench.step(3)
            fast = await kernel.os.spawn(job, "urgent", nice=-10)
            await asyncio.sleep(0)
            bench.free()
            await kernel.os.results([slow, fast])
            assert order == ["urgent", "background"]

    asyncio.run(scenario())


def test_stop_and_continue_in_mid_generation_change_no_text(boot_kernel: Any) -> None:
    bench = Bench()
    bench.is_gated = True

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            pid = await kernel.os.spawn(write)
            await bench.step(10)
            await kernel.os.signal(pid, "STOP")
            bench.free()
            engine = await kernel.devices.engine(None)
            await engine.on_device(lambda driver: None)
            steps = len(bench.batches)
            # Others run on while the process is stopped.
            await kernel.os.generate("something else", max_tokens=5)
            stopped = kernel.table.get(pid)
            assert stopped.shown_state == "stopped"
            assert not stopped.is_over
            assert all(size == 1 for size in bench.batches[steps:])
            await kernel.os.signal(pid, "CONT")
            assert await kernel.os.result(pid) == STORY

    asyncio.run(scenario())


def test_a_kill_in_mid_generation_frees_its_kv(boot_kernel: Any) -> None:
    bench = Bench()
    bench.is_gated = True

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            pid = await kernel.os.spawn(write)
            await bench.step(5)
            process = kernel.table.get(pid)
            assert process.state == "waiting_device"
            assert process.account.kv_bytes > 0
            await kernel.os.signal(pid, "KILL")
            bench.free()
            await quiet(kernel)
            info = kernel.devices.infos()[0]
            assert (info.kv_tokens_used, info.cached_sequences) == (0, 0)
            assert process.account.kv_bytes == 0
            assert process.account.held["tokens_out"] == process.account.tokens_out <= 7

    asyncio.run(scenario())


def test_term_ends_a_generation_and_lets_the_program_clean_up(boot_kernel: Any) -> None:
    bench = Bench()
    bench.is_gated = True

    async def careful(os: OS) -> None:
        try:
            await os.generate("story", max_tokens=500)
        finally:
            await os.send(1, "cleaned up")

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            pid = await kernel.os.spawn(careful)
            await bench.step(3)
            await kernel.os.signal(pid, "TERM")
            bench.free()
            assert (await kernel.os.receive()).body == "cleaned up"
            assert (await kernel.os.wait(pid)).signal == "TERM"

    asyncio.run(scenario())


def test_a_failing_step_fails_the_calls_that_it_hit_and_no_other(boot_kernel: Any) -> None:
    bench = Bench()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            await kernel.os.generate("story", max_tokens=1)
            bench.opened[0].fail_next_step(DeviceError("a passing fault"))
            with pytest.raises(SyscallError, match="a passing fault") as failure:
                await kernel.os.generate("story", max_tokens=500)
            assert failure.value.code == "device"
            assert isinstance(failure.value.__cause__, DeviceError)
            assert (await kernel.os.generate("story", max_tokens=500)).text == STORY
            assert len(bench.opened) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "fault", [DeviceError("out of memory", is_fatal=True), RuntimeError("a driver's bug")]
)
def test_a_device_that_loses_its_state_is_reopened(boot_kernel: Any, fault: Exception) -> None:
    bench = Bench()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            await kernel.os.generate("story", max_tokens=1)
            bench.opened[0].fail_next_step(fault)
            with pytest.raises(SyscallError, match=str(fault)):
                await kernel.os.generate("story", max_tokens=500)
            assert (await kernel.os.generate("story", max_tokens=500)).text == STORY
            assert len(bench.opened) == 2

    asyncio.run(scenario())


def test_a_device_that_cannot_be_opened_says_why_and_is_tried_again(boot_kernel: Any) -> None:
    bench = Bench()

    def refuse() -> None:
        raise DeviceError("the model file is cut short")

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            bench.on_open = refuse
            with pytest.raises(SyscallError, match="cut short"):
                await kernel.os.generate("story")
            info = kernel.devices.infos()[0]
            assert (info.state, info.reason) == ("down", "the model file is cut short")
            bench.on_open = lambda: None
            assert (await kernel.os.generate("story", max_tokens=500)).text == STORY

    asyncio.run(scenario())


def test_a_device_that_cannot_be_reopened_is_down_until_it_can(boot_kernel: Any) -> None:
    bench = Bench()

    def refuse() -> None:
        raise DeviceError("no memory left")

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            await kernel.os.generate("story", max_tokens=1)
            bench.opened[0].fail_next_step(DeviceError("state lost", is_fatal=True))
            bench.on_open = refuse
            with pytest.raises(SyscallError, match="state lost"):
                await kernel.os.generate("story", max_tokens=500)
            with pytest.raises(SyscallError, match="no memory left"):
                await kernel.os.generate("story", max_tokens=500)
            bench.on_open = lambda: None
            assert (await kernel.os.generate("story", max_tokens=500)).text == STORY
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("engine-scripted") == 1

    asyncio.run(scenario())


def test_quotas_of_tokens_are_charged_exactly(boot_kernel: Any) -> None:
    bench = Bench()

    async def spender(os: OS) -> list[Any]:
        first = await os.generate("story", max_tokens=30)
        second = await os.generate("story", max_tokens=30)
        try:
            await os.generate("story", max_tokens=30)
        except SyscallError as problem:
            return [first.finish, second.finish, len(second.text), problem.fields["quota"]]
        return []

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            pid = await kernel.os.spawn(spender, quota=Quota(tokens_out=40))
            assert await kernel.os.result(pid) == ["length", "quota", 10, "tokens_out"]
            pid = await kernel.os.spawn(write, quota=Quota(kv_bytes=10))
            error = (await kernel.os.wait(pid)).error
            assert error.fields["quota"] == "kv_bytes"
            pid = await kernel.os.spawn(write, quota=Quota(tokens_in=3))
            assert (await kernel.os.wait(pid)).error.fields["quota"] == "tokens_in"

    asyncio.run(scenario())


def test_a_prompt_over_the_window_is_refused_with_both_counts(boot_kernel: Any) -> None:
    bench = Bench(context_tokens=64)

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            with pytest.raises(SyscallError) as refusal:
                await kernel.os.generate("x" * 100)
            assert refusal.value.code == "context_overflow"
            assert refusal.value.fields["limit_tokens"] == 64
            assert refusal.value.fields["prompt_tokens"] > 100
            generated = await kernel.os.generate("y" * 20, max_tokens=500)
            assert generated.finish in ("context_full", "stop")

    asyncio.run(scenario())


def test_an_unknown_model_is_refused_with_the_known_ones(boot_kernel: Any) -> None:
    bench = Bench()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            with pytest.raises(SyscallError, match="known are scripted") as refusal:
                await kernel.os.generate("story", model="gpt-17")
            assert refusal.value.code == "unknown_model"

    asyncio.run(scenario())


def test_a_shared_prefix_is_computed_once(boot_kernel: Any) -> None:
    bench = Bench(script={}, sequences=8)
    rules = system("Rules that every agent reads. " * 20)

    async def agent(os: OS, index: int) -> list[int]:
        generated = await os.generate([rules, user(f"case {index}")], max_tokens=10)
        return [generated.usage.cached_tokens, generated.usage.prompt_tokens]

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            pids = [await kernel.os.spawn(agent, index) for index in range(8)]
            usage = await kernel.os.results(pids)
            assert sorted(cached > 600 for cached, _ in usage) == [False] + [True] * 7
            assert kernel.devices.infos()[0].shared_tokens > 7 * 600

    asyncio.run(scenario())


@pytest.mark.parametrize("abilities", [Abilities(can_trim=False), Abilities(can_fork=False)])
def test_what_a_running_prompt_cannot_lend_is_not_waited_for(
    boot_kernel: Any, abilities: Abilities
) -> None:
    bench = Bench(script={}, sequences=2, batch_tokens=32, abilities=abilities)
    rules = system("Rules that every agent reads. " * 20)

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            bench.is_gated = True
            asked = [
                asyncio.ensure_future(kernel.os.generate([rules, user(case)], max_tokens=10))
                for case in ("one", "two")
            ]
            info = kernel.devices.infos()[0]
            while info.running + info.waiting < 2:
                await bench.step()
                info = kernel.devices.infos()[0]
            bench.free()
            assert (info.running, info.waiting) == (2, 0)
            texts = [generated.text for generated in await asyncio.gather(*asked)]
            assert texts == [pseudo_text(case)[:10] for case in ("one", "two")]

    asyncio.run(scenario())


def test_contexts_keep_turns_and_forks_go_their_own_way(boot_kernel: Any) -> None:
    bench = Bench(script={"one": "first", "two": "second"})

    async def child(os: OS, contexts: list[int]) -> list[str]:
        await os.generate("two", context=contexts[0])
        info = await os.context_stat(contexts[0])
        return [segment.preview for segment in info.segments]

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            os = kernel.os
            context = await os.context_open([system("be brief")])
            answer = await os.generate("one", context=context)
            assert answer.text == "first"
            seen = await os.result(await os.fork(child, contexts=[context]))
            assert seen == ["be brief", "one", "first", "two", "second"]
            mine = await os.context_stat(context)
            assert [segment.preview for segment in mine.segments] == seen[:3]
            follow_up = await os.generate("two", context=context)
            assert follow_up.usage.cached_tokens > 0
            await os.context_close(context)
            with pytest.raises(SyscallError, match="no context"):
                await os.context_stat(context)

    asyncio.run(scenario())


def test_constraints_hold_whatever_the_model_wants(boot_kernel: Any) -> None:
    bench = Bench()
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    }

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            choice = ChoiceConstraint(choices=("yes", "no"))
            assert (await kernel.os.generate("story", constraint=choice)).text in ("yes", "no")
            constraint = JsonSchemaConstraint(json_schema=schema)
            generated = await kernel.os.generate("story", constraint=constraint, max_tokens=60)
            assert generated.text.startswith('{"answer":')
            broken = JsonSchemaConstraint(json_schema={"type": "no such type"})
            with pytest.raises(SyscallError, match="constraint"):
                await kernel.os.generate("story", constraint=broken)

    asyncio.run(scenario())


def test_a_fault_of_one_sequence_spares_the_rest_of_its_batch(boot_kernel: Any) -> None:
    bench = Bench(script={}, sequences=4)
    bench.is_gated = True

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            pids = [await kernel.os.spawn(write, f"part {index}", 20) for index in range(3)]
            while not bench.batches or bench.batches[-1] < 3:
                await bench.step()
            bench.opened[0].fail_next_step(SequenceError("no token is allowed", sequence=1))
            bench.free()
            statuses = [(await kernel.os.wait(pid)).status for pid in pids]
            assert sorted(statuses) == ["error", "ok", "ok"]

    asyncio.run(scenario())


def test_an_adapter_is_attached_once_and_again_after_a_reopen(
    boot_kernel: Any, tmp_path: Path
) -> None:
    bench = Bench()
    version = ModelVersion(name="tuned", kind="adapter", base="scripted", path=str(tmp_path))

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            kernel.registry().add(version)

            async def tuned(os: OS) -> str:
                return (await os.generate("story", adapter="tuned", max_tokens=500)).text

            pids = [await kernel.os.spawn(tuned) for _ in range(3)]
            assert await kernel.os.results(pids) == [f"tuned: {STORY}"] * 3
            bench.opened[0].fail_next_step(DeviceError("state lost", is_fatal=True))
            with pytest.raises(SyscallError, match="state lost"):
                await tuned(kernel.os)
            assert await tuned(kernel.os) == f"tuned: {STORY}"

    asyncio.run(scenario())


def test_a_queued_generation_keeps_its_adapter_over_a_reopen(
    boot_kernel: Any, tmp_path: Path
) -> None:
    bench = Bench(sequences=1)
    bench.is_gated = True
    version = ModelVersion(name="tuned", kind="adapter", base="scripted", path=str(tmp_path))

    async def tuned(os: OS) -> str:
        return (await os.generate("story", adapter="tuned", max_tokens=500)).text

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            kernel.registry().add(version)
            pids = [await kernel.os.spawn(tuned) for _ in range(2)]
            while len(kernel.inference._under_way) < 2:
                await asyncio.to_thread(lambda: None)
            await bench.step(3)
            bench.opened[0].fail_next_step(DeviceError("state lost", is_fatal=True))
            bench.free()
            endings = [await kernel.os.wait(pid) for pid in pids]
            assert {ending.value for ending in endings} == {None, f"tuned: {STORY}"}

    asyncio.run(scenario())


def test_a_bug_on_the_engine_thread_fails_every_call_and_hangs_none(
    boot_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.is_gated = True

    def broken(tokens: Sequence[int]) -> bytes:
        raise LookupError("no such token")

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            reported: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
            pids = [await kernel.os.spawn(write) for _ in range(3)]
            while not bench.batches or bench.batches[-1] < 3:
                await bench.step()
            engine = await kernel.devices.engine(None)
            monkeypatch.setattr(bench.opened[0], "detokenize", broken)
            bench.free()
            endings = [await kernel.os.wait(pid) for pid in pids]
            assert {ending.error.code for ending in endings} == {"device"}
            assert "panicked" in reported[0]["message"]
            with pytest.raises(SyscallError, match="no such token"):
                await engine.on_device(lambda driver: None)
            with pytest.raises(DeviceError, match="closed"):
                bench.opened[0].trim(0, 0)
            assert (await kernel.os.generate("story", max_tokens=500)).text == STORY

    asyncio.run(scenario())


def test_a_device_that_cannot_free_a_sequence_is_reopened(
    boot_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.is_gated = True

    def broken(sequence: int, tokens: int) -> None:
        raise DeviceError("it cannot be dropped")

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            pid = await kernel.os.spawn(write)
            await bench.step(3)
            monkeypatch.setattr(bench.opened[0], "trim", broken)
            await kernel.os.signal(pid, "KILL")
            bench.free()
            assert (await kernel.os.generate("story", max_tokens=500)).text == STORY
            assert len(bench.opened) == 2
            assert kernel.init.account.held["kv_bytes"] == 0

    asyncio.run(scenario())


def test_who_calls_while_a_device_reopens_waits_and_those_queued_live_on(boot_kernel: Any) -> None:
    bench = Bench(sequences=1)
    bench.is_gated = True
    reopening, go_on = threading.Event(), threading.Event()

    def slowly() -> None:
        reopening.set()
        go_on.wait()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            hit = await kernel.os.spawn(write)
            await bench.step(3)
            queued = await kernel.os.spawn(write)
            await asyncio.sleep(0)
            bench.on_open = slowly
            bench.opened[0].fail_next_step(DeviceError("state lost", is_fatal=True))
            bench.free()
            await asyncio.to_thread(reopening.wait)
            late = await kernel.os.spawn(write)
            await asyncio.sleep(0)
            go_on.set()
            assert (await kernel.os.wait(hit)).error.code == "device"
            assert await kernel.os.results([queued, late]) == [STORY, STORY]
            assert len(bench.opened) == 2

    asyncio.run(scenario())


def test_a_device_outlives_who_had_it_opened(boot_kernel: Any) -> None:
    bench = Bench()
    opening, go_on = threading.Event(), threading.Event()

    def slowly() -> None:
        opening.set()
        go_on.wait()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            bench.on_open = slowly
            opener = await kernel.os.spawn(write)
            await asyncio.to_thread(opening.wait)
            await kernel.os.signal(opener, "KILL")
            other = await kernel.os.spawn(write)
            await asyncio.sleep(0)
            go_on.set()
            assert await kernel.os.result(other) == STORY
            assert len(bench.opened) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("options", [{"stop": [""]}, {"max_tokens": 9_999}])
def test_a_call_that_is_refused_costs_nothing(boot_kernel: Any, options: Any) -> None:
    bench = Bench()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models, max_queued=0) as kernel:
            with pytest.raises(SyscallError):
                await kernel.os.generate("story", **options)
            await asyncio.sleep(0)
            account = kernel.init.account
            assert set(account.held.values()) <= {0}
            assert (account.tokens_in, account.kv_bytes) == (0, 0)

    asyncio.run(scenario())


def test_a_prompt_without_any_token_is_refused(
    boot_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            await kernel.os.generate("story", max_tokens=1)
            monkeypatch.setattr(bench.opened[0], "tokenize", lambda text, **options: [])
            with pytest.raises(SyscallError) as refusal:
                await kernel.os.call(Generate(prompt="\u200b"))
            assert (refusal.value.code, refusal.value.fields["field"]) == ("invalid", "prompt")
            assert (await kernel.os.generate("story", max_tokens=500)).text == STORY
            assert len(bench.opened) == 1

    asyncio.run(scenario())


def test_a_conversation_that_the_template_refuses_is_the_callers_error(
    boot_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()

    def refuse(*messages: Any, **options: Any) -> list[int]:
        raise RequestError("roles must alternate", field="messages")

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            await kernel.os.generate("story", max_tokens=1)
            monkeypatch.setattr(bench.opened[0], "render", refuse)
            for call in (kernel.os.generate("story"), kernel.os.context_open([user("story")])):
                with pytest.raises(SyscallError, match="roles must alternate") as refusal:
                    await call
                assert (refusal.value.code, refusal.value.fields["field"]) == (
                    "invalid",
                    "messages",
                )

    asyncio.run(scenario())


def test_a_turn_that_got_no_answer_is_taken_back(boot_kernel: Any) -> None:
    bench = Bench(script={"one": "first"})

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            os = kernel.os
            context = await os.context_open([system("be brief")])
            await os.generate("one", context=context)
            bench.opened[0].fail_next_step(DeviceError("a passing fault"))
            with pytest.raises(SyscallError, match="a passing fault"):
                await os.generate("two", context=context)
            stream = os.stream("three", context=context)
            await anext(stream)
            await stream.aclose()
            seen = [one.preview for one in (await os.context_stat(context)).segments]
            assert seen == ["be brief", "one", "first"]
            pieces = [piece async for piece in os.stream("one", context=context)]
            assert isinstance(pieces[-1], Generated)
            assert len((await os.context_stat(context)).segments) == 5

    asyncio.run(scenario())


def test_a_generation_that_nothing_would_ever_serve_is_told_so(
    boot_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            await kernel.os.generate("story", max_tokens=1)
            monkeypatch.setattr(Stepper, "_give_sequence", lambda *_: False)
            with pytest.raises(SyscallError, match="generations wait that nothing serves"):
                await kernel.os.generate("story", max_tokens=500)
            monkeypatch.undo()
            assert (await kernel.os.generate("story", max_tokens=500)).text == STORY

    asyncio.run(scenario())


def test_a_slow_reader_of_a_stream_never_slows_the_batch(boot_kernel: Any) -> None:
    bench = Bench(sequences=2)
    bench.is_gated = True

    async def scenario() -> None:
        async with boot_kernel(models=bench.models) as kernel:
            other = await kernel.os.spawn(write, "other")
            while kernel.table.get(other).state != "waiting_device":
                await asyncio.to_thread(lambda: None)
            stream = kernel.os.stream("story", max_tokens=500)
            reading = asyncio.ensure_future(anext(stream))
            while not reading.done():
                await bench.step()
            # From here on nobody reads the stream, and both go on to their ends.
            bench.free()
            assert await kernel.os.result(other) == pseudo_text("other")
            await quiet(kernel)
            assert bench.batches.count(2) > 1  # they shared the batch
            steps = len(bench.batches)
            pieces = [reading.result(), *[piece async for piece in stream]]
            texts = [piece.text for piece in pieces if isinstance(piece, Delta)]
            assert "".join(texts) == STORY
            assert isinstance(pieces[-1], Generated)
            assert len(bench.batches) == steps  # all of it was there before it was read

    asyncio.run(scenario())


def test_a_generation_that_nobody_waits_for_any_more_is_dropped(boot_kernel: Any) -> None:
    bench, clock = Bench(sequences=1), VirtualClock()
    bench.is_gated = True

    async def hurry(os: OS, prompt: str, deadline_s: float) -> str:
        return (await os.generate(prompt, max_tokens=500, deadline_s=deadline_s)).text

    async def scenario() -> None:
        async with boot_kernel(models=bench.models, clock=clock) as kernel:
            running = await kernel.os.spawn(hurry, "story", 5.0)
            waiting = await kernel.os.spawn(hurry, "other", 9.0)
            while any(
                kernel.table.get(pid).state != "waiting_device" for pid in (running, waiting)
            ):
                await asyncio.to_thread(lambda: None)
            await bench.step(3)
            clock.advance(6.0)
            await bench.step(2)
            with pytest.raises(SyscallError, match="deadline") as dropped:
                await kernel.os.result(running)
            assert (dropped.value.code, dropped.value.is_retryable) == ("timeout", True)
            clock.advance(6.0)
            bench.free()
            with pytest.raises(SyscallError, match="deadline"):
                await kernel.os.result(waiting)
            await quiet(kernel)
            assert kernel.devices.infos()[0].kv_tokens_used == 0
            assert kernel.init.account.kv_bytes == 0

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_says_when_to_come_back(boot_kernel: Any) -> None:
    bench = Bench(sequences=1)
    bench.is_gated = True

    async def scenario() -> None:
        async with boot_kernel(models=bench.models, max_queued=2) as kernel:
            await kernel.devices.engine(None)  # open: from here on calls are queued in order
            first = [await kernel.os.spawn(write, text, 9) for text in ("a", "b")]
            while any(kernel.table.get(pid).state != "waiting_device" for pid in first):
                await asyncio.to_thread(lambda: None)
            with pytest.raises(SyscallError) as refused:
                await kernel.os.generate("c")
            assert (refused.value.code, refused.value.is_retryable) == ("busy", True)
            assert refused.value.fields["retry_after_s"] > 0
            bench.free()
            await kernel.os.results(first)

    asyncio.run(scenario())
