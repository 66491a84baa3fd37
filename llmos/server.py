"""The OpenAI-compatible HTTP face of a kernel.

Owns routes, streaming and the life of a connection: every request is a process (see
`http_process.py`), and a client that goes away takes its processes with it. What fields mean is
`openai_api.py`'s; what answers look like is `openai_answers.py`'s.

It protects against web pages that reach for a local server (the Host header and the content type
are checked) and against bodies that are too large; it does not know who its clients are.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llmos import http_process, label_api, openai_answers
from llmos.booting import boot
from llmos.http_stream import EventStream, results, while_connected
from llmos.kernel.settings import ANY
from llmos.label_api import ClassifyRequest, TagRequest
from llmos.openai_answers import Answer, ChatAnswer, CompletionAnswer
from llmos.openai_api import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerateRequest,
    parse,
)
from llmos.openai_calls import Target, chat_calls, completion_calls
from llmos.syscalls.calls import Classify, Embed, Generate, Tag
from llmos.syscalls.errors import ConfigError, SyscallError
from llmos.syscalls.learning_results import Classified, Tagged
from llmos.syscalls.results import Embedded, Generated, ModelVersion
from llmos.syscalls.values import JsonValue

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.kernel.kernel import Kernel

T = TypeVar("T")
L = TypeVar("L", Classified, Tagged)

MAX_BODY_BYTES = 4 * 1024 * 1024
GRACE_S = 10
_NOT_GENERATING = frozenset({"embedding", "task"})
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


# --- app ------------------------------------------------------------------------------------------


def create_app(
    kernel: Kernel, *, max_body_bytes: int = MAX_BODY_BYTES, hosts: Sequence[str] | None = None
) -> Starlette:
    """The HTTP endpoints of a kernel as an ASGI application, to be served or mounted in another.

    `hosts` are the names that a request's Host header may give; None is any. The application runs
    in the kernel's event loop and does not close the kernel.
    """
    face = _Face(kernel, max_body_bytes)
    return Starlette(
        routes=[
            Route("/health", face.health, methods=["GET"]),
            Route("/v1/models", face.models, methods=["GET"]),
            Route("/v1/models/{name:path}", face.model, methods=["GET"]),
            Route("/v1/chat/completions", face.chat, methods=["POST"]),
            Route("/v1/completions", face.completion, methods=["POST"]),
            Route("/v1/embeddings", face.embedding, methods=["POST"]),
            Route("/v1/classify", face.classify, methods=["POST"]),
            Route("/v1/tag", face.tag, methods=["POST"]),
        ],
        middleware=[] if hosts is None else [Middleware(_KnownHosts, hosts=hosts)],
        exception_handlers={
            SyscallError: _on_syscall_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_gone,
            Exception: _on_bug,
        },
    )


async def serve(
    config: Config,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Boot a kernel and serve it until SIGINT or SIGTERM; then let requests end, for a while.

    `port` 0 takes a free one; `on_ready` is told the address. Raises: ConfigError when the address
    cannot be had.
    """
    with _listen(host, port) as listening:
        async with boot(config) as kernel:
            app = create_app(kernel, hosts=_LOOPBACK if host in _LOOPBACK else None)
            if on_ready is not None:
                name = f"[{host}]" if ":" in host else host
                on_ready(f"http://{name}:{listening.getsockname()[1]}")
            await Server(app).serve([listening])


class Server(uvicorn.Server):
    """uvicorn, with a signal that ends it leaving time to close the kernel.

    Its own handler sends the signal once more when the server has ended, which would end us before
    the kernel.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        try:
            for number in signals:
                loop.add_signal_handler(number, self.handle_exit, number, None)
        except (RuntimeError, ValueError):  # not the main thread: whoever embeds us ends the server
            yield
            return
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as problem:
        raise ConfigError(
            "port", f"cannot listen on {host} port {port}: {problem.strerror}; choose another"
        ) from problem


# --- endpoints ------------------------------------------------------------------------------------


class _Face:
    def __init__(self, kernel: Kernel, max_body_bytes: int) -> None:
        self._kernel = kernel
        self._max_body_bytes = max_body_bytes
        self._programs = http_process.RequestPrograms(kernel)

    async def health(self, request: Request) -> Response:
        """The kernel lives, and in what state its devices are."""
        info = await self._kernel.os.stat()
        devices = {device.name: device.state for device in info.devices}
        return _json(
            {
                "status": "degraded" if "down" in devices.values() else "ok",
                "devices": devices,
                "processes": info.processes,
                "uptime_s": info.uptime_s,
            }
        )

    async def models(self, request: Request) -> Response:
        versions = await self._kernel.os.model_list()
        return _json(
            {"object": "list", "data": [openai_answers.model(version) for version in versions]}
        )

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        versions = {version.name: version for version in await self._kernel.os.model_list()}
        if name not in versions:
            raise _unknown(name, list(versions))
        return _json(openai_answers.model(versions[name]))

    async def chat(self, request: Request) -> Response:
        asked = parse(ChatRequest, await self._body(request))
        target = await self._target(asked.model)
        calls = chat_calls(asked, target)
        answer = ChatAnswer(
            openai_answers.head("chatcmpl", target.name),
            has_tools=bool(calls[0].tool_specs),
            can_call_many=asked.parallel_tool_calls,
        )
        return await self._generate(request, "http.chat", asked, target, calls, answer)

    async def completion(self, request: Request) -> Response:
        asked = parse(CompletionRequest, await self._body(request))
        target = await self._target(asked.model)
        answer = CompletionAnswer(openai_answers.head("cmpl", target.name), per_prompt=asked.n)
        return await self._generate(
            request, "http.completion", asked, target, completion_calls(asked, target), answer
        )

    async def embedding(self, request: Request) -> Response:
        asked = parse(EmbeddingRequest, await self._body(request))
        texts = (asked.input,) if isinstance(asked.input, str) else tuple(asked.input)
        job = self._programs.request(
            "http.embedding",
            f"embd-{uuid.uuid4().hex}",
            [Embed(texts=texts, model=asked.model)],
            client=_client(request),
            user=_host(request),
            model=asked.model,
        )
        found = await while_connected(results(job, Embedded), request.receive)
        if found is None:
            return _gone()
        (embedded,) = found
        if asked.dimensions not in (None, embedded.dimensions):
            raise SyscallError(
                "not_available",
                f"dimensions: {asked.model} gives {embedded.dimensions}, no other number",
                field="dimensions",
            )
        return _json(openai_answers.embeddings(embedded, asked.encoding_format))

    async def classify(self, request: Request) -> Response:
        asked = parse(ClassifyRequest, await self._body(request))
        found = await self._labelled(request, asked.call(), Classified)
        return _gone() if found is None else _json(label_api.classified(found))

    async def tag(self, request: Request) -> Response:
        asked = parse(TagRequest, await self._body(request))
        found = await self._labelled(request, asked.call(), Tagged)
        return _gone() if found is None else _json(label_api.tagged(found))

    async def _labelled(self, request: Request, call: Classify | Tag, shape: type[L]) -> L | None:
        """A task model's answer; None when the client has gone."""
        job = self._programs.request(
            f"http.{call.op}",
            f"{call.op}-{uuid.uuid4().hex}",
            [call],
            client=_client(request),
            user=_host(request),
            model=call.model,
        )
        found = await while_connected(results(job, shape), request.receive)
        return None if found is None else found[0]

    async def _generate(
        self,
        request: Request,
        program: str,
        asked: GenerateRequest,
        target: Target,
        calls: Sequence[Generate],
        answer: Answer,
    ) -> Response:
        job = self._programs.request(
            program,
            answer.id,
            calls,
            client=_client(request),
            user=asked.user or _host(request),
            nice=asked.nice,
            model=target.model,
            is_streamed=asked.stream,
        )
        if asked.stream:
            return EventStream(job, answer, tells_usage=asked.stream_options.include_usage)
        found = await while_connected(results(job, Generated), request.receive)
        return _gone() if found is None else _json(answer.whole(found))

    async def _target(self, name: str) -> Target:
        """What a model's name means. Raises: SyscallError("unknown_model")."""
        if name == ANY or name in self._kernel.settings.classes:
            return Target(name, name)
        versions = {version.name: version for version in await self._kernel.os.model_list()}
        version = versions.get(name)
        if version is None or version.kind in _NOT_GENERATING:
            known = [one.name for one in versions.values() if one.kind not in _NOT_GENERATING]
            raise _unknown(name, known)
        if version.kind == "adapter":
            return Target(
                name,
                _model_of(version, versions.values(), self._kernel.settings.default_model),
                name,
            )
        return Target(name, name)

    async def _body(self, request: Request) -> bytes:
        """The body of a request. Raises: HTTPException when it is too large or not JSON."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise HTTPException(
                    413, f"the body is larger than the limit of {self._max_body_bytes} bytes"
                )
        return bytes(body)


def _client(request: Request) -> str:
    return f"{request.client.host}:{request.client.port}" if request.client else "unknown"


def _host(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _model_of(adapter: ModelVersion, versions: Iterable[ModelVersion], default: str | None) -> str:
    """The model that an adapter runs on: the default one where it has the adapter's base."""
    fitting = [
        version.name
        for version in versions
        if version.kind == "model" and adapter.base in (version.base, version.name)
    ]
    if not fitting:
        raise SyscallError(
            "not_available",
            f"model: no configured model has {adapter.base}, the base of adapter {adapter.name}",
            field="model",
        )
    return default if default in fitting else fitting[0]


def _unknown(name: str, known: list[str]) -> SyscallError:
    return SyscallError(
        "unknown_model",
        f"there is no model {name!r}; known: {', '.join(known)}",
        name=name,
        known=known,
    )


# --- errors ---------------------------------------------------------------------------------------


def _json(
    value: JsonValue, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return JSONResponse(value, status, headers)


def _gone() -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_gone(request: Request, problem: Exception) -> Response:
    return _gone()


async def _on_syscall_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, SyscallError)
    status = openai_answers.status(problem)
    headers = {"x-should-retry": "true" if status.can_retry else "false"}
    known = problem.fields.get("retry_after_s")
    wait_s = known if isinstance(known, float) else status.retry_after_s
    if wait_s is not None:
        headers["retry-after"] = str(math.ceil(wait_s))
    return _json(openai_answers.error_answer(problem), status.http, headers)


async def _on_http_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    kind = "invalid_request_error"
    return _json(
        openai_answers.error_object(problem.detail, kind), problem.status_code, problem.headers
    )


async def _on_bug(request: Request, problem: Exception) -> Response:
    """Starlette raises the exception on, to the server's log, after this was sent."""
    message = "an error of llmos itself; its log has the details"
    return _json(openai_answers.error_object(message, "server_error"), 500)


class _KnownHosts:
    """Refuses requests for another host: a web page that has its own name point here sends one."""

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and Request(scope).url.hostname not in self._hosts:
            message = f"this server answers for {', '.join(sorted(self._hosts))} only"
            answer = openai_answers.error_object(message, "invalid_request_error")
            await _json(answer, 421)(scope, receive, send)
            return
        await self._app(scope, receive, send)
