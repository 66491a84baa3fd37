"""Remote models against real servers in processes of their own: llmos itself, and llama-server.

llama-server is no part of the project; name one in LLMOS_LLAMA_SERVER to run its tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import llmos
from llmos.agents.handle import OS
from llmos.kernel.kernel import Kernel
from llmos.syscalls.content import system
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import ChoiceConstraint, JsonSchemaConstraint, RegexConstraint
from llmos.syscalls.results import Delta, Generated

LLAMA_SERVER = os.environ.get("LLMOS_LLAMA_SERVER")
needs_llama_server = pytest.mark.skipif(
    LLAMA_SERVER is None, reason="LLMOS_LLAMA_SERVER names no llama-server"
)
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"type": "integer"}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
Body = Callable[[Kernel], Coroutine[Any, Any, None]]


@contextmanager
def process(
    command: Sequence[str], url: str, environment: dict[str, str] | None = None
) -> Generator[str]:
    """A server for as long as the block lasts; its address, once it answers."""
    with subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            # A transport of its own: no proxy of the environment's stands between.
            with httpx.Client(transport=httpx.HTTPTransport(), base_url=url, timeout=60) as client:
                _until_healthy(client, server)
            yield f"{url}/v1"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _until_healthy(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    """Nothing listens at first; a server that still loads says 503."""
    for _ in range(600):
        assert server.poll() is None, "the server has ended"
        with suppress(httpx.ConnectError):
            if client.get("/health").status_code == httpx.codes.OK:
                return
        with suppress(subprocess.TimeoutExpired):
            server.wait(0.1)
    raise AssertionError("the server does not answer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def llmos_server(home: Path, settings: str) -> Generator[str]:
    port = free_port()
    file = home / "server.toml"
    file.write_text(settings)
    command = [sys.executable, "-m", "llmos", "serve", "--port", str(port)]
    environment = {"LLMOS_CONFIG": str(file), "LLMOS_HOME": str(home / "server")}
    with process(command, f"http://127.0.0.1:{port}", environment) as url:
        yield url


@contextmanager
def llama_server(model: Path, *, slots: int = 4) -> Generator[str]:
    assert LLAMA_SERVER is not None
    port = free_port()
    command = [
        LLAMA_SERVER, "-m", str(model), "--port", str(port), "--alias", "smollm2", "--jinja",
        "-np", str(slots), "-c", str(1024 * slots), "-t", "2",
    ]  # fmt: skip
    with process(command, f"http://127.0.0.1:{port}") as url:
        yield url


def run(home: Path, url: str, body: Body, *, model: str, **settings: Any) -> None:
    """A kernel whose only model is at a server."""

    async def scenario() -> None:
        far = {"driver": "remote", "source": url, "model": model, **settings}
        async with llmos.boot(home=home, models={"far": far}) as kernel:
            await body(kernel)

    asyncio.run(scenario())


SCRIPTED = (
    'default_model = "s"\n[models.s]\nsource = "s"\ndriver = "scripted"\n[classes]\nsmall = ["s"]\n'
)


@pytest.fixture(scope="module")
def scripted_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a scripted model."""
    with llmos_server(tmp_path_factory.mktemp("served"), SCRIPTED) as url:
        yield url


def test_another_llmos_is_a_remote_model(tmp_path: Path, scripted_url: str) -> None:
    async def body(kernel: Kernel) -> None:
        found = await kernel.os.generate("hello there", max_tokens=20)
        assert (found.model, found.finish) == ("far", "length")
        assert found.usage.completion_tokens == 20
        pieces = [piece async for piece in kernel.os.stream("hello there", max_tokens=20)]
        spoken = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
        assert isinstance(pieces[-1], Generated)
        assert spoken == found.text == pieces[-1].text
        assert len(pieces) > 10

        context = await kernel.os.context_open([system("Be brief.")])
        await kernel.os.generate("one", context=context, max_tokens=8)
        await kernel.os.generate("two", context=context, max_tokens=8)
        roles = [segment.kind for segment in (await kernel.os.context_stat(context)).segments]
        assert len(roles) == 5

        asked = JsonSchemaConstraint(json_schema=SCHEMA)
        answer = await kernel.os.generate("where?", constraint=asked, max_tokens=200)
        assert set(json.loads(answer.text)) == {"city", "size"}

        for constraint in (ChoiceConstraint(choices=("a",)), RegexConstraint(pattern="a")):
            with pytest.raises(SyscallError) as refused:
                await kernel.os.generate("which?", constraint=constraint)
            assert refused.value.code == "not_available"
        many = await asyncio.gather(
            *(kernel.os.generate(f"question {n}", max_tokens=10) for n in range(20))
        )
        assert all(one.usage.completion_tokens == 10 for one in many)
        device = (await kernel.os.stat()).devices[0]
        assert device.spent is not None and device.spent > 0

    run(tmp_path, scripted_url, body, model="s", price_in=1.0, price_out=2.0, concurrency=4)


def test_a_stream_that_nobody_reads_gives_up_its_place(tmp_path: Path, scripted_url: str) -> None:
    async def body(kernel: Kernel) -> None:
        async with aclosing(kernel.os.stream("talk for long", max_tokens=3000)) as answer:
            async for _piece in answer:
                break
        found = await kernel.os.generate("still there?", max_tokens=4)
        assert found.usage.completion_tokens == 4
        assert (await kernel.os.stat()).devices[0].running == 0

    run(tmp_path, scripted_url, body, model="s", concurrency=1)


def test_a_server_that_dies_is_stood_in_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        with ExitStack() as servers:
            url = servers.enter_context(llmos_server(tmp_path, SCRIPTED))
            far = {"driver": "remote", "source": url, "model": "s", "base": "s", "retries": 0}
            models = {"far": far, "near": {"driver": "scripted", "source": "s"}}
            async with llmos.boot(home=tmp_path, models=models, default_model="far") as kernel:
                assert (await kernel.os.generate("hi", max_tokens=4)).model == "far"
                await asyncio.to_thread(servers.close)
                assert (await kernel.os.generate("hi", max_tokens=4)).model == "near"
                assert (await kernel.os.stat()).devices[0].state == "down"

    asyncio.run(scenario())


def test_a_model_that_the_server_has_not_is_a_device_error(
    tmp_path: Path, scripted_url: str
) -> None:
    async def body(kernel: Kernel) -> None:
        with pytest.raises(SyscallError, match="has no model 'other'; known: s") as failed:
            await kernel.os.generate("hi")
        assert failed.value.code == "device"

    run(tmp_path, scripted_url, body, model="other")


def test_a_class_can_be_asked_for_over_http(scripted_url: str) -> None:
    with httpx.Client(base_url=scripted_url) as client:
        for name in ("small", "any"):
            body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
            answer = client.post("/chat/completions", json={**body, "max_tokens": 4})
            assert answer.status_code == httpx.codes.OK
            assert answer.json()["usage"]["completion_tokens"] == 4


@pytest.mark.model
def test_a_real_model_behind_another_llmos(tmp_path: Path, smollm2_path: Path) -> None:
    async def body(kernel: Kernel) -> None:
        found = await kernel.os.generate("What is the capital of France?", max_tokens=24)
        assert found.text.strip()
        assert found.usage.prompt_tokens > 10

    settings = 'default_model = "smollm2"\n[models.smollm2]\nsource = "smollm2"\n'
    settings += 'driver = "llama_cpp"\nsequences = 4\ncontext_tokens = 1024\nweights = "shipped"\n'
    with llmos_server(tmp_path, settings) as url:
        run(tmp_path, url, body, model="smollm2")


@pytest.mark.model
@needs_llama_server
def test_a_llama_server_is_a_remote_model(tmp_path: Path, smollm2_path: Path) -> None:
    async def body(kernel: Kernel) -> None:
        pieces = [piece async for piece in kernel.os.stream("Name three colours.", max_tokens=24)]
        spoken = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
        end = pieces[-1]
        assert isinstance(end, Generated)
        assert spoken == end.text != ""
        assert end.usage.completion_tokens > 0

        asked = JsonSchemaConstraint(json_schema=SCHEMA)
        answer = await kernel.os.generate("A city, please.", constraint=asked, max_tokens=60)
        assert set(json.loads(answer.text)) == {"city", "size"}
        choice = ChoiceConstraint(choices=("red", 'say "blue"'))
        picked = await kernel.os.generate("Which colour?", constraint=choice, max_tokens=12)
        assert picked.text in choice.choices
        prefixed = await kernel.os.generate("Count.", prefix="One, two,", max_tokens=8)
        assert prefixed.text.startswith("One, two,")
        assert "One, two, One, two," not in prefixed.text

        # A conversation that goes on finds its slot, also with others between.
        async def talk(os: OS, text: str) -> list[int]:
            context = await os.context_open([system(f"You are {text}. " + "Listen well. " * 60)])
            cached: list[int] = []
            for turn in range(3):
                usage = (await os.generate(f"{turn}?", context=context, max_tokens=4)).usage
                cached.append(usage.cached_tokens)
            return cached

        pids = [await kernel.os.spawn(talk, f"agent {number}") for number in range(3)]
        for cached in await kernel.os.results(pids):
            assert min(cached[1:]) > 150

        with pytest.raises(SyscallError) as refused:
            await kernel.os.generate("word " * 3000)
        assert refused.value.code == "context_overflow"
        # The server stops when its reader is gone, long before 900 tokens.
        async with aclosing(kernel.os.stream("A long story.", max_tokens=900)) as story:
            async for _piece in story:
                break
        async with httpx.AsyncClient(base_url=root[0]) as client:
            for _ in range(50):
                slots = (await client.get("/slots")).json()
                if not any(slot["is_processing"] for slot in slots):
                    break
            assert not any(slot["is_processing"] for slot in slots)
            assert max(slot["next_token"][0]["n_decoded"] for slot in slots) < 200

    root: list[str] = []
    with llama_server(smollm2_path) as url:
        root.append(url.removesuffix("/v1"))
        run(tmp_path, url, body, model="smollm2", concurrency=4)
