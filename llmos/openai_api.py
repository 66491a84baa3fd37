"""The wire types of the OpenAI-compatible endpoints, and how a request body becomes one of them.

Owns the decision which fields are served, which are without effect here, and which are refused
because ignoring them would change what the answer means. Refuses to know the kernel: a wrong body
becomes a `SyscallError` that names the field, as any other refused call does.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
)

from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject, JsonValue

# Fields that say something about the request's bookkeeping or speed, never about its answer.
_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
    }
)

# Fields that would change the answer and are not served, with the values that leave it as it is.
_NOT_SERVED: dict[str, tuple[JsonValue, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none",),
    "store": (False,),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_REMEDIES = {"functions": "use tools", "function_call": "use tool_choice"}


# JSON can spell half of a character, which no text may hold.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Wire(BaseModel):
    """The base of everything that a client sends: exact JSON types, no unknown fields."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


# --- messages -------------------------------------------------------------------------------------


class TextContent(Wire):
    type: Literal["text"]
    text: str


class RefusalContent(Wire):
    type: Literal["refusal"]
    refusal: str


class ImageUrl(Wire):
    """`detail` is a hint for models that scale images; ours take them as they are."""

    url: str
    detail: str | None = None


class ImageContent(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Wire):
    """`data` is base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioContent(Wire):
    type: Literal["input_audio"]
    input_audio: InputAudio


class FileContent(Wire):
    type: Literal["file"]
    file: JsonObject


Content = Annotated[
    TextContent | RefusalContent | ImageContent | AudioContent | FileContent,
    Field(discriminator="type"),
]


def _is_text(value: object) -> Literal["text", "list"]:
    return "text" if isinstance(value, str) else "list"


class FunctionCall(Wire):
    """`arguments` is a JSON object written as a string."""

    name: str
    arguments: str


class ToolCallItem(Wire):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class WireMessage(Wire):
    """One message; which fields a role needs is checked where it becomes a `Message`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag("text")] | Annotated[list[Content], Tag("list")],
            Discriminator(_is_text),
        ]
        | None
    ) = None
    name: str | None = None
    tool_calls: list[ToolCallItem] | None = None
    tool_call_id: str | None = None
    # An assistant message that a client sends back holds these; they are empty here.
    refusal: str | None = None
    annotations: list[JsonValue] | None = None


# --- tools and formats ----------------------------------------------------------------------------


class FunctionSpec(Wire):
    """`strict` holds for arguments when the call is forced; see docs/http.md."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, schema: JsonObject | None) -> JsonObject | None:
        if schema and not isinstance(schema.get("properties", {}), dict):
            raise ValueError("properties is an object of schemas by name")
        if schema and not isinstance(schema.get("required", []), list):
            raise ValueError("required is a list of names")
        return schema


class ToolItem(Wire):
    type: Literal["function"]
    function: FunctionSpec


class FunctionName(Wire):
    name: str


class NamedTool(Wire):
    type: Literal["function"]
    function: FunctionName


class AllowedSet(Wire):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedTools(Wire):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedSet


def _choice_kind(value: Any) -> str:
    is_named = isinstance(value, dict) and value.get("type") == "function"
    return "word" if isinstance(value, str) else "named" if is_named else "allowed"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[NamedTool, Tag("named")]
    | Annotated[AllowedTools, Tag("allowed")],
    Discriminator(_choice_kind),
]


class TextFormat(Wire):
    type: Literal["text"]


class JsonObjectFormat(Wire):
    type: Literal["json_object"]


class JsonSchemaSpec(Wire):
    """The name and description are for models that were trained to read them."""

    name: str
    description: str | None = None
    json_schema: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: JsonSchemaSpec


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


# --- requests -------------------------------------------------------------------------------------


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: bool = False


class GenerateRequest(Wire):
    """What chat and plain completions share.

    `top_k`, `min_p`, `repetition_penalty`, `nice` and `deadline_s` are additions: `deadline_s`
    seconds on, nobody waits for the answer any more. `user` is who gets a fair share and whose
    conversations share KV; without it, that is all who call from one address.

    The defaults are OpenAI's: temperature 1, not the greedy choice of `os.generate`.
    """

    model: str
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=10.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] = {}
    seed: int | None = None
    stop: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[str], Tag("list")], Discriminator(_is_text)
    ] = []
    n: int = Field(default=1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = None
    nice: int = Field(default=0, ge=-20, le=19)
    deadline_s: float | None = Field(default=None, gt=0.0)


class ChatRequest(GenerateRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[WireMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat = TextFormat(type="text")
    tools: list[ToolItem] = []
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True


class CompletionRequest(GenerateRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[str], Tag("list")], Discriminator(_is_text)
    ]
    max_tokens: int = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)


class EmbeddingRequest(Wire):
    """The body of POST /v1/embeddings."""

    model: str
    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[str], Field(min_length=1), Tag("list")],
        Discriminator(_is_text),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)


# --- from bytes to a request ----------------------------------------------------------------------

W = TypeVar("W", bound=Wire)


def parse(shape: type[W], body: bytes) -> W:
    """The request that a body holds; a field that is null counts as not given.

    Raises: SyscallError("invalid") naming the first wrong field; "not_available" naming a field
    that would change the answer and is not served.
    """
    try:
        data: Any = json.loads(body, parse_constant=_refuse_constant)
        if _SURROGATE.search(body):
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeError as problem:
        raise SyscallError("invalid", f"the body holds half a character: {problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise SyscallError("invalid", f"the body is not JSON: {problem}") from problem
    if not isinstance(data, dict):
        raise SyscallError("invalid", "the body is not a JSON object")
    given: JsonObject = {name: value for name, value in data.items() if value is not None}
    try:
        return shape.model_validate(_served(shape, given))
    except ValidationError as problem:
        raise _invalid(problem, given) from problem


def _served(shape: type[Wire], given: JsonObject) -> JsonObject:
    kept: JsonObject = {}
    for name, value in given.items():
        if name in shape.model_fields:
            kept[name] = value
        elif name in _NOT_SERVED and value not in _NOT_SERVED[name]:
            remedy = _REMEDIES.get(name, "leave it out")
            raise SyscallError("not_available", f"{name} is not served here; {remedy}", field=name)
        elif name not in _WITHOUT_EFFECT and name not in _NOT_SERVED:
            raise SyscallError("invalid", f"{name}: there is no such field", field=name)
    return kept


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _invalid(problem: ValidationError, given: JsonObject) -> SyscallError:
    first = problem.errors(include_url=False, include_input=False)[0]
    field = _field(first["loc"], given, is_missing=first["type"] == "missing")
    message = first["msg"].removeprefix("Value error, ")
    return SyscallError("invalid", f"{field}: {message}", field=field)


def _field(location: tuple[str | int, ...], given: JsonValue, *, is_missing: bool) -> str:
    """A location as the client wrote it: pydantic's names of union branches are left out."""
    path: list[str] = []
    here: Any = given
    for part in location:
        is_key = isinstance(here, dict) and part in here
        is_place = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if is_key or is_place:
            here = cast(Any, here)[part]
            path.append(str(part))
    if is_missing:
        path.append(str(location[-1]))
    return ".".join(path) or "body"
