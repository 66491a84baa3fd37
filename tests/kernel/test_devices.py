"""Several devices: who serves a call, and who takes over when a device fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import DeviceError, Feed, ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import ModelSetting
from llmos.syscalls.content import user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Delta, ModelVersion
from llmos.syscalls.rights import Capabilities

BootKernel = Callable[..., AbstractAsyncContextManager[Kernel]]
Body = Callable[[Kernel], Coroutine[Any, Any, None]]


class Site:
    """A scripted device that a test can break, and hold up."""

    def __init__(self, name: str, base: str, answer: str) -> None:
        self.name = name
        self.opened = 0
        self.open_error: Exception | None = None
        self.step_errors: list[Exception] = []
        self.fail_after_steps = 0
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0
        self._base = base
        self._answer = answer

    def setting(self) -> ModelSetting:
        return ModelSetting(
            name=self.name, base=self._base, driver="scripted", open=self._open, processor=self.name
        )

    def _open(self) -> Scripted:
        self.opened += 1
        if self.open_error is not None:
            raise self.open_error
        spec = ModelSpec(self.name, Path("scripted"), context_tokens=512, sequences=4)
        return Scripted(spec, script=lambda text: self._answer, on_step=self._on_step)

    def _on_step(self, feeds: Sequence[Feed]) -> None:
        self.gate.wait()
        self.steps += 1
        if self.steps > self.fail_after_steps and self.step_errors:
            raise self.step_errors.pop(0)


def fatal() -> DeviceError:
    return DeviceError("burnt", is_fatal=True)


def run(
    boot_kernel: BootKernel,
    sites: Sequence[Site],
    body: Body,
    *,
    classes: dict[str, tuple[str, ...]] | None = None,
) -> None:
    async def scenario() -> None:
        models = {site.name: site.setting() for site in sites}
        async with boot_kernel(models=models, classes=classes or {}) as kernel:
            try:
                await body(kernel)
            finally:
                for site in sites:
                    site.gate.set()

    asyncio.run(scenario())


def twins() -> tuple[Site, Site]:
    """Two devices with the same weights."""
    return Site("one", "weights", "from one"), Site("two", "weights", "from two")


async def failovers(kernel: Kernel) -> list[str]:
    return [
        event.args["from"] for event in (await kernel.os.trace()).events if event.name == "failover"
    ]


# --- failover -------------------------------------------------------------------------------------


def test_a_model_is_served_by_its_own_device_while_that_is_well(boot_kernel: BootKernel) -> None:
    one, two = twins()

    async def body(kernel: Kernel) -> None:
        found = await kernel.os.generate("hi", model="one")
        assert (found.text, found.model) == ("from one", "one")
        assert two.opened == 0

    run(boot_kernel, (one, two), body)


def test_a_device_that_does_not_open_is_stood_in_for(boot_kernel: BootKernel) -> None:
    one, two = twins()
    one.open_error = DeviceError("no such file")

    async def body(kernel: Kernel) -> None:
        for _ in range(3):
            found = await kernel.os.generate("hi")
            assert (found.text, found.model) == ("from two", "two")
        # It is not tried again for each call.
        assert one.opened == 1

    run(boot_kernel, (one, two), body)


def test_a_generation_that_nobody_has_seen_is_repeated_once_elsewhere(
    boot_kernel: BootKernel,
) -> None:
    one, two = twins()
    one.step_errors, one.fail_after_steps = [fatal()], 3

    async def body(kernel: Kernel) -> None:
        found = await kernel.os.generate("hi")
        assert (found.text, found.model) == ("from two", "two")
        assert await failovers(kernel) == ["one"]
        (init,) = await kernel.os.ps()
        assert init.accounting.kv_bytes == 0

    run(boot_kernel, (one, two), body)


def test_a_stream_fails_over_before_its_first_piece_and_not_after(boot_kernel: BootKernel) -> None:
    async def body(kernel: Kernel) -> None:
        texts: list[str] = []
        with pytest.raises(SyscallError) as failed:
            async for piece in kernel.os.stream("hi"):
                assert isinstance(piece, Delta)
                texts.append(piece.text)
        assert "from one".startswith("".join(texts)) and texts
        assert (failed.value.code, failed.value.is_retryable) == ("device", True)
        assert await failovers(kernel) == []
        assert two.opened == 0

    async def early(kernel: Kernel) -> None:
        pieces = [piece async for piece in kernel.os.stream("hi")]
        texts = [piece.text for piece in pieces if isinstance(piece, Delta)]
        assert "".join(texts) == "from two"
        assert await failovers(kernel) == ["one"]

    one, two = twins()
    one.step_errors, one.fail_after_steps = [fatal()], 4
    run(boot_kernel, (one, two), body)
    one, two = twins()
    one.step_errors = [fatal()]
    run(boot_kernel, (one, two), early)


def test_when_both_fail_the_first_failure_is_told(boot_kernel: BootKernel) -> None:
    one, two = twins()
    one.step_errors, two.open_error = [fatal()], DeviceError("also broken")

    async def body(kernel: Kernel) -> None:
        with pytest.raises(SyscallError, match="burnt"):
            await kernel.os.generate("hi")

    run(boot_kernel, (one, two), body)


def test_it_is_repeated_once_and_no_more(boot_kernel: BootKernel) -> None:
    one, two = twins()
    one.step_errors, two.step_errors = [fatal()], [fatal()]

    async def body(kernel: Kernel) -> None:
        with pytest.raises(SyscallError, match="burnt") as failed:
            await kernel.os.generate("hi")
        assert failed.value.fields["device"] == "two"
        assert await failovers(kernel) == ["one"]

    run(boot_kernel, (one, two), body)


def test_an_error_that_is_no_failure_of_the_device_stays(boot_kernel: BootKernel) -> None:
    one, two = twins()
    one.step_errors = [DeviceError("this once")]

    async def body(kernel: Kernel) -> None:
        with pytest.raises(SyscallError):
            await kernel.os.generate("word " * 600)
        with pytest.raises(SyscallError, match="this once"):
            await kernel.os.generate("hi")
        assert two.opened == 0
        assert (await kernel.os.generate("hi")).model == "one"

    run(boot_kernel, (one, two), body)


def test_a_context_goes_on_with_a_stand_in_and_is_not_doubled(boot_kernel: BootKernel) -> None:
    one, two = twins()
    one.step_errors = [fatal()]

    async def body(kernel: Kernel) -> None:
        context = await kernel.os.context_open([user("first")])
        assert (await kernel.os.generate("second", context=context)).model == "two"
        info = await kernel.os.context_stat(context)
        assert [segment.preview for segment in info.segments] == ["first", "second", "from two"]

    run(boot_kernel, (one, two), body)


def test_a_stand_in_needs_a_right_of_its_own(boot_kernel: BootKernel) -> None:
    one, two = twins()
    one.open_error = DeviceError("no such file")

    async def ask(os: OS) -> str:
        return (await os.generate("hi")).text

    async def body(kernel: Kernel) -> None:
        narrow = Capabilities(models=frozenset({"one"}))
        pid = await kernel.os.spawn(ask, capabilities=narrow)
        ended = await kernel.os.wait(pid)
        assert ended.error is not None and "no such file" in ended.error.message
        both = Capabilities(models=frozenset({"one", "two"}))
        assert await kernel.os.result(await kernel.os.spawn(ask, capabilities=both)) == "from two"

    run(boot_kernel, (one, two), body)


def test_models_with_other_weights_do_not_stand_in(boot_kernel: BootKernel) -> None:
    one, other = Site("one", "weights", "a"), Site("other", "different", "b")
    one.open_error = DeviceError("no such file")

    async def body(kernel: Kernel) -> None:
        with pytest.raises(SyscallError, match="no such file"):
            await kernel.os.generate("hi", model="one")
        assert other.opened == 0

    run(boot_kernel, (one, other), body)


# --- classes --------------------------------------------------------------------------------------


def test_a_class_goes_to_a_member_and_any_to_all(boot_kernel: BootKernel) -> None:
    a, b = Site("a", "x", "from a"), Site("b", "y", "from b")

    async def body(kernel: Kernel) -> None:
        assert (await kernel.os.generate("hi", model="small")).model == "b"
        assert (await kernel.os.generate("hi", model="any")).model == "b"  # a is closed
        assert a.opened == 0
        with pytest.raises(SyscallError) as refused:
            await kernel.os.generate("hi", model="large")
        assert refused.value.code == "unknown_model"

    run(boot_kernel, (a, b), body, classes={"small": ("b",)})


def test_a_busy_member_is_passed_over(boot_kernel: BootKernel) -> None:
    a, b = Site("a", "x", "from a"), Site("b", "y", "from b")

    async def body(kernel: Kernel) -> None:
        for name in ("a", "b"):
            await kernel.os.generate("warm", model=name)
        a.gate.clear()
        held = [asyncio.create_task(kernel.os.generate("held", model="a")) for _ in range(40)]
        for _ in held:
            await asyncio.sleep(0)
        assert (await kernel.os.generate("hi", model="small")).model == "b"
        a.gate.set()
        await asyncio.gather(*held)

    run(boot_kernel, (a, b), body, classes={"small": ("a", "b")})


def test_a_class_survives_the_failure_of_a_member(boot_kernel: BootKernel) -> None:
    a, b = Site("a", "x", "from a"), Site("b", "y", "from b")
    a.step_errors, a.fail_after_steps = [fatal()], 2

    async def body(kernel: Kernel) -> None:
        assert (await kernel.os.generate("hi", model="small")).model == "b"
        assert await failovers(kernel) == ["a"]

    run(boot_kernel, (a, b), body, classes={"small": ("a", "b")})


def test_a_context_stays_with_the_member_that_it_was_opened_for(boot_kernel: BootKernel) -> None:
    a, b = Site("a", "x", "from a"), Site("b", "y", "from b")

    async def body(kernel: Kernel) -> None:
        await kernel.os.generate("warm", model="b")
        context = await kernel.os.context_open([user("hi")], model="small")
        home = (await kernel.os.context_stat(context)).model
        for _ in range(3):
            found = await kernel.os.generate("more", context=context, model="small")
            assert found.model == home

    run(boot_kernel, (a, b), body, classes={"small": ("a", "b")})


def test_a_member_whose_file_is_not_here_is_passed_over(boot_kernel: BootKernel) -> None:
    a, b = Site("a", "x", "from a"), Site("b", "y", "from b")
    a.open_error = SyscallError("unknown_model", "a is not here; llmos pull a")

    async def body(kernel: Kernel) -> None:
        assert (await kernel.os.generate("hi", model="small")).model == "b"
        with pytest.raises(SyscallError, match="llmos pull a"):
            await kernel.os.generate("hi", model="a")

    run(boot_kernel, (a, b), body, classes={"small": ("a", "b")})


def test_an_adapter_chooses_the_member_that_it_was_trained_for(
    boot_kernel: BootKernel, tmp_path: Path
) -> None:
    a, b = Site("a", "x", "from a"), Site("b", "y", "from b")

    async def body(kernel: Kernel) -> None:
        kernel.registry().add(
            ModelVersion(name="style", kind="adapter", base="y", path=str(tmp_path))
        )
        for _ in range(3):
            found = await kernel.os.generate("hi", model="small", adapter="style")
            assert (found.model, found.adapter) == ("b", "style")
        with pytest.raises(SyscallError, match="trained on y"):
            await kernel.os.generate("hi", model="a", adapter="style")

    run(boot_kernel, (a, b), body, classes={"small": ("a", "b")})


def test_the_name_of_a_class_is_the_right_to_its_members(boot_kernel: BootKernel) -> None:
    a = Site("a", "x", "from a")

    async def ask(os: OS, model: str) -> str:
        return (await os.generate("hi", model=model)).text

    async def body(kernel: Kernel) -> None:
        rights = Capabilities(models=frozenset({"small"}))
        pid = await kernel.os.spawn(ask, "small", capabilities=rights)
        assert await kernel.os.result(pid) == "from a"
        pid = await kernel.os.spawn(ask, "a", capabilities=rights)
        ended = await kernel.os.wait(pid)
        assert ended.error is not None and ended.error.code == "denied"

    run(boot_kernel, (a,), body, classes={"small": ("a",)})


def test_devices_run_at_the_same_time(boot_kernel: BootKernel) -> None:
    a, b = Site("a", "x", "from a"), Site("b", "y", "from b")

    async def body(kernel: Kernel) -> None:
        a.gate.clear()
        held = asyncio.create_task(kernel.os.generate("hi", model="a"))
        assert (await kernel.os.generate("hi", model="b")).text == "from b"
        a.gate.set()
        assert (await held).text == "from a"

    run(boot_kernel, (a, b), body)


def test_many_calls_learn_of_a_dead_device_from_one_attempt(boot_kernel: BootKernel) -> None:
    a = Site("a", "x", "from a")
    a.open_error = DeviceError("no such file")

    async def body(kernel: Kernel) -> None:
        calls = (kernel.os.generate("hi") for _ in range(20))
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, SyscallError) and one.code == "device" for one in found)
        assert a.opened == 1

    run(boot_kernel, (a,), body)
