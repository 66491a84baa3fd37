"""Taking files in as a syscall: within the caller's rights, and not beyond its end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import Allocation, EmbeddingInfo
from llmos.kernel.settings import EmbeddingSetting
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.rights import Capabilities

OLD = 1_000_000_000


class Letters:
    """An embedding by length; it can be held up."""

    gate = threading.Event()
    begun = threading.Event()

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo("letters", "cpu", 4, max_tokens=64, parameters=0, identity="l")

    def count(self, text: str) -> int:
        return len(text.split()) + 2

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.begun.set()
        self.gate.wait()
        return [[float(len(text) % 4 == n) for n in range(4)] for text in texts]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _gates() -> None:
    Letters.gate.set()
    Letters.begun.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    for name, text in (("a.txt", "The lamp is red."), ("b.txt", "The tide is low.")):
        (made / name).write_text(text)
        os.utime(made / name, (OLD, OLD))
    return made


async def reader(os: OS, folder: str, namespace: str | None = None) -> Any:
    done = await os.ingest(folder, namespace=namespace)
    return [done.namespace, done.new, done.unchanged]


def boot(boot_kernel: Any) -> Any:
    return boot_kernel(embedding=EmbeddingSetting("letters", 4, Letters))


def test_a_process_takes_in_what_it_may_read_into_its_own_namespace(
    boot_kernel: Any, folder: Path
) -> None:
    async def main() -> None:
        async with boot(boot_kernel) as kernel:
            rights = Capabilities(folders_read={str(folder)})
            pid = await kernel.os.spawn(reader, str(folder), capabilities=rights)
            namespace, new, unchanged = await kernel.os.result(pid)
            assert (new, unchanged) == (2, 0)
            (hit, *_) = await kernel.os.retrieve("lamp", namespaces=[namespace], mode="lexical")
            assert hit.source == str(folder / "a.txt")
            again = await kernel.os.ingest(str(folder), namespace=namespace)
            assert again.unchanged == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rights", "namespace", "missing"),
    [
        (Capabilities(), None, "folders_read"),
        (Capabilities(folders_read={"*"}), "shared", "write:shared"),
    ],
)
def test_what_is_not_granted_is_refused(
    rights: Capabilities, namespace: str | None, missing: str, boot_kernel: Any, folder: Path
) -> None:
    async def main() -> None:
        async with boot(boot_kernel) as kernel:
            pid = await kernel.os.spawn(reader, str(folder), namespace, capabilities=rights)
            with pytest.raises(SyscallError, match=missing) as caught:
                await kernel.os.result(pid)
            assert caught.value.code == "denied"
            assert (await kernel.os.memory_stat()).items == 0

    asyncio.run(main())


def test_a_chunk_is_no_larger_than_the_model_sees(boot_kernel: Any, folder: Path) -> None:
    async def main() -> None:
        async with boot(boot_kernel) as kernel:
            with pytest.raises(SyscallError, match="62 tokens") as caught:
                await kernel.os.ingest(str(folder), chunk_tokens=63)
            assert caught.value.fields["field"] == "chunk_tokens"

    asyncio.run(main())


def test_a_killed_process_leaves_no_thread_at_work(boot_kernel: Any, folder: Path) -> None:
    async def main() -> None:
        async with boot(boot_kernel) as kernel:
            Letters.gate.clear()
            pid = await kernel.os.spawn(reader, str(folder), "n")
            await asyncio.to_thread(Letters.begun.wait)
            await kernel.os.signal(pid, "KILL")
            Letters.gate.set()
            exited = await kernel.os.wait(pid)
            assert exited.status == "killed"

    asyncio.run(main())
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("asyncio")]


def test_a_file_that_is_gone_is_forgotten_when_asked(boot_kernel: Any, folder: Path) -> None:
    async def main() -> None:
        async with boot(boot_kernel) as kernel:
            await kernel.os.ingest([str(folder)], namespace="n")
            (folder / "a.txt").unlink()
            done = await kernel.os.ingest([str(folder)], namespace="n", forget_gone=True)
            assert (done.gone, done.forgotten, done.unchanged) == (1, 1, 1)

    asyncio.run(main())
