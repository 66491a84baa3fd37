"""The whole system on the real model: one kernel, both drivers, many agents."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import llmos
from llmos.agents.handle import OS
from llmos.kernel.kernel import Kernel
from llmos.syscalls.calls import Example
from llmos.syscalls.content import Message, assistant, system, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import Sampling
from llmos.syscalls.results import KernelInfo

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("smollm2_path", "minilm_path")]

SMALL = {"driver": "llama_cpp", "source": "smollm2", "context_tokens": 1024, "sequences": 8}
TORCH = {"driver": "torch", "source": "smollm2", "context_tokens": 1024, "sequences": 8}
BRIEF = system("You are a helpful assistant. Answer in one short sentence.")


@asynccontextmanager
async def booted(home: Path, **models: dict[str, Any]) -> AsyncIterator[Kernel]:
    chosen = models or {"smollm2": SMALL}
    async with llmos.boot(home=home, models=chosen, default_model=next(iter(chosen))) as kernel:
        yield kernel


def run(home: Path, scenario: Callable[[Kernel], Awaitable[None]], **models: Any) -> None:
    async def main() -> None:
        async with booted(home, **models) as kernel:
            await scenario(kernel)

    asyncio.run(main())


async def freed(kernel: Kernel) -> Any:
    """The first device, once no generation is on it."""
    engine = await kernel.devices.engine(None)
    while True:
        await engine.on_device(lambda driver: None)
        info = engine.info()
        if info.running == info.waiting == 0:
            await engine.on_device(lambda driver: None)
            return info


async def started(kernel: Kernel, pid: int) -> None:
    """Wait until the process's generation takes part in steps."""
    async for event in kernel.events():
        if event.name == "step" and kernel.table.get(pid).state == "waiting_device":
            return


async def tell(os: OS, prompt: str, max_tokens: int = 200) -> str:
    generated = await os.generate([BRIEF, user(prompt)], max_tokens=max_tokens)
    return generated.text


@pytest.mark.parametrize("model", [SMALL, TORCH], ids=["llama_cpp", "torch"])
def test_a_chat_keeps_its_turns_and_reuses_what_was_computed(tmp_path: Path, model: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        os: OS = kernel.os
        context = await os.context_open([BRIEF])
        first = await os.generate(
            "Tim has a red ball. What colour is it?", context=context, max_tokens=30
        )
        assert "red" in first.text.lower()
        second = await os.generate("Whose ball is it?", context=context, max_tokens=30)
        assert "tim" in second.text.lower()
        assert second.usage.cached_tokens > 30
        assert len((await os.context_stat(context)).segments) == 5

    run(tmp_path, scenario, chat=model)


def test_fifty_agents_at_once_are_all_answered(tmp_path: Path) -> None:
    async def scenario(kernel: Kernel) -> None:
        os: OS = kernel.os
        await os.generate([BRIEF, user("Hello.")], max_tokens=1)
        pids = [await os.spawn(tell, f"Tell me about the number {n}.", 8) for n in range(50)]
        assert len(await os.ps()) == 51
        texts = await os.results(pids)
        assert all(texts)
        assert len(set(texts)) > 25
        info = await freed(kernel)
        assert info.shared_tokens > 50 * 15  # the system message
        assert (
            kernel.init.account.held["tokens_out"]
            == sum(spent.tokens_out for spent in kernel.stat().programs.values()) + 1
        )

    run(tmp_path, scenario)


def test_a_kill_in_mid_generation_returns_all_kv(tmp_path: Path) -> None:
    async def scenario(kernel: Kernel) -> None:
        os: OS = kernel.os
        await os.generate("Hi", max_tokens=1)
        before = await freed(kernel)
        pid = await os.spawn(tell, "Tell a very long story about the sea.", 900)
        await started(kernel, pid)
        process = kernel.table.get(pid)
        assert process.account.kv_bytes > 0
        await os.signal(pid, "KILL")
        after = await freed(kernel)
        assert after.kv_tokens_used <= before.kv_tokens_used
        assert process.account.kv_bytes == 0
        assert kernel.init.account.held["kv_bytes"] == 0

    run(tmp_path, scenario)


@pytest.mark.parametrize("model", [SMALL, TORCH], ids=["llama_cpp", "torch"])
def test_stop_and_continue_give_the_same_text(tmp_path: Path, model: Any) -> None:
    async def scenario(kernel: Kernel) -> None:
        os: OS = kernel.os
        undisturbed = await os.result(await os.spawn(tell, "Why is the sky blue?", 40))
        pid = await os.spawn(tell, "Why is the sky blue?", 40)
        await started(kernel, pid)
        await os.signal(pid, "STOP")
        engine = await kernel.devices.engine(None)
        await engine.on_device(lambda driver: None)
        steps = engine.info().steps
        await engine.on_device(lambda driver: None)
        assert engine.info().steps == steps
        await os.signal(pid, "CONT")
        assert await os.result(pid) == undisturbed

    run(tmp_path, scenario, chat=model)


@pytest.mark.parametrize("model", [SMALL, TORCH], ids=["llama_cpp", "torch"])
def test_a_seed_gives_the_same_tokens_again(tmp_path: Path, model: Any) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=11)

    async def scenario(kernel: Kernel) -> None:
        texts = [
            (await kernel.os.generate("Invent a name.", sampling=sampling, max_tokens=12)).token_ids
            for _ in range(2)
        ]
        # The second run takes its prompt from the cache; the first computed it in one piece.
        assert texts[0] == texts[1]
        other = Sampling(temperature=0.9, top_p=0.95, seed=12)
        third = await kernel.os.generate("Invent a name.", sampling=other, max_tokens=12)
        assert third.token_ids != texts[0]

    run(tmp_path, scenario, chat=model)


def test_a_model_file_that_is_cut_short_is_a_clear_error(
    tmp_path: Path, smollm2_path: Path
) -> None:
    short = tmp_path / "short.gguf"
    with smollm2_path.open("rb") as whole, short.open("wb") as part:
        part.write(whole.read(20_000_000))
    cut = {**SMALL, "source": f"file:{short}"}

    async def scenario(kernel: Kernel) -> None:
        for _ in range(2):
            with pytest.raises(SyscallError, match="short") as failure:
                await kernel.os.generate("Hi", model="cut")
            assert failure.value.code == "device"
        assert (await kernel.os.generate("Hi", max_tokens=2)).text

    run(tmp_path / "home", scenario, good=SMALL, cut=cut)


LEDGER_PROGRAM = """
import asyncio, sys
import llmos

async def main():
    small = {
        "driver": "llama_cpp", "source": "smollm2", "weights": "shipped",
        "context_tokens": 1024, "sequences": 8,
    }
    async with llmos.boot(home=sys.argv[1], models={"smollm2": small}) as kernel:
        for number in range(3):
            await kernel.os.generate(f"Describe the number {number}.", max_tokens=4)
        await kernel.os.remember(["The ledger names every large allocation."])
        print((await kernel.os.stat()).model_dump_json())

asyncio.run(main())
"""


def test_the_ledger_accounts_for_the_process_s_memory(tmp_path: Path) -> None:
    # A process of its own: one that had models before holds what they left.
    command = [sys.executable, "-c", LEDGER_PROGRAM, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    info = KernelInfo.model_validate_json(printed.stdout.splitlines()[-1])
    owners = {(entry.owner, entry.what) for entry in info.ledger}
    assert {("smollm2", "weights"), ("smollm2", "kv_cache"), ("minilm", "weights")} <= owners
    assert {("python", "libraries"), ("python", "modules of torch")} <= owners
    named = sum(entry.bytes for entry in info.ledger)
    # What is not named: allocators' slack, and modules that were imported one by one.
    assert 0.85 < named / info.resident_bytes < 1.15, info.ledger


def test_an_adapter_is_trained_and_served_beside_its_base(tmp_path: Path) -> None:
    rows = [
        json.loads(line)
        for line in (Path(__file__).parent / "data/banking77_small.jsonl").read_text().splitlines()
    ]
    examples = [
        Example(messages=tuple(Message.model_validate(_message(one)) for one in row["messages"]))
        for row in rows[:160]
    ]

    async def scenario(kernel: Kernel) -> None:
        os: OS = kernel.os
        job = await os.finetune(
            examples, "banking", base="chat", max_steps=16, batch_size=4, learning_rate=1e-3
        )
        while_training = await os.generate([BRIEF, user("Say hello.")], max_tokens=8)
        assert while_training.text
        trained = await os.result(job)
        assert trained["eval_loss_after"] < 0.7 * trained["eval_loss_before"]
        assert len(trained["losses"]) >= 1
        names = [version.name for version in await os.model_list()]
        assert names == ["chat", "gguf", "minilm", "banking"]

        question = examples[0].messages[:-1]
        wanted = examples[0].messages[-1].text
        base, tuned = await asyncio.gather(
            os.generate(question, model="chat", max_tokens=12),
            os.generate(question, model="chat", adapter="banking", max_tokens=12),
        )
        assert (base.adapter, tuned.adapter) == (None, "banking")
        assert tuned.text != base.text
        assert wanted.split()[0].lower() in tuned.text.lower()

        await os.model_promote("banking")
        promoted = await os.generate(question, model="chat", max_tokens=12)
        assert (promoted.adapter, promoted.text) == ("banking", tuned.text)
        # The same adapter serves on the other device, converted.
        other = await os.generate(question, model="gguf", adapter="banking", max_tokens=12)
        assert other.adapter == "banking"
        await os.model_rollback()
        again = await os.generate(question, model="chat", max_tokens=12)
        assert (again.adapter, again.text) == (None, base.text)

    run(tmp_path, scenario, chat=TORCH, gguf=SMALL)


def _message(turn: dict[str, str]) -> Message:
    make = {"system": system, "user": user, "assistant": assistant}[turn["role"]]
    return make(turn["content"])


def test_agents_faults_are_their_own_and_the_model_goes_on(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"The ball is red.\xff\xfe")

    async def hang() -> None:
        """Never come back."""
        await asyncio.Event().wait()

    async def raising(os: OS) -> None:
        await os.generate("Hi", max_tokens=1)
        raise ValueError("the agent's own fault")

    async def hanging(os: OS) -> None:
        await os.tool_call("hang", timeout_s=0.05)

    async def unknown(os: OS) -> None:
        await os.generate("Hi", model="no-such-model")

    async def flooding(os: OS) -> None:
        for number in range(1000):
            await os.send(os.pid, number, on_full="refuse")

    async def reading(os: OS) -> str:
        text = await os.read_text(str(bad))
        return (await os.generate(f"{text} What colour is it?", max_tokens=20)).text

    async def scenario(kernel: Kernel) -> None:
        os: OS = kernel.os
        kernel.tools.add(llmos.tool(hang))
        spent = await os.spawn(tell, "Tell a long story.", 50, quota=llmos.Quota(tokens_in=3))
        pids = [await os.spawn(one) for one in (raising, hanging, unknown, flooding)]
        ended = [await os.wait(pid) for pid in (spent, *pids)]
        codes = [one.error.code if one.error else one.status for one in ended]
        assert codes == ["quota_exceeded", "failed", "timeout", "unknown_model", "mailbox_full"]
        assert await os.result(await os.spawn(reading))
        assert len(await os.ps()) == 1

    run(tmp_path, scenario)


def test_memory_survives_a_reboot(tmp_path: Path) -> None:
    async def first(kernel: Kernel) -> None:
        await kernel.os.remember(["The spare key is under the blue pot."], namespace="house")

    async def second(kernel: Kernel) -> None:
        hits = await kernel.os.retrieve("Where is the key?", namespaces=["house"])
        assert "blue pot" in hits[0].text
        shutil.rmtree(tmp_path / "homes", ignore_errors=True)

    run(tmp_path, first)
    run(tmp_path, second)
