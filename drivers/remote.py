"""A model behind a server that speaks OpenAI's protocol: vLLM, llama-server, another llmos.

Owns the connection: who may retry what, how long to wait, and that a generation nobody reads ends
at the server too (its connection is closed). What was not answered yet is asked again after a
pause that doubles and is drawn at random, so that many clients do not come back at once; once a
piece of the answer is out, nothing is repeated.

It does not protect against a server that lies about its counts. The key goes to the configured
address only: redirects are not followed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from llmos.drivers.chat_model import (
    ChatEnd,
    ChatRequest,
    Conversation,
    PassingError,
    RemoteSpec,
    TooLongError,
)
from llmos.drivers.contract import Abilities, DeviceError, ModelInfo, RequestError
from llmos.drivers.plain_tokens import PLAIN_ENCODING, plain_tokens
from llmos.drivers.remote_dialect import OPENAI, dialect_of
from llmos.drivers.remote_slots import Slots
from llmos.drivers.remote_wire import AnswerReader, body_of, error_text, plain_text
from llmos.drivers.server_events import EventReader
from llmos.drivers.tool_text import describe_tools

CONNECT_S = 5.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# What may pass by itself.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error", "maximum context length")

_ABILITIES = Abilities(
    can_fork=False,
    can_trim=False,
    can_save=False,
    can_attach=False,
    is_deterministic=False,
    counts_exactly=False,
)


class RemoteModel:
    """The remote model. Satisfies `ChatModel`, whose docstrings hold here."""

    def __init__(
        self,
        spec: RemoteSpec,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._spec = spec
        self._sleep = sleep
        self._draw = draw
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._dialect = OPENAI
        self._slots = Slots(0)
        self._window = spec.context_tokens

    @property
    def info(self) -> ModelInfo:
        spec = self._spec
        return ModelInfo(
            name=spec.model,
            driver="remote",
            device=httpx.URL(spec.url).netloc.decode("ascii"),
            architecture=self._dialect.name,
            parameters=0,
            vocabulary=0,
            context_tokens=self._window,
            sequences=spec.concurrency,
            batch_tokens=self._window,
            kv_bytes_per_token=0,
            end_tokens=frozenset(),
            weights_format="",
            abilities=_ABILITIES,
        )

    @property
    def tokenizer(self) -> str:
        return PLAIN_ENCODING

    def tokenize(self, text: str) -> list[int]:
        return plain_tokens(text)

    def render(self, conversation: Conversation) -> list[int]:
        if conversation.prompt is not None:
            return plain_tokens(conversation.prompt)
        tools = f"{describe_tools(conversation.tools)}\n" if conversation.tools else ""
        text = f"{tools}{plain_text(conversation.messages)}\nassistant: {conversation.prefix}"
        return plain_tokens(text)

    def check(self, request: ChatRequest) -> None:
        body_of(request, self._dialect, model=self._spec.model)

    async def open(self) -> None:
        spec = self._spec
        is_new = self._client is None
        if is_new:
            self._client = httpx.AsyncClient(
                base_url=spec.url.rstrip("/") + "/",
                headers=self._headers(),
                timeout=httpx.Timeout(spec.timeout_s, connect=CONNECT_S, pool=None),
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=spec.concurrency
                ),
                transport=self._transport,
            )
        try:
            card = await self._card()
            self._dialect = dialect_of(card)
            windows = (card.get("max_model_len"), (card.get("meta") or {}).get("n_ctx"))
            told = [window for window in windows if isinstance(window, int) and window > 0]
            self._window = min([spec.context_tokens, *told])
            if self._dialect.has_slots and is_new:
                self._slots = Slots(await self._count_slots())
        except BaseException:
            if is_new:
                await self.close()
            raise

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | ChatEnd]:
        is_plain = request.conversation.prompt is not None
        body = body_of(request, self._dialect, model=self._spec.model)
        slot = self._slots.take(request.session)
        if slot is not None:
            body |= {"id_slot": slot, "cache_prompt": True}
        headers: dict[str, str] = {}
        if self._spec.session_header is not None:
            headers[self._spec.session_header] = request.session
        path = "completions" if is_plain else "chat/completions"
        try:
            async with aclosing(self._persistent(path, body, headers)) as answer:
                async for piece in answer:
                    yield piece
        finally:
            if slot is not None:
                self._slots.give_back(slot)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # --- internals --------------------------------------------------------------------------------

    async def _persistent(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncGenerator[str | ChatEnd]:
        for attempt in itertools.count():
            is_begun = False
            try:
                async with aclosing(self._once(path, body, headers)) as answer:
                    async for piece in answer:
                        is_begun = True
                        yield piece
                return
            except PassingError as problem:
                if is_begun or attempt >= self._spec.retries:
                    raise
                pause_s = self._pause(attempt, problem.after_s)
            await self._sleep(pause_s)

    async def _once(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncGenerator[str | ChatEnd]:
        events, reader = EventReader(), AnswerReader()
        try:
            async with self._connected.stream(
                "POST", path, json=dict(body), headers=dict(headers)
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise self._refusal(response)
                async for chunk in response.aiter_bytes():
                    for data in events.push(chunk):
                        if text := reader.take(data):
                            yield text
                    if reader.is_done:
                        break
        except httpx.TimeoutException as problem:
            raise self._unreachable(problem) from problem
        except httpx.TransportError as problem:
            raise PassingError(str(self._unreachable(problem)), is_fatal=True) from problem
        except (httpx.HTTPError, ValueError) as problem:
            raise DeviceError(f"the answer of {self._spec.url} is unusable: {problem}") from problem
        rest, end = reader.end()
        if rest:
            yield rest
        yield end

    async def _card(self) -> Mapping[str, Any]:
        """What the server says of the model."""
        spec = self._spec
        response = await self._get("models")
        if response.status_code in (404, 405, 501):  # no such list; the first request will tell
            return {}
        if not response.is_success:
            raise self._refusal(response)
        try:
            cards: list[dict[str, Any]] = response.json()["data"]
            found = next((card for card in cards if card.get("id") == spec.model), None)
            known = ", ".join(str(card.get("id")) for card in cards)
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise DeviceError(f"{spec.url} does not speak OpenAI's protocol") from problem
        if found is None:
            raise DeviceError(f"{spec.url} has no model {spec.model!r}; known: {known[:300]}")
        return found

    async def _count_slots(self) -> int:
        """The slots of a llama-server; 0 where it does not tell."""
        url = httpx.URL(self._spec.url)
        response = await self._get(
            str(url.copy_with(path=url.path.rstrip("/").removesuffix("/v1") + "/props"))
        )
        try:
            return int(response.json()["total_slots"])
        except (ValueError, TypeError, KeyError):
            return 0

    async def _get(self, path: str) -> httpx.Response:
        try:
            return await self._connected.get(path)
        except httpx.HTTPError as problem:
            raise self._unreachable(problem) from problem

    @property
    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            raise DeviceError(f"the connection to {self._spec.url} is closed", is_fatal=True)
        return self._client

    def _headers(self) -> dict[str, str]:
        variable = self._spec.key_variable
        if variable is None:
            return {}
        key = os.environ.get(variable)
        if not key:
            raise DeviceError(f"the environment variable {variable} holds no key")
        return {"Authorization": f"Bearer {key}"}

    def _pause(self, attempt: int, after_s: float | None) -> float:
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        return (after_s or 0.0) + self._draw() * longest

    def _unreachable(self, problem: Exception) -> DeviceError:
        why = str(problem) or type(problem).__name__
        return DeviceError(f"{self._spec.url} cannot be reached: {why}", is_fatal=True)

    def _refusal(self, response: httpx.Response) -> DeviceError:
        """A status that is no success, as an error; the answer has been read."""
        status, text = response.status_code, error_text(_json(response))
        told = f"{self._spec.url} answers {status}: {text}"
        if any(mark in response.text for mark in _TOO_LONG):
            return TooLongError(told, field="messages")
        if status in (401, 403):
            key = self._spec.key_variable or "no key is configured: set api_key_env"
            return DeviceError(f"{told} (the key is that of {key})")
        if status in _PASSING and "insufficient_quota" not in response.text:
            return PassingError(told, after_s=_retry_after_s(response))
        if status in (400, 413, 422):
            return RequestError(told, field="messages")
        return DeviceError(told)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _retry_after_s(response: httpx.Response) -> float | None:
    """The server's wish in seconds, bounded; a date is not read."""
    try:
        return min(LONGEST_PAUSE_S, max(0.0, float(response.headers["retry-after"])))
    except (KeyError, ValueError):
        return None
