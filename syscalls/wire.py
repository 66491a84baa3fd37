"""The JSON form of calls, results and errors, and the JSON Schema of the whole ABI.

Validates at the edge: what comes in from an untrusted program either becomes a value or a
`SyscallError(code="invalid")` that names the field.
"""

from __future__ import annotations

import json
import types
from functools import cache
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from llmos.syscalls.calls import AnySyscall, Call, Syscall
from llmos.syscalls.errors import SyscallError, invalid
from llmos.syscalls.values import JsonObject, Value

CALL_TYPES: tuple[type[Call[Any]], ...] = get_args(Syscall)


@cache
def _call_adapter() -> TypeAdapter[Any]:
    return TypeAdapter(AnySyscall)


def op_of(call_type: type[Call[Any]]) -> str:
    """The wire name of a call type."""
    return call_type.model_fields["op"].default


def result_type(call_type: type[Call[Any]]) -> type[Value]:
    """The result type that a call type declares."""
    for base in call_type.__mro__:
        metadata: Any = getattr(base, "__pydantic_generic_metadata__", None)
        if metadata and metadata["args"]:
            (result,) = metadata["args"]
            return result
    raise TypeError(f"{call_type.__name__} declares no result type")


def encode(value: Value) -> JsonObject:
    """A call, result or error as a JSON-serialisable object.

    Raises: SyscallError("invalid") when it holds something that JSON cannot.
    """
    try:
        return json.loads(value.model_dump_json(), parse_constant=_refuse_constant)
    except ValueError as problem:
        raise SyscallError(
            "invalid", f"a value cannot be written as JSON: {problem}", field=type(value).__name__
        ) from problem


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def decode_call(data: JsonObject) -> Syscall:
    """The call that a JSON object stands for. Raises: SyscallError("invalid")."""
    try:
        # JSON mode: bytes are base64 and tuples are arrays.
        return _call_adapter().validate_json(json.dumps(data))
    except ValidationError as problem:
        raise invalid(problem) from problem


def decode_result(call_type: type[Call[Any]], data: JsonObject) -> Value:
    """The result of a call of `call_type` from its JSON object."""
    try:
        return result_type(call_type).model_validate_json(json.dumps(data))
    except ValidationError as problem:
        raise invalid(problem) from problem


def json_value(value: Any) -> Any:
    """A program's argument or return value in its JSON form (values become objects).

    Raises: SyscallError("invalid") naming the type that JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Value):
        return encode(value)
    if isinstance(value, dict):
        items: Any = value.items()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return {str(key): json_value(item) for key, item in items}
    if isinstance(value, list | tuple | types.GeneratorType):
        return [json_value(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    raise SyscallError(
        "invalid",
        f"a {type(value).__name__} cannot cross the syscall boundary; use JSON values",
        field=type(value).__name__,
    )


def abi_schema() -> JsonObject:
    """The JSON Schema of every call and its result, by wire name."""
    calls = {
        op_of(call_type): {
            "call": call_type.model_json_schema(),
            "result": result_type(call_type).model_json_schema(),
        }
        for call_type in CALL_TYPES
    }
    return {"title": "llmos syscall ABI", "version": 1, "calls": calls}
