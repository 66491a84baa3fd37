"""Forced tokens and guesses through the whole kernel: the same output in fewer steps."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import Abilities, Feed, ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.kernel.clock import RealClock
from llmos.kernel.planner import Limits
from llmos.kernel.settings import ModelSetting
from llmos.syscalls.calls import Generate
from llmos.syscalls.content import user
from llmos.syscalls.options import ChoiceConstraint, JsonSchemaConstraint, Sampling
from llmos.syscalls.results import Generated

LIST = "Amelia Brooks, Tomas Lindqvist, Priya Raman, Kwame Mensah, Yuki Tanaka"
SCHEMA = {
    "type": "object",
    "properties": {"tool_name": {"const": "search"}, "is_urgent": {"type": "boolean"}},
    "required": ["tool_name", "is_urgent"],
    "additionalProperties": False,
}


class Frozen(RealClock):
    """A clock that stands still, so that every guess seems to cost nothing."""

    def now(self) -> float:
        return 0.0


class Device:
    """A scripted device whose feeds a test can look at."""

    def __init__(self, abilities: Abilities | None = None) -> None:
        self.feeds: list[Feed] = []
        self.batches: list[Sequence[Feed]] = []
        self.gate = threading.Event()  # closed, it holds the next step
        self.gate.set()
        self._abilities = abilities

    def setting(self) -> ModelSetting:
        return ModelSetting("scripted", "scripted", "scripted", self._open)

    def _open(self) -> Scripted:
        spec = ModelSpec("scripted", Path("scripted"))
        script = {f"Repeat: {LIST}": LIST, "Call": '{"tool_name":"search","is_urgent":true}'}
        return Scripted(spec, script=script, on_step=self._see, abilities=self._abilities)

    def _see(self, feeds: Sequence[Feed]) -> None:
        self.gate.wait()
        self.feeds += feeds
        self.batches.append(list(feeds))


def generate(boot_kernel: Any, device: Device, limits: Limits, *calls: Generate) -> list[Generated]:
    async def run() -> list[Generated]:
        models = {"scripted": device.setting()}
        async with boot_kernel(models=models, limits=limits, clock=Frozen()) as kernel:
            return list(await asyncio.gather(*map(kernel.os.call, calls)))

    return asyncio.run(run())


def copy_at_once(boot_kernel: Any, device: Device, *, nices: Sequence[int]) -> None:
    """Copy the list in several processes that share steps from the second one on."""

    async def copy(os: OS) -> str:
        return (await os.call(CALLS[0])).text

    async def run() -> None:
        device.gate.clear()
        async with boot_kernel(models={"scripted": device.setting()}, clock=Frozen()) as kernel:
            pids = [await kernel.os.spawn(copy, nice=nice) for nice in nices]
            while any(kernel.table.get(pid).state != "waiting_device" for pid in pids):
                await asyncio.to_thread(lambda: None)
            device.gate.set()
            assert await kernel.os.results(pids) == [LIST] * len(pids)

    asyncio.run(run())


def asking(text: str, **options: Any) -> Generate:
    return Generate(messages=[user(text)], **{"max_tokens": 200, **options})


SAMPLED = Sampling(temperature=6.0, seed=3)
CALLS = (asking(f"Repeat: {LIST}"), asking(f"Repeat: {LIST}", sampling=SAMPLED), asking("Else"))


def test_guesses_do_not_change_what_is_generated(boot_kernel: Any) -> None:
    plain, guessing = Device(), Device()
    expected = generate(boot_kernel, plain, Limits(is_speculative=False), *CALLS)
    found = generate(boot_kernel, guessing, Limits(), *CALLS)
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.usage.completion_tokens for one in found] == [
        one.usage.completion_tokens for one in expected
    ]
    assert not any(feed.draft for feed in plain.feeds)
    assert any(feed.draft for feed in guessing.feeds)
    assert len(guessing.feeds) < 0.9 * len(plain.feeds)


def test_a_device_that_cannot_verify_is_given_no_guesses(boot_kernel: Any) -> None:
    device = Device(Abilities(can_verify=False))
    (found,) = generate(boot_kernel, device, Limits(), CALLS[0])
    assert found.text == LIST
    assert not any(feed.draft for feed in device.feeds)


def test_drafts_of_several_sequences_have_lengths_in_common(boot_kernel: Any) -> None:
    alone, together = Device(), Device()
    generate(boot_kernel, alone, Limits(), CALLS[0])
    copy_at_once(boot_kernel, together, nices=(0, 0, 0))
    decoding = [
        batch
        for batch in together.batches
        if len(batch) > 1 and all(len(feed.tokens) == 1 for feed in batch)
    ]
    lengths = {len(feed.draft) for batch in decoding for feed in batch}
    assert any(lengths)
    assert lengths <= {15, 7, 3, 0}
    # Alone there is no other length to agree with.
    assert {len(feed.draft) for feed in alone.feeds} - {15, 7, 3, 0}


def test_no_step_beside_an_urgent_process_carries_guesses(boot_kernel: Any) -> None:
    device = Device()
    copy_at_once(boot_kernel, device, nices=(0, -5))
    beside = [batch for batch in device.batches if len(batch) > 1]
    assert beside
    assert not any(feed.draft for batch in beside for feed in batch)


@pytest.mark.parametrize("most", [1, 5, 20])
def test_guesses_keep_to_the_tokens_that_were_asked_for(boot_kernel: Any, most: int) -> None:
    (found,) = generate(boot_kernel, Device(), Limits(), asking(f"Repeat: {LIST}", max_tokens=most))
    assert found.text == LIST[:most]
    assert found.finish == "length"


def test_a_stop_text_within_guesses_ends_where_it_would_have(boot_kernel: Any) -> None:
    (found,) = generate(
        boot_kernel, Device(), Limits(), asking(f"Repeat: {LIST}", stop=(", Priya",))
    )
    assert (found.text, found.finish) == ("Amelia Brooks, Tomas Lindqvist", "stop")


@pytest.mark.parametrize("is_speculative", [False, True])
def test_a_schema_takes_few_steps(boot_kernel: Any, is_speculative: bool) -> None:
    device = Device()
    call = asking("Call", constraint=JsonSchemaConstraint(json_schema=SCHEMA))
    (found,) = generate(boot_kernel, device, Limits(is_speculative=is_speculative), call)
    assert json.loads(found.text) == {"tool_name": "search", "is_urgent": True}
    assert found.finish == "stop"
    # One byte is a token here: the opening up to the one choice, and the choice with what follows.
    assert found.usage.completion_tokens == len(found.text)
    assert len(device.feeds) == 2


def test_a_choice_is_made_in_one_step(boot_kernel: Any) -> None:
    device = Device()
    choice = ChoiceConstraint(choices=("yes, certainly", "no, never"))
    (found,) = generate(boot_kernel, device, Limits(), asking("Else", constraint=choice))
    assert found.text in choice.choices
    assert found.finish == "stop"
    assert len(device.feeds) == 1


def test_forced_tokens_end_at_the_limit(boot_kernel: Any) -> None:
    call = asking("Call", constraint=JsonSchemaConstraint(json_schema=SCHEMA), max_tokens=7)
    (found,) = generate(boot_kernel, Device(), Limits(), call)
    assert (found.text, found.finish) == ('{"tool_', "length")
    assert found.usage.completion_tokens == 7
