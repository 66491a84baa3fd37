"""The kernel without asyncio: values, errors, threads, interrupts, the end of the block."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llmos
import llmos.sync
from llmos import ConfigError, ModelConfig, SyscallError
from llmos.agents.handle import OS
from llmos.drivers.scripted import pseudo_text
from llmos.syscalls import calls
from llmos.syscalls.results import Delta, Generated

SCRIPTED = {"scripted": ModelConfig(source="scripted", driver="scripted")}


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[llmos.sync.Kernel]:
    with llmos.sync.boot(home=tmp_path, models=SCRIPTED) as kernel:
        yield kernel


async def double(os: OS, number: int) -> int:
    return 2 * number


async def ask(os: OS, text: str) -> str:
    return (await os.generate(text, max_tokens=200)).text


async def fail(os: OS) -> None:
    await os.read_text("absent")


async def interrupt(os: OS) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    await os.receive()


def test_a_program_runs_to_its_value(kernel: llmos.sync.Kernel):
    assert kernel.run(double, 21) == 42


def test_a_program_that_fails_raises_its_error(kernel: llmos.sync.Kernel):
    with pytest.raises(SyscallError) as caught:
        kernel.run(fail)
    assert caught.value.code == "not_found"


def test_calls_have_their_usual_names_and_results(kernel: llmos.sync.Kernel):
    generated = kernel.generate("hello", max_tokens=200)
    assert generated.text == pseudo_text("hello")
    assert [process.pid for process in kernel.ps()] == [1]
    assert kernel.call(calls.Tokenize(text="four")).count == 4


def test_a_stream_is_gone_through_piece_by_piece(kernel: llmos.sync.Kernel):
    items = list(kernel.iterate(kernel.kernel.os.stream("hello", max_tokens=200)))
    pieces, result = items[:-1], items[-1]
    assert isinstance(result, Generated)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Delta)) == result.text
    assert len(pieces) > 1


def test_a_stream_that_is_left_early_is_cancelled(kernel: llmos.sync.Kernel):
    for _ in kernel.iterate(kernel.kernel.os.stream("hello", max_tokens=200)):
        break
    kernel.generate("hello", max_tokens=1)  # a step later
    (device, *_) = kernel.stat().devices
    assert device.running == 0


def test_threads_share_a_kernel(kernel: llmos.sync.Kernel):
    texts = [f"text {number}" for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda text: kernel.run(ask, text), texts))
    assert answers == [pseudo_text(text) for text in texts]


def test_an_interrupt_kills_the_program_that_is_waited_for(kernel: llmos.sync.Kernel):
    with pytest.raises(KeyboardInterrupt):
        kernel.run(interrupt)
    assert [process.pid for process in kernel.ps()] == [1]


def test_what_keeps_a_kernel_from_booting_is_raised(tmp_path: Path):
    with pytest.raises(ConfigError, match="polcy"), llmos.sync.boot(home=tmp_path, polcy="fifo"):
        pass


def test_an_error_in_the_block_ends_the_kernel_and_goes_on(tmp_path: Path):
    before = threading.active_count()
    pids: list[Any] = []
    with (
        pytest.raises(ZeroDivisionError),
        llmos.sync.boot(home=tmp_path, models=SCRIPTED) as kernel,
    ):
        pids.append(kernel.spawn(ask, "hello"))
        _ = 1 / 0
    assert pids
    assert threading.active_count() == before


@pytest.mark.model
def test_the_snippets_of_the_embedding_page_run(
    tmp_path: Path, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = Path(__file__).parents[2] / "docs" / "embedding-the-runtime.md"
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path))
    assert len(snippets) == 3
    for snippet in snippets:
        exec(snippet, {"__name__": "snippet"})
