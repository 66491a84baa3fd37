"""Forced tokens and guesses through the whole kernel: the same output in fewer steps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

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
        self._abilities = abilities

    def setting(self) -> ModelSetting:
        return ModelSetting("scripted", "scripted", "scripted", self._open)

    def _open(self) -> Scripted:
        spec = ModelSpec("scripted", Path("scripted"))
        script = {f"Repeat: {LIST}": LIST, "Call": '{"tool_name":"search","is_urgent":true}'}
        return Scripted(spec, script=script, on_step=self._see, abilities=self._abilities)

    def _see(self, feeds: Sequence[Feed]) -> None:
        self.feeds += feeds


def generate(boot_kernel: Any, device: Device, limits: Limits, *calls: Generate) -> list[Generated]:
    async def run() -> list[Generated]:
        models = {"scripted": device.setting()}
        async with boot_kernel(models=models, limits=limits, clock=Frozen()) as kernel:
            return list(await asyncio.gather(*map(kernel.os.call, calls)))

    return asyncio.run(run())


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
