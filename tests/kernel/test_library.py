"""The long-term store as the kernel serves it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmos.kernel.settings import EmbeddingSetting
from llmos.memory.store import Store
from llmos.syscalls.errors import SyscallError


def no_model() -> Any:
    raise AssertionError("nothing is embedded here")


def test_a_store_that_another_kernel_has_open_is_a_storage_error(
    boot_kernel: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        embedding = EmbeddingSetting(name="none", dimensions=8, open=no_model)
        async with boot_kernel(embedding=embedding) as kernel:
            other = Store(tmp_path / "memory", dimensions=8)
            with pytest.raises(SyscallError, match="process") as refusal:
                await kernel.os.memory_stat()
            assert refusal.value.code == "storage"
            other.close()
            assert (await kernel.os.memory_stat()).items == 0

    asyncio.run(scenario())
