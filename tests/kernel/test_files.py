"""Files of processes: homes, shared folders, full disks."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.syscalls.calls import Open
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.rights import Capabilities


def spawn_with(boot_kernel: Any, program: Any, *args: Any, rights: Capabilities) -> Any:
    async def scenario() -> Any:
        async with boot_kernel() as kernel:
            return await kernel.os.wait(await kernel.os.spawn(program, *args, capabilities=rights))

    return asyncio.run(scenario())


def test_a_process_keeps_files_in_its_own_home(boot_kernel: Any, tmp_path: Path) -> None:
    async def scribe(os: OS) -> list[Any]:
        await os.write_text("notes/one.txt", "één")
        await os.write_text("two.txt", "2")
        names = [(file.path, file.bytes) for file in await os.list(is_recursive=True)]
        return [names, await os.read_text("notes/one.txt")]

    exited = spawn_with(boot_kernel, scribe, rights=Capabilities())
    assert exited.value == [[["notes/one.txt", 5], ["two.txt", 1]], "één"]
    assert list(tmp_path.rglob("one.txt"))


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret", "link/passwd"])
def test_a_path_outside_home_and_shared_folders_is_denied(boot_kernel: Any, path: str) -> None:
    async def thief(os: OS) -> str:
        return await os.read_text(path)

    async def scenario() -> Any:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(thief, capabilities=Capabilities())
            home = kernel.files.home(kernel.table.get(pid))
            home.mkdir(parents=True)
            (home / "link").symlink_to("/etc")
            return await kernel.os.wait(pid)

    exited = asyncio.run(scenario())
    assert exited.error.code == "denied"
    assert "folders_read" in exited.error.message


def test_a_shared_folder_is_read_and_not_written(boot_kernel: Any, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "fact.txt").write_text("shared fact")

    async def reader(os: OS) -> list[str]:
        text = await os.read_text(str(shared / "fact.txt"))
        try:
            await os.write_text(str(shared / "new.txt"), "x")
        except SyscallError as problem:
            return [text, problem.code]
        return [text, "written"]

    rights = Capabilities(folders_read=frozenset({str(shared)}))
    assert spawn_with(boot_kernel, reader, rights=rights).value == ["shared fact", "denied"]


def test_bytes_that_are_no_utf8_are_shown_and_do_no_harm(boot_kernel: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good \xff\xfe text")

    async def reader(os: OS) -> str:
        return await os.read_text(str(tmp_path / "bad.txt"))

    rights = Capabilities(folders_read=frozenset({str(tmp_path)}))
    assert spawn_with(boot_kernel, reader, rights=rights).value == "good \ufffd\ufffd text"


def test_a_missing_file_is_named(boot_kernel: Any) -> None:
    async def reader(os: OS) -> str:
        return await os.read_text("nothing.txt")

    error = spawn_with(boot_kernel, reader, rights=Capabilities()).error
    assert (error.code, error.fields["name"]) == ("not_found", "nothing.txt")


def test_a_full_disk_is_a_storage_error_and_the_kernel_lives(boot_kernel: Any) -> None:
    async def hoarder(os: OS) -> str:
        fd = await os.open("big.bin", "w")
        for _ in range(100):
            await os.write(b"x" * 65536, fd=fd)
        return "never full"

    async def scenario() -> Any:
        async with boot_kernel() as kernel:
            exited = await kernel.os.wait(await kernel.os.spawn(hoarder))
            (info,) = await kernel.os.ps()
            return exited, info.program

    # A limit on file size stands for the disk: both refuse the write itself.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        exited, program = asyncio.run(scenario())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert exited.error.code == "storage"
    assert "free some disk space" in exited.error.message
    assert program == "init"


def test_descriptors_are_closed_when_their_process_ends(boot_kernel: Any) -> None:
    async def opener(os: OS) -> None:
        await os.open("a.txt", "w")
        await os.receive()

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(opener)
            for _ in range(20):
                await asyncio.sleep(0)
            (file,) = kernel.table.get(pid).files.values()
            await kernel.os.signal(pid, "KILL")
            assert file.stream.closed

    asyncio.run(scenario())


def test_a_named_pipe_is_refused_and_does_not_hold_the_kernel(
    boot_kernel: Any, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            with pytest.raises(SyscallError, match="named pipe"):
                await kernel.os.call(Open(path=str(tmp_path / "fifo")))

    asyncio.run(scenario())
