"""A kernel for tests: no devices unless a test brings them, a home in the test's own folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.kernel.clock import Clock
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import ModelSetting, Settings

BootKernel = Callable[..., AbstractAsyncContextManager[Kernel]]


@pytest.fixture
def boot_kernel(tmp_path: Path) -> BootKernel:
    """`async with boot_kernel(**settings) as kernel`."""

    @asynccontextmanager
    async def boot(
        *,
        models: dict[str, ModelSetting] | None = None,
        programs: dict[str, Any] | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> AsyncIterator[Kernel]:
        known = models or {}
        kernel = Kernel(
            Settings(
                home=tmp_path, models=known, default_model=next(iter(known), None), **settings
            ),
            bind=OS,
            programs=programs or {},
            clock=clock,
        )
        try:
            yield kernel
        finally:
            await kernel.stop()

    return boot
