"""What people ask of today's engines and do not get, a test each; the thread is named beside it.

All on the scripted device, where what is computed and what is held can be counted exactly; the same
rules on the real model are in the tests of the parts.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from llmos.agents.handle import OS
from llmos.drivers.contract import DeviceError, Feed, ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import KVSettings, ModelSetting, Settings
from llmos.server import Server, create_app
from llmos.syscalls.content import Message, assistant, user

ANSWER = 'A plain "answer" of some length.'


class Device:
    """A scripted device. `steps` says what was fed; while `is_gated`, a step needs leave."""

    def __init__(self, **sizes: Any) -> None:
        self.steps: list[list[Feed]] = []
        self.is_gated = False
        self.is_stepping = threading.Event()
        self._leave = threading.Semaphore(0)
        spec = ModelSpec("model", Path("scripted"), **{"sequences": 16, **sizes})
        self._open = lambda: Scripted(spec, script=self._script, on_step=self._on_step)

    def settings(self, home: Path, **settings: Any) -> Settings:
        def opened() -> Scripted:
            self.driver = self._open()
            return self.driver

        model = ModelSetting("model", "scripted", "scripted", opened)
        return Settings(home=home, models={"model": model}, default_model="model", **settings)

    def allow(self, steps: int) -> None:
        self._leave.release(steps)

    def free(self) -> None:
        self.is_gated = False
        self._leave.release(100_000)

    async def stepping(self) -> None:
        """Until the device is in a step."""
        self.is_stepping.clear()
        await asyncio.to_thread(self.is_stepping.wait)

    def _script(self, said: str) -> str:
        return "again " * 200 if said.startswith("never stop") else ANSWER

    def _on_step(self, feeds: Sequence[Feed]) -> None:
        self.steps.append(list(feeds))
        self.is_stepping.set()
        if self.is_gated:
            self._leave.acquire()


@asynccontextmanager
async def booted(device: Device, home: Path, **settings: Any) -> AsyncIterator[Kernel]:
    kernel = Kernel(device.settings(home, **settings), bind=OS, programs={})
    try:
        async with asyncio.timeout(60):
            yield kernel
    finally:
        device.free()
        await kernel.stop()


async def job_of(os: OS, text: str, max_tokens: int = 120) -> str:
    return (await os.generate(text, max_tokens=max_tokens)).text


async def asked(kernel: Kernel, pids: list[int]) -> None:
    """Wait until the generations of all these processes are with the device."""
    while any(kernel.table.get(pid).state != "waiting_device" for pid in pids):
        await asyncio.to_thread(lambda: None)


def test_a_better_priority_preempts_and_the_other_goes_on_where_it_was(tmp_path: Path) -> None:
    """Priorities and preemption instead of strict order of arrival: llama.cpp #22916."""
    device, ends = Device(sequences=1), list[str]()

    async def job(os: OS, text: str) -> str:
        made = await os.generate(text, max_tokens=40)
        ends.append(text)
        return made.text

    async def scenario() -> None:
        async with booted(device, tmp_path) as kernel:
            alone = await kernel.os.result(await kernel.os.spawn(job, "never stop: a"))
            device.is_gated = True
            slow = await kernel.os.spawn(job, "never stop: b", nice=10)
            await device.stepping()
            device.allow(5)
            fast = await kernel.os.spawn(job, "never stop: c", nice=-10)
            await asked(kernel, [fast])
            device.free()
            assert await kernel.os.results([slow, fast]) == [alone, alone]

    asyncio.run(scenario())
    assert ends[1:] == ["never stop: c", "never stop: b"]


def test_an_agents_next_step_computes_only_what_is_new(tmp_path: Path) -> None:
    """No prefill of the whole conversation at each step: ollama #17829."""
    device = Device()

    async def agent(os: OS, name: str) -> list[list[int]]:
        messages: list[Message] = [user(f"{name}: {'a long first text ' * 20}")]
        used: list[list[int]] = []
        for step in range(5):
            made = await os.generate(messages, max_tokens=40)
            used.append([made.usage.prompt_tokens, made.usage.cached_tokens])
            messages += [assistant(made.text), user(f"the tool of step {step} said so")]
        return used

    async def scenario() -> list[Any]:
        async with booted(device, tmp_path) as kernel:
            return await kernel.os.results([await kernel.os.spawn(agent, n) for n in "abcdefgh"])

    for used in asyncio.run(scenario()):
        for (before, _), (_, cached) in itertools.pairwise(used):
            # All that was sent before, and the answer to it.
            assert cached >= before + len(ANSWER)


def test_a_clients_next_request_computes_only_what_is_new(tmp_path: Path) -> None:
    """The same over HTTP, where every request is a process of its own."""

    async def scenario() -> list[Any]:
        async with booted(Device(), tmp_path) as kernel:
            served = httpx.ASGITransport(create_app(kernel))
            messages = [{"role": "user", "content": "a long first text " * 20}]
            used: list[Any] = []
            async with httpx.AsyncClient(transport=served, base_url="http://here") as client:
                for _ in range(3):
                    body = {"model": "model", "messages": messages, "max_tokens": 40}
                    answer = (await client.post("/v1/chat/completions", json=body)).json()
                    used.append(answer["usage"])
                    said = answer["choices"][0]["message"]
                    messages += [
                        {"role": "assistant", "content": said["content"]},
                        {"role": "user", "content": "the tool said so"},
                    ]
            return used

    for before, after in itertools.pairwise(asyncio.run(scenario())):
        cached = after["prompt_tokens_details"]["cached_tokens"]
        assert cached >= before["prompt_tokens"] + len(ANSWER)


def test_many_conversations_run_in_one_model_at_once(tmp_path: Path) -> None:
    """Batched conversations over one set of weights: llama-cpp-python #771, #95, #1995."""
    device = Device()

    async def scenario() -> list[Any]:
        async with booted(device, tmp_path) as kernel:
            device.is_gated = True
            pids = [await kernel.os.spawn(job_of, f"never stop: {number}") for number in range(16)]
            await asked(kernel, pids)
            device.free()
            return await kernel.os.results(pids)

    texts = asyncio.run(scenario())
    assert len(texts) == 16
    assert len(set(texts)) == 1
    assert max(len({feed.sequence for feed in feeds}) for feeds in device.steps) == 16
    assert len(device.steps) < 2 * len(texts[0])


def test_a_generation_ends_when_the_reader_of_its_stream_has_gone(tmp_path: Path) -> None:
    """A client that goes away frees its sequence within an iteration: llama.cpp #24496."""
    device = Device()
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": "never stop"}],
        "max_tokens": 500,
        "stream": True,
    }

    async def ended(kernel: Kernel) -> str:
        async for event in kernel.events():
            if event.name == "http.chat" and event.category == "process":
                return event.args["status"]
        raise AssertionError("events do not end")

    async def scenario() -> None:
        async with booted(device, tmp_path) as kernel:
            listening = socket.create_server(("127.0.0.1", 0))
            server = Server(create_app(kernel))
            serving = asyncio.create_task(server.serve([listening]))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"
            ending = asyncio.create_task(ended(kernel))
            device.is_gated = True
            device.allow(8)
            async with httpx.AsyncClient() as client, client.stream("POST", url, json=body) as read:
                async for line in read.aiter_lines():
                    if line.startswith("data:"):
                        break
            assert await ending == "killed"
            begun = len(device.steps)
            device.free()
            await kernel.os.generate("hello", max_tokens=1)
            # One more for the next generation; what was under way is counted above.
            assert len(device.steps) <= begun + 1
            server.should_exit = True
            await serving

    asyncio.run(scenario())


def test_state_survives_the_kernel_and_its_model_being_unloaded(tmp_path: Path) -> None:
    """KV that a restart finds again: llama.cpp #17107."""
    device, kept = Device(), KVSettings(disk_bytes=10**7)
    text = "a long text " * 30

    async def ask() -> tuple[str, list[int]]:
        async with booted(device, tmp_path, kv=kept) as kernel:
            engine: Any = await kernel.devices.engine(None)
            await engine.on_device(lambda driver: None)
            for rows in (1, 512) * 50:  # computing is dear, so that reading from disk pays
                engine._stepper._pace.observe(rows=0, prompt_tokens=rows, seconds=rows * 1.0)
            made = await kernel.os.generate(text, max_tokens=40)
            return made.text, [made.usage.prompt_tokens, made.usage.cached_tokens]

    first, (_, before) = asyncio.run(ask())
    second, (prompt, after) = asyncio.run(ask())
    assert first == second
    assert (before, after) == (0, prompt - 1)


def test_the_memory_that_is_shown_is_the_memory_that_is_held(tmp_path: Path) -> None:
    """Figures that add up, at every moment and after the end of all: ollama #18264."""
    device = Device()

    async def scenario() -> None:
        async with booted(device, tmp_path) as kernel:
            for number in range(3):
                await kernel.os.generate(f"{number} {'text ' * 20}", max_tokens=10)
                info = await kernel.os.stat()
                driver = device.driver
                held = sum(map(driver.length, range(driver.info.sequences)))
                (shown,) = [entry for entry in info.ledger if entry.what == "kv_cache"]
                assert held
                assert shown.bytes == held * driver.info.kv_bytes_per_token
                assert info.devices[0].kv_tokens_used == held

    asyncio.run(scenario())


def test_what_a_program_of_better_priority_left_outlives_what_others_leave(tmp_path: Path) -> None:
    """Priority rules eviction and not only order: vllm #47802."""
    device = Device(sequences=2)

    async def agent(os: OS, name: str) -> int:
        context = await os.context_open(f"{name} {'long ' * 40}")
        await os.generate(context=context, max_tokens=4)
        await os.send(1, None)
        await os.receive(sender=1)
        made = await os.generate("Go on.", context=context, max_tokens=4)
        return made.usage.cached_tokens

    async def scenario() -> list[Any]:
        async with booted(device, tmp_path, kv=KVSettings(host_bytes=0)) as kernel:
            pids: list[int] = []
            for name, nice in (("first", -10), ("second", 10), ("third", 10), ("fourth", 10)):
                pids.append(await kernel.os.spawn(agent, name, nice=nice))
                await kernel.os.receive(sender=pids[-1])
            found: list[Any] = []
            for pid in pids:
                await kernel.os.send(pid, None)
                found.append(await kernel.os.result(pid))
            return found

    first, second, *_ = asyncio.run(scenario())
    assert first > 150
    assert second < 150


def test_a_device_that_fails_answers_every_call_that_it_had(tmp_path: Path) -> None:
    """No caller hangs on a fault below it, as it does in frameworks with a worker thread."""
    device = Device()

    async def scenario() -> list[str]:
        async with booted(device, tmp_path) as kernel:
            await kernel.os.generate("hello", max_tokens=2)
            device.is_gated = True
            pids = [await kernel.os.spawn(job_of, f"talk {number}") for number in range(8)]
            device.driver.fail_next_step(DeviceError("burnt", is_fatal=True))
            device.free()
            return [(await kernel.os.wait(pid)).status for pid in pids]

    assert set(asyncio.run(scenario())) <= {"ok", "error"}
