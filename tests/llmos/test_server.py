"""The HTTP face, by the official client, against a real server and a scripted model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

import llmos
from llmos.agents.handle import OS
from llmos.drivers.contract import DeviceError, Feed, LanguageModel, ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.kernel.clock import Clock, VirtualClock
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import ModelSetting, Settings
from llmos.server import Server, create_app, serve
from llmos.syscalls.errors import ConfigError
from llmos.syscalls.rights import Quota

WINDOW = 512
GREETING = "Good morning to you."
HELLO: Any = [{"role": "user", "content": "hello"}]
ENDLESS: Any = [{"role": "user", "content": "never stop"}]
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The time in a zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
SCRIPT = {
    "hello": GREETING,
    "never stop": "again " * 100,
    "what time is it?": '<tool_call>[{"name": "clock", "arguments": {"zone": "UTC"}}]</tool_call>',
}


class Pace:
    """Lets the device take as many steps as a test allows."""

    def __init__(self) -> None:
        self.sampled = 0  # tokens, in all steps
        self.is_stepping = threading.Event()
        self._allowed = threading.Semaphore(0)

    def __call__(self, feeds: Sequence[Feed]) -> None:
        self.sampled += sum(feed.sample for feed in feeds)
        self.is_stepping.set()
        self._allowed.acquire()

    def allow(self, steps: int = 100_000) -> None:
        self._allowed.release(steps)

    async def stepping(self) -> None:
        """Until the device has something to do."""
        await asyncio.to_thread(self.is_stepping.wait)


class Site:
    """A kernel with a scripted model, served on a free port."""

    def __init__(self, kernel: Kernel, driver: Scripted, port: int) -> None:
        self.kernel = kernel
        self.driver = driver
        self.root = f"http://127.0.0.1:{port}"
        self.client = AsyncOpenAI(base_url=f"{self.root}/v1", api_key="any", max_retries=0)

    async def chat(self, messages: Any = HELLO, **fields: Any) -> Any:
        return await self.client.chat.completions.create(
            model="scripted", messages=messages, **fields
        )

    async def running(self) -> list[str]:
        """The programs that are not init's."""
        return [f"{p.program} {p.args}" for p in await self.kernel.os.ps() if p.pid != 1]

    async def spawned(self) -> None:
        """Until the next process is started."""
        async for event in self.kernel.events():
            if event.name == "spawn":
                return

    async def ended(self, program: str) -> str:
        """How the next process of a program ends."""
        async for event in self.kernel.events():
            if event.name == program and event.category == "process":
                return event.args["status"]
        raise AssertionError("events do not end")


@asynccontextmanager
async def site(
    home: Path,
    *,
    pace: Pace | None = None,
    max_body_bytes: int = 100_000,
    hosts: Sequence[str] | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> AsyncIterator[Site]:
    spec = ModelSpec("scripted", Path("scripted"), context_tokens=WINDOW)
    driver = Scripted(spec, script=SCRIPT, on_step=pace)

    def open_driver() -> LanguageModel:
        return driver

    model = ModelSetting("scripted", "scripted", "scripted", open_driver)
    known = Settings(home=home, models={"scripted": model}, default_model="scripted", **settings)
    kernel = Kernel(known, bind=OS, programs={}, clock=clock)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(create_app(kernel, max_body_bytes=max_body_bytes, hosts=hosts))
    serving = asyncio.create_task(server.serve([listening]))
    there = Site(kernel, driver, listening.getsockname()[1])
    try:
        async with asyncio.timeout(60):
            yield there
    finally:
        if pace is not None:
            pace.allow()
        await there.client.close()
        server.should_exit = True
        await serving
        await kernel.stop()


def run(home: Path, body: Callable[[Site], Any], **options: Any) -> None:
    async def main() -> None:
        async with site(home, **options) as there:
            await body(there)

    asyncio.run(main())


# --- chat -----------------------------------------------------------------------------------------


def test_a_chat_is_answered_with_its_usage(tmp_path: Path):
    async def body(there: Site) -> None:
        answer = await there.chat()
        assert answer.object == "chat.completion"
        assert answer.choices[0].message.content == GREETING
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == len(GREETING)
        assert answer.usage.total_tokens > answer.usage.prompt_tokens > 0

    run(tmp_path, body)


def test_the_synchronous_client_is_answered_too(tmp_path: Path):
    async def body(there: Site) -> None:
        def ask() -> str | None:
            with OpenAI(base_url=f"{there.root}/v1", api_key="any") as client:
                answer = client.chat.completions.create(model="scripted", messages=HELLO)
                return answer.choices[0].message.content

        assert await asyncio.to_thread(ask) == GREETING

    run(tmp_path, body)


def test_a_stream_brings_the_text_in_pieces_and_the_usage_at_its_end(tmp_path: Path):
    async def body(there: Site) -> None:
        stream = await there.chat(stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        pieces = [choice.delta.content or "" for c in chunks for choice in c.choices]
        assert "".join(pieces) == GREETING
        assert sum(bool(piece) for piece in pieces) > 1
        assert [choice.delta.role for choice in chunks[0].choices] == ["assistant"]
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == len(GREETING)
        assert len({chunk.id for chunk in chunks}) == 1

    run(tmp_path, body)


def test_without_a_limit_an_answer_may_fill_the_window(tmp_path: Path):
    async def body(there: Site) -> None:
        answer = await there.chat(ENDLESS)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.total_tokens == WINDOW

    run(tmp_path, body)


def test_stop_strings_and_limits_end_an_answer(tmp_path: Path):
    async def body(there: Site) -> None:
        stopped = await there.chat(stop=["morning"])
        assert stopped.choices[0].message.content == "Good "
        short = await there.chat(max_completion_tokens=4)
        assert short.choices[0].message.content == "Good"
        assert short.choices[0].finish_reason == "length"

    run(tmp_path, body)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_several_choices_are_generated_side_by_side(tmp_path: Path, is_streamed: bool):
    async def body(there: Site) -> None:
        texts = ["", "", ""]
        if is_streamed:
            async for chunk in await there.chat(n=3, stream=True):
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
        else:
            for choice in (await there.chat(n=3)).choices:
                texts[choice.index] = choice.message.content
        assert texts == [GREETING] * 3
        (device,) = (await there.kernel.os.stat()).devices
        assert device.steps < 3 * len(texts[0])

    run(tmp_path, body)


def test_logprobs_come_with_the_tokens_that_were_likely(tmp_path: Path):
    async def body(there: Site) -> None:
        whole = await there.chat(logprobs=True, top_logprobs=2)
        tokens = whole.choices[0].logprobs.content
        assert "".join(token.token for token in tokens) == GREETING
        assert tokens[0].bytes == [ord("G")]
        assert tokens[0].top_logprobs[0].token == "G"
        assert len(tokens[0].top_logprobs) == 2
        stream = await there.chat(logprobs=True, stream=True)
        streamed = [
            token.token
            async for chunk in stream
            if chunk.choices[0].logprobs
            for token in chunk.choices[0].logprobs.content
        ]
        assert "".join(streamed) == GREETING

    run(tmp_path, body)


# --- structure and tools --------------------------------------------------------------------------


class Colour(BaseModel):
    name: str
    is_warm: bool


def test_an_answer_under_a_schema_is_valid(tmp_path: Path):
    async def body(there: Site) -> None:
        answer = await there.client.chat.completions.parse(
            model="scripted", messages=HELLO, response_format=Colour, temperature=0
        )
        assert isinstance(answer.choices[0].message.parsed, Colour)

    run(tmp_path, body)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_required_tool_is_called_with_arguments_that_fit(tmp_path: Path, is_streamed: bool):
    async def body(there: Site) -> None:
        fields: Any = {"tools": [CLOCK], "tool_choice": "required", "temperature": 0}
        if is_streamed:
            chunks = [chunk async for chunk in await there.chat(stream=True, **fields)]
            assert not any(chunk.choices[0].delta.content for chunk in chunks)
            (call,) = [t for c in chunks for t in c.choices[0].delta.tool_calls or []]
            finish = chunks[-1].choices[0].finish_reason
        else:
            (choice,) = (await there.chat(**fields)).choices
            (call,) = choice.message.tool_calls
            finish = choice.finish_reason
        assert finish == "tool_calls"
        assert call.function.name == "clock"
        assert json.loads(call.function.arguments)["zone"] in {"UTC", "CET"}

    run(tmp_path, body)


def test_a_tool_loop_goes_on_with_the_result(tmp_path: Path):
    async def body(there: Site) -> None:
        messages: list[Any] = [{"role": "user", "content": "what time is it?"}]
        (choice,) = (await there.chat(messages, tools=[CLOCK])).choices
        (call,) = choice.message.tool_calls
        assert json.loads(call.function.arguments) == {"zone": "UTC"}
        messages += [
            choice.message,
            {"role": "tool", "tool_call_id": call.id, "content": "noon"},
            {"role": "user", "content": "hello"},
        ]
        answer = await there.chat(messages, tools=[CLOCK])
        assert answer.choices[0].message.content == GREETING

    run(tmp_path, body)


def test_a_stream_with_tools_that_are_not_called_is_text(tmp_path: Path):
    async def body(there: Site) -> None:
        chunks = [chunk async for chunk in await there.chat(stream=True, tools=[CLOCK])]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == GREETING
        assert chunks[-1].choices[0].finish_reason == "stop"

    run(tmp_path, body)


# --- completions, models, health ------------------------------------------------------------------


def test_plain_prompts_are_continued(tmp_path: Path):
    async def body(there: Site) -> None:
        answer = await there.client.completions.create(
            model="scripted", prompt=["one", "two"], n=2, max_tokens=5, logprobs=1, temperature=0
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [len(choice.text) for choice in answer.choices] == [5] * 4
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len("one") + len("two")
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.text_offset == [0, 1, 2, 3, 4]

    run(tmp_path, body)


def test_a_plain_prompt_is_streamed(tmp_path: Path):
    async def body(there: Site) -> None:
        stream = await there.client.completions.create(
            model="scripted", prompt="one", max_tokens=5, stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert len("".join(chunk.choices[0].text for chunk in chunks)) == 5
        assert chunks[-1].choices[0].finish_reason == "length"

    run(tmp_path, body)


def test_models_are_listed_and_found_by_name(tmp_path: Path):
    async def body(there: Site) -> None:
        names = [model.id async for model in there.client.models.list()]
        assert "scripted" in names
        assert (await there.client.models.retrieve("scripted")).owned_by == "llmos"
        with pytest.raises(openai.NotFoundError):
            await there.client.models.retrieve("absent")

    run(tmp_path, body)


def test_health_tells_the_devices(tmp_path: Path):
    async def body(there: Site) -> None:
        await there.chat()
        async with httpx.AsyncClient() as client:
            health = (await client.get(f"{there.root}/health")).json()
        assert health["status"] == "ok"
        assert health["devices"]["scripted"] == "ready"

    run(tmp_path, body)


# --- refusals -------------------------------------------------------------------------------------


def test_an_unknown_model_is_not_found_and_the_known_are_named(tmp_path: Path):
    async def body(there: Site) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            await there.client.chat.completions.create(model="gpt-9", messages=HELLO)
        assert caught.value.code == "model_not_found"
        assert "scripted" in caught.value.message

    run(tmp_path, body)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_prompt_over_the_window_is_refused_with_both_counts(tmp_path: Path, is_streamed: bool):
    async def body(there: Site) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await there.chat([{"role": "user", "content": "x" * 3000}], stream=is_streamed)
        assert caught.value.code == "context_length_exceeded"
        fields = caught.value.body["fields"]  # type: ignore[index]
        assert fields["limit_tokens"] == WINDOW < fields["prompt_tokens"]

    run(tmp_path, body)


def test_a_spent_quota_is_too_many_requests_and_not_tried_again(tmp_path: Path):
    async def body(there: Site) -> None:
        client = there.client.with_options(max_retries=2)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="scripted", messages=HELLO)
        assert caught.value.code == "insufficient_quota"
        assert caught.value.response.headers["retry-after"] == "60"
        assert "tokens_in" in caught.value.message

    run(tmp_path, body, quota=Quota(tokens_in=3))


def test_a_full_queue_asks_to_come_back(tmp_path: Path):
    async def body(there: Site) -> None:
        with pytest.raises(openai.RateLimitError) as caught:
            await there.chat()
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.response.headers["x-should-retry"] == "true"

    run(tmp_path, body, max_queued=0)


def test_an_answer_that_is_not_done_by_its_deadline_is_dropped(tmp_path: Path):
    pace, clock = Pace(), VirtualClock()

    async def body(there: Site) -> None:
        client = there.client.with_options(max_retries=2)
        asking = asyncio.create_task(
            client.chat.completions.create(
                model="scripted", messages=ENDLESS, extra_body={"deadline_s": 5}
            )
        )
        await pace.stepping()
        clock.advance(6)
        pace.allow()
        with pytest.raises(openai.InternalServerError, match="deadline") as caught:
            await asking
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        assert await there.running() == []

    run(tmp_path, body, pace=pace, clock=clock)


def test_a_stream_whose_deadline_passes_ends_with_the_error(tmp_path: Path):
    pace, clock = Pace(), VirtualClock()

    async def body(there: Site) -> None:
        pace.allow(3)
        stream = await there.chat(ENDLESS, stream=True, extra_body={"deadline_s": 5})
        await anext(aiter(stream))
        clock.advance(6)
        pace.allow()
        with pytest.raises(openai.APIError, match="deadline") as caught:
            async for _ in stream:
                pass
        assert caught.value.code == "timeout"
        assert await there.running() == []

    run(tmp_path, body, pace=pace, clock=clock)


def test_an_image_is_refused_while_no_model_reads_it(tmp_path: Path):
    async def body(there: Site) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
        with pytest.raises(openai.BadRequestError) as caught:
            await there.chat([{"role": "user", "content": [image]}])
        assert caught.value.code == "not_available"

    run(tmp_path, body)


def test_a_schema_that_does_not_compile_is_a_bad_request(tmp_path: Path):
    async def body(there: Site) -> None:
        schema = {"name": "bad", "schema": {"type": "nonsense"}}
        with pytest.raises(openai.BadRequestError) as caught:
            await there.chat(response_format={"type": "json_schema", "json_schema": schema})
        assert "nonsense" in caught.value.message

    run(tmp_path, body)


def test_a_bias_for_a_token_that_is_none_is_a_bad_request(tmp_path: Path):
    async def body(there: Site) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await there.chat(logit_bias={"999999": 1})
        assert caught.value.param == "logit_bias"

    run(tmp_path, body)


def test_a_wrong_field_is_a_bad_request_that_names_it(tmp_path: Path):
    async def body(there: Site) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await there.chat(extra_body={"temprature": 1})
        assert caught.value.param == "temprature"

    run(tmp_path, body)


def test_what_is_no_request_is_refused_in_openais_form(tmp_path: Path):
    async def body(there: Site) -> None:
        chat = "/v1/chat/completions"
        as_json = {"content-type": "application/json"}
        async with httpx.AsyncClient(base_url=there.root) as client:
            refused = [
                (await client.post(chat, content=b"{", headers=as_json), 400),
                (await client.post(chat, content=b"x" * 200_000, headers=as_json), 413),
                (await client.post(chat, content=b"{}", headers={"content-type": "a/b"}), 415),
                (await client.post("/v1/nothing", json={}), 404),
                (await client.get(chat), 405),
            ]
        for answer, status in refused:
            assert answer.status_code == status
            assert answer.json()["error"]["type"] == "invalid_request_error"

    run(tmp_path, body)


def test_a_request_for_another_host_is_refused(tmp_path: Path):
    async def body(there: Site) -> None:
        async with httpx.AsyncClient(base_url=there.root) as client:
            assert (await client.get("/health")).status_code == 200
            elsewhere = await client.get("/health", headers={"host": "rebound.example:80"})
        assert elsewhere.status_code == 421

    run(tmp_path, body, hosts=("127.0.0.1", "localhost", "::1"))


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_device_that_fails_at_once_is_unavailable_and_then_works(
    tmp_path: Path, is_streamed: bool
):
    async def body(there: Site) -> None:
        there.driver.fail_next_step(DeviceError("out of memory"))
        with pytest.raises(openai.InternalServerError) as caught:
            await there.chat(stream=is_streamed)
        assert caught.value.status_code == 503
        assert (await there.chat()).choices[0].message.content == GREETING

    run(tmp_path, body)


def test_a_device_that_fails_in_a_stream_ends_it_with_the_error(tmp_path: Path):
    async def body(there: Site) -> None:
        stream = await there.chat(ENDLESS, stream=True)
        await anext(aiter(stream))
        there.driver.fail_next_step(DeviceError("out of memory"))
        with pytest.raises(openai.APIError, match="out of memory"):
            async for _ in stream:
                pass
        assert await there.running() == []

    run(tmp_path, body)


def test_a_request_that_somebody_kills_is_an_error(tmp_path: Path):
    async def body(there: Site) -> None:
        stream = await there.chat(ENDLESS, stream=True)
        await anext(aiter(stream))
        (pid,) = [p.pid for p in await there.kernel.os.ps() if p.program == "http.chat"]
        await there.kernel.os.signal(pid, "KILL")
        with pytest.raises(openai.APIError, match="killed"):
            async for _ in stream:
                pass

    run(tmp_path, body)


# --- processes and connections --------------------------------------------------------------------


def test_a_request_is_a_process_that_shows_its_client(tmp_path: Path):
    pace = Pace()

    async def body(there: Site) -> None:
        asking = asyncio.create_task(there.chat(n=2))
        await pace.stepping()
        running = await there.running()
        assert len(running) == 2
        assert all(line.startswith("http.chat 127.0.0.1:") for line in running)
        pace.allow()
        answer = await asking
        assert answer.id in running[0]
        assert await there.running() == []

    run(tmp_path, body, pace=pace)


def test_a_request_holds_the_capability_for_its_model_alone(tmp_path: Path):
    async def body(there: Site) -> None:
        stream = await there.chat(ENDLESS, stream=True)
        await anext(aiter(stream))
        (process,) = [p for p in await there.kernel.os.ps() if p.program == "http.chat"]
        held = {name: value for name, value in process.capabilities if value}
        assert held == {"models": frozenset({"scripted"})}
        await stream.close()

    run(tmp_path, body)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_goes_away_kills_its_process_within_an_iteration(
    tmp_path: Path, is_streamed: bool
):
    pace = Pace()

    async def body(there: Site) -> None:
        ending = asyncio.create_task(there.ended("http.chat"))
        asking = asyncio.create_task(there.chat(ENDLESS, stream=is_streamed))
        pace.allow(3)
        if is_streamed:
            stream = await asking
            await anext(aiter(stream))
            await stream.close()
        else:
            await pace.stepping()
            asking.cancel()
        assert await ending == "killed"
        assert await there.running() == []
        begun = pace.sampled
        pace.allow()
        await there.chat()
        # The greeting and its end are sampled, and no more of the other; what was under way is
        # counted above. How many steps a prompt takes depends on how fast the device was before.
        assert pace.sampled - begun == len(GREETING) + 1
        (device,) = (await there.kernel.os.stat()).devices
        assert (device.running, device.waiting) == (0, 0)

    run(tmp_path, body, pace=pace)


def test_a_client_that_goes_away_while_it_waits_is_taken_out_of_the_queue(tmp_path: Path):
    pace = Pace()

    async def body(there: Site) -> None:
        first = asyncio.create_task(there.chat())
        await pace.stepping()
        spawning = asyncio.create_task(there.spawned())
        ending = asyncio.create_task(there.ended("http.chat"))
        second = asyncio.create_task(there.chat(ENDLESS))
        await spawning
        second.cancel()
        assert await ending == "killed"
        pace.allow()
        assert (await first).choices[0].message.content == GREETING
        assert await there.running() == []

    run(tmp_path, body, pace=pace)


def test_many_clients_at_once_are_all_answered(tmp_path: Path):
    async def body(there: Site) -> None:
        answers = await asyncio.gather(*(there.chat() for _ in range(50)))
        assert {answer.choices[0].message.content for answer in answers} == {GREETING}
        assert await there.running() == []

    run(tmp_path, body)


def test_a_client_that_does_not_read_holds_up_nobody(tmp_path: Path):
    async def body(there: Site) -> None:
        ending = asyncio.create_task(there.ended("http.chat"))
        stream = await there.chat(ENDLESS, stream=True)  # and reads none of it
        assert await ending == "ok"
        answer = await there.chat()
        assert answer.choices[0].message.content == GREETING
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces).startswith("again again")

    run(tmp_path, body)


def test_a_server_that_ends_lets_its_requests_end(tmp_path: Path):
    pace = Pace()

    async def main() -> str:
        async with site(tmp_path, pace=pace) as there:
            asking = asyncio.create_task(there.chat())
            await pace.stepping()
            os.kill(os.getpid(), signal.SIGTERM)
            pace.allow()
            return (await asking).choices[0].message.content

    assert asyncio.run(main()) == GREETING


def test_an_address_that_is_taken_is_a_setting_to_change(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            asyncio.run(serve(llmos.Config(home=tmp_path), port=port))


def test_serving_by_configuration_ends_with_a_signal(tmp_path: Path):
    addresses: list[str] = []

    async def main() -> None:
        told = asyncio.Event()

        def on_ready(address: str) -> None:
            addresses.append(address)
            told.set()

        serving = asyncio.create_task(serve(llmos.Config(home=tmp_path), port=0, on_ready=on_ready))
        await told.wait()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{addresses[0]}/health")).json()["status"] == "ok"
        os.kill(os.getpid(), signal.SIGINT)
        await serving

    asyncio.run(main())


# --- real models ----------------------------------------------------------------------------------


@asynccontextmanager
async def real_site(home: Path) -> AsyncIterator[AsyncOpenAI]:
    """A client of a server over the default models."""
    small = llmos.ModelConfig(source="smollm2", driver="llama_cpp", context_tokens=512)
    async with llmos.boot(home=home, models={"smollm2": small}) as kernel:
        listening = socket.create_server(("127.0.0.1", 0))
        server = Server(create_app(kernel))
        serving = asyncio.create_task(server.serve([listening]))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        async with AsyncOpenAI(base_url=address, api_key="any", max_retries=0) as client:
            yield client
        server.should_exit = True
        await serving


@pytest.mark.model
def test_the_real_model_chats_streams_and_keeps_to_schemas(tmp_path: Path, smollm2_path: Path):
    paris: Any = [{"role": "user", "content": "Name the capital of France. Answer in one word."}]
    fields: Any = {"model": "smollm2", "messages": paris, "temperature": 0, "max_tokens": 12}

    async def main() -> None:
        async with real_site(tmp_path) as client:
            whole = await client.chat.completions.create(**fields)
            text = whole.choices[0].message.content
            assert text
            streamed = await client.chat.completions.create(stream=True, **fields)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in streamed]
            assert "".join(pieces) == text

            longer = fields | {"max_tokens": 60}
            colour = await client.chat.completions.parse(response_format=Colour, **longer)
            assert isinstance(colour.choices[0].message.parsed, Colour)
            call = await client.chat.completions.create(
                tools=[CLOCK], tool_choice="required", **longer
            )
            (request,) = call.choices[0].message.tool_calls or []
            assert json.loads(request.function.arguments)["zone"] in {"UTC", "CET"}

            plain = await client.completions.create(
                model="smollm2", prompt="One, two, three,", max_tokens=3, temperature=0
            )
            assert plain.choices[0].text.strip().startswith("four")

    asyncio.run(main())


@pytest.mark.model
def test_the_real_embeddings_tell_meanings_apart(tmp_path: Path, minilm_path: Path):
    texts = ["a cat on a mat", "a kitten on a rug", "the price of steel"]

    async def main() -> None:
        async with real_site(tmp_path) as client:
            embedded = await client.embeddings.create(model="minilm", input=texts)
            cat, kitten, steel = [entry.embedding for entry in embedded.data]
            assert dot(cat, kitten) > dot(cat, steel) + 0.2
            as_floats = await client.embeddings.create(
                model="minilm", input=texts[0], encoding_format="float", dimensions=384
            )
            assert as_floats.data[0].embedding == pytest.approx(cat, abs=1e-5)

            with pytest.raises(openai.BadRequestError, match="dimensions"):
                await client.embeddings.create(model="minilm", input="x", dimensions=100)
            with pytest.raises(openai.BadRequestError, match="blank"):
                await client.embeddings.create(model="minilm", input=["x", " "])
            with pytest.raises(openai.NotFoundError):
                await client.embeddings.create(model="smollm2", input="x")
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="minilm", messages=HELLO)

    asyncio.run(main())


@pytest.mark.model
def test_the_snippets_of_the_http_page_run(tmp_path: Path, smollm2_path: Path):
    page = Path(__file__).parents[2] / "docs" / "http.md"
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)

    async def main() -> None:
        async with real_site(tmp_path) as client:
            for snippet in snippets:
                code = snippet.replace("http://127.0.0.1:8080/v1", str(client.base_url))
                await asyncio.to_thread(exec, code, {})

    assert len(snippets) == 2
    asyncio.run(main())


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
