"""Adapters of a device: brought on demand, evicted by use, never from under a live sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.contract import Allocation, DeviceError, Feed, LanguageModel, ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.kernel.adapter_slots import AdapterLimits, AdapterSlots
from llmos.kernel.settings import ModelSetting
from llmos.syscalls.learning_results import ModelVersion
from llmos.syscalls.options import GREEDY


class Holder:
    """What a driver does with adapters; `told` is all that happened, in order."""

    def __init__(self, sizes: dict[str, int] | None = None) -> None:
        self.sizes = sizes or {}
        self.attached: list[str] = []
        self.told: list[str] = []

    def attach(self, name: str, path: Path) -> None:
        if name == "bad":
            raise DeviceError("it is damaged")
        self.attached.append(name)
        self.told.append(f"+{name}")

    def detach(self, name: str) -> None:
        self.attached.remove(name)
        self.told.append(f"-{name}")

    def allocations(self) -> list[Allocation]:
        return [Allocation(f"adapter {name}", self.sizes.get(name, 10)) for name in self.attached]


def slots_of(holder: Holder, *names: str, count: int = 2, size: int = 1000) -> AdapterSlots:
    slots = AdapterSlots(AdapterLimits(count, size))
    slots.opened(
        cast("LanguageModel", holder), let_go=lambda name: holder.told.append(f"kv {name}")
    )
    for name in names:
        slots.know(name, Path("nowhere"))
    return slots


def test_the_adapter_that_was_used_longest_ago_goes_and_its_kv_before_it() -> None:
    holder = Holder()
    slots = slots_of(holder, "a", "b", "c")
    for name in ("a", "b", "a", "c", "a", "b"):
        assert slots.bring(name, in_use=())
    assert holder.told == ["+a", "+b", "kv b", "-b", "+c", "kv c", "-c", "+b"]
    assert slots.names == {"a", "b"}


def test_what_is_in_use_stays_and_what_has_no_room_waits() -> None:
    holder = Holder()
    slots = slots_of(holder, "a", "b", "c")
    assert slots.bring("a", in_use=())
    assert slots.bring("b", in_use={"a"})
    assert not slots.bring("c", in_use={"a", "b"})
    assert slots.names == {"a", "b"}
    assert slots.bring("c", in_use={"a"})
    assert slots.names == {"a", "c"}


def test_bytes_are_a_limit_too_and_one_that_is_over_it_is_alone(tmp_path: Path) -> None:
    holder = Holder({"big": 500})
    slots = slots_of(holder, "a", "b", count=10, size=100)
    file = tmp_path / "big.gguf"
    file.write_bytes(b"x" * 500)
    slots.know("big", file)
    assert slots.bring("a", in_use=()) and slots.bring("b", in_use=())
    assert not slots.bring("big", in_use={"a"})
    assert slots.bring("big", in_use=())
    assert slots.names == {"big"}
    assert slots.bring("a", in_use=())
    assert slots.names == {"a"}


def test_one_that_cannot_be_attached_takes_no_room() -> None:
    slots = slots_of(Holder(), "a", "bad")
    with pytest.raises(DeviceError, match="damaged"):
        slots.bring("bad", in_use=())
    assert slots.names == frozenset()
    assert slots.bring("a", in_use=())


def test_a_new_driver_has_none_and_gets_them_again() -> None:
    slots = slots_of(Holder(), "a")
    slots.bring("a", in_use=())
    later = Holder()
    slots.opened(cast("LanguageModel", later), let_go=lambda name: None)
    assert slots.names == frozenset()
    assert slots.bring("a", in_use=())
    assert later.attached == ["a"]


NAMES = "abcdef"


@pytest.fixture(scope="module")
def ten_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("adapters") / "adapter.gguf"
    file.write_bytes(bytes(10))
    return file


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES)))),
    st.integers(1, 4),
    st.integers(10, 60),
)
def test_limits_hold_whatever_is_asked_and_nothing_in_use_goes(
    ten_bytes: Path, asked: list[tuple[str, set[str]]], count: int, size: int
) -> None:
    holder = Holder()
    slots = slots_of(holder, count=count, size=size)
    for name in NAMES:
        slots.know(name, ten_bytes)
    for name, wanted in asked:
        in_use = wanted & slots.names
        brought = slots.bring(name, in_use=in_use)
        assert in_use <= slots.names
        assert brought == (name in slots.names)
        assert sorted(holder.attached) == sorted(slots.names)
        assert len(holder.attached) <= count
        assert 10 * len(holder.attached) <= size or len(holder.attached) == 1


# --- under the kernel -----------------------------------------------------------------------------


class Watched(Scripted):
    """A scripted model that notes its adapters at every step and who is in it."""

    def __init__(self, steps: list[set[str]]) -> None:
        super().__init__(ModelSpec("scripted", Path("scripted"), sequences=4))
        self.steps = steps

    def step(self, feeds: Any) -> Any:
        wanted = {self._decodings[feed.sequence].adapter for feed in feeds}
        assert {name for name in wanted if name} <= self._adapters
        self.steps.append(set(self._adapters))
        return super().step(feeds)


Boot = Callable[..., Any]


def test_more_adapters_than_there_is_room_for_serve_all_their_agents(
    boot_kernel: Boot, tmp_path: Path
) -> None:
    steps: list[set[str]] = []
    setting = ModelSetting(
        name="scripted", base="scripted", driver="scripted", open=lambda: Watched(steps)
    )

    async def scenario() -> None:
        limits = AdapterLimits(adapters=2)
        async with boot_kernel(models={"scripted": setting}, adapters=limits) as kernel:
            names = [f"v{number}" for number in range(6)]
            for name in names:
                kernel.registry().add(
                    ModelVersion(name=name, kind="adapter", base="scripted", path=str(tmp_path))
                )
            asks = [
                kernel.os.generate("hello", adapter=name, max_tokens=12)
                for name in (*names, *reversed(names))
            ]
            texts = [answer.text for answer in await asyncio.gather(*asks)]
            expected = [*names, *reversed(names)]
            assert [text.partition(":")[0] for text in texts] == expected
            assert max(map(len, steps)) == 2

    (tmp_path / "adapter.bin").write_bytes(b"x")
    asyncio.run(scenario())


def test_an_adapter_is_not_detached_while_it_has_kv(tmp_path: Path) -> None:
    driver = Scripted(ModelSpec("scripted", Path("scripted"), sequences=2))
    driver.attach("a", tmp_path)
    driver.add(0, sampling=GREEDY, adapter="a")
    driver.step([Feed(0, [1, 2], sample=False)])
    with pytest.raises(DeviceError, match="uses the adapter"):
        driver.detach("a")
    driver.trim(0, 0)
    driver.detach("a")
    driver.attach("a", tmp_path)
