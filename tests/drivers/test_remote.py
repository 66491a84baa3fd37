"""The remote driver against scripted answers: what is repeated, what is refused, what is closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from llmos.drivers.chat_model import (
    ChatEnd,
    ChatRequest,
    Conversation,
    PassingError,
    RemoteSpec,
    TooLongError,
)
from llmos.drivers.contract import DeviceError, RequestError
from llmos.drivers.remote import RemoteModel
from llmos.syscalls.content import user
from llmos.syscalls.options import Sampling

ASKED = ChatRequest(Conversation([user("hi")]), Sampling(), max_tokens=9, session="s")
Answer = httpx.Response | Exception


def events(*chunks: dict[str, Any] | str) -> httpx.Response:
    data = (chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks)
    return httpx.Response(200, content="".join(f"data: {one}\n\n" for one in data))


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 5},
    },
}
SPOKEN = (piece("Good "), piece("day", "stop"), USAGE, "[DONE]")


class Server:
    """Answers in order; the last one again and again."""

    def __init__(self, *answers: Callable[[], Answer], card: dict[str, Any] | None = None) -> None:
        self.card = {"id": "m", "owned_by": "vllm", **(card or {})}
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []
        self._answers = list(answers)

    def model(self, **settings: Any) -> RemoteModel:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        spec = RemoteSpec("far", "http://server/v1", "m", **settings)
        return RemoteModel(
            spec, sleep=sleep, draw=lambda: 1.0, transport=httpx.MockTransport(self._answer)
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [self.card]})
        if request.url.path == "/props":
            return httpx.Response(200, json={"total_slots": 2})
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        given = answer()
        if isinstance(given, Exception):
            raise given
        return given

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


async def ask(model: RemoteModel, request: ChatRequest = ASKED) -> list[str | ChatEnd]:
    await model.open()
    try:
        return [piece async for piece in model.stream(request)]
    finally:
        await model.close()


def run(server: Server, request: ChatRequest = ASKED, **settings: Any) -> list[str | ChatEnd]:
    return asyncio.run(ask(server.model(**settings), request))


def test_an_answer_comes_in_pieces_with_the_servers_own_counts() -> None:
    server = Server(lambda: events(*SPOKEN))
    *pieces, end = run(server)
    assert pieces == ["Good ", "day"]
    assert end == ChatEnd("stop", (), 12, 5, 2)


def test_tool_requests_are_put_together_from_their_pieces() -> None:
    def call(**function: str) -> dict[str, Any]:
        return {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": function}]}}]}

    server = Server(
        lambda: events(
            call(name="clock", arguments=""), call(arguments='{"zo'), call(arguments='ne": 1}'),
            piece("", "tool_calls"), "[DONE]",
        )
    )  # fmt: skip
    (end,) = run(server)
    assert isinstance(end, ChatEnd)
    assert end.finish == "tool_requests"
    assert end.requests[0].name == "clock"
    assert end.requests[0].arguments == {"zone": 1}


def test_a_tool_request_that_cannot_be_read_is_text() -> None:
    broken = {"choices": [{"delta": {"tool_calls": [
        {"index": 0, "function": {"name": "clock", "arguments": "{oops"}}]}}]}  # fmt: skip
    text, end = run(Server(lambda: events(broken, piece("", "tool_calls"), "[DONE]")))
    assert text == "<tool_call>clock {oops</tool_call>"
    assert isinstance(end, ChatEnd) and end.finish == "stop"


def test_what_may_pass_is_asked_again_after_growing_pauses() -> None:
    server = Server(
        lambda: httpx.Response(503),
        lambda: httpx.ConnectError("refused"),
        lambda: httpx.Response(429, headers={"retry-after": "7"}),
        lambda: events(*SPOKEN),
    )
    assert run(server)[:2] == ["Good ", "day"]
    assert server.pauses == [0.5, 1.0, 9.0]


def test_retries_come_to_an_end() -> None:
    server = Server(lambda: httpx.Response(500, json={"error": {"message": "no\nluck"}}))
    with pytest.raises(PassingError, match="no luck"):
        run(server, retries=2)
    assert len(server.requests) == 3


def test_a_server_that_is_gone_is_a_fatal_failure() -> None:
    server = Server(lambda: httpx.ConnectError("refused"))
    with pytest.raises(DeviceError, match="cannot be reached") as failed:
        run(server, retries=0)
    assert failed.value.is_fatal


@pytest.mark.parametrize("cut", [[piece("Good ")], [piece("Good "), {"error": {"message": "x"}}]])
def test_nothing_is_repeated_once_a_piece_is_out(cut: list[dict[str, Any]]) -> None:
    server = Server(lambda: events(*cut))
    seen: list[str | ChatEnd] = []

    async def body() -> None:
        model = server.model()
        await model.open()
        async for one in model.stream(ASKED):
            seen.append(one)

    with pytest.raises(DeviceError, match="broke off"):
        asyncio.run(body())
    assert seen == ["Good "]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "answer", "kind"),
    [
        (400, {"error": {"message": "bad"}}, RequestError),
        (400, {"error": {"message": "long", "code": "context_length_exceeded"}}, TooLongError),
        (401, {"error": "who?"}, DeviceError),
        (404, {}, DeviceError),
        (429, {"error": {"code": "insufficient_quota"}}, DeviceError),
        (302, {}, DeviceError),
    ],
)
def test_a_refusal_is_not_repeated(status: int, answer: Any, kind: type[Exception]) -> None:
    server = Server(lambda: httpx.Response(status, json=answer))
    with pytest.raises(kind) as failed:
        run(server)
    assert type(failed.value) is kind
    assert len(server.requests) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"choices": 3}', '{"choices": [3]}'])
def test_nonsense_from_a_server_is_a_device_error(text: str) -> None:
    with pytest.raises(DeviceError, match="no answer"):
        run(Server(lambda: events(text)))


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "hush-hush")
    server = Server(lambda: httpx.Response(401, json={"error": "no"}))
    with pytest.raises(DeviceError, match="FAR_KEY") as failed:
        run(server, key_variable="FAR_KEY")
    assert server.requests[0].headers["authorization"] == "Bearer hush-hush"
    assert "hush" not in str(failed.value)
    assert "hush" not in repr(server.requests[0].headers)


def test_a_variable_without_a_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAR_KEY", raising=False)
    with pytest.raises(DeviceError, match="FAR_KEY"):
        run(Server(lambda: events(*SPOKEN)), key_variable="FAR_KEY")


def test_a_model_that_is_not_there_is_named_with_those_that_are() -> None:
    server = Server(lambda: events(*SPOKEN), card={"id": "other"})
    with pytest.raises(DeviceError, match="'m'; known: other"):
        run(server)


def test_the_window_is_the_smaller_of_ours_and_the_servers() -> None:
    async def window(card: dict[str, Any]) -> int:
        model = Server(lambda: events(*SPOKEN), card=card).model(context_tokens=4096)
        await model.open()
        await model.close()
        return model.info.context_tokens

    assert asyncio.run(window({"max_model_len": 1000})) == 1000
    assert asyncio.run(window({"owned_by": "llamacpp", "meta": {"n_ctx": 9000}})) == 4096


def test_a_session_keeps_its_slot_and_its_header() -> None:
    server = Server(lambda: events(*SPOKEN), card={"owned_by": "llamacpp"})

    async def body() -> None:
        model = server.model(session_header="x-session")
        await model.open()
        for _ in range(3):
            async for _piece in model.stream(ASKED):
                pass
        await model.close()

    asyncio.run(body())
    assert len({sent["id_slot"] for sent in server.bodies}) == 1
    assert all(sent["cache_prompt"] for sent in server.bodies)
    assert {request.headers["x-session"] for request in server.requests} == {"s"}


class Endless(httpx.AsyncByteStream):
    """A body without end that knows whether it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunk = f"data: {json.dumps(piece('again '))}\n\n".encode()
        while not self.is_closed:
            yield chunk

    async def aclose(self) -> None:
        self.is_closed = True


def test_closing_the_iterator_closes_the_connection() -> None:
    endless = Endless()
    server = Server(lambda: httpx.Response(200, stream=endless))

    async def body() -> None:
        model = server.model()
        await model.open()
        async with aclosing(model.stream(ASKED)) as answer:
            async for _piece in answer:
                break
        assert endless.is_closed
        await model.close()

    asyncio.run(body())


def test_counts_before_a_call_are_near_the_length() -> None:
    model = Server(lambda: events(*SPOKEN)).model()
    texts: Sequence[str] = ["one two three", "naïve café"]
    for text in texts:
        assert 0 < len(model.tokenize(text)) <= len(text.encode())
    assert len(model.render(Conversation([user("one two three")]))) > len(
        model.tokenize("one two three")
    )
    assert not model.info.abilities.counts_exactly
