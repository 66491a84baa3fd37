"""The base of all calls: a value that names its result's type and is checked when it is made."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator

from llmos.syscalls.errors import invalid
from llmos.syscalls.values import Value

R = TypeVar("R")


class Call(Value, Generic[R]):
    """The base of all calls; `R` is the type of the result.

    A call that cannot be is never made: a wrong field raises `SyscallError("invalid")`, in a
    program that builds the value as well as on the wire.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as problem:
            raise invalid(problem) from problem
