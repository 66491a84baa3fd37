"""Tools from typed Python functions.

A tool's schema comes from its signature and docstring; what a model wrote is validated against it
before the function runs. A function whose first parameter is named `os` receives the handle of the
calling process, so that its syscalls count as the caller's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from llmos.syscalls.errors import ConfigError, SyscallError
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.values import JsonObject


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that agents may call, with its limits."""

    spec: ToolSpec
    function: Callable[..., Any]
    arguments: type[BaseModel]
    wants_handle: bool
    timeout_s: float = 30.0
    max_output_chars: int = 8_000

    def validate(self, arguments: JsonObject) -> dict[str, Any]:
        """Arguments as keyword arguments of the function.

        Raises: SyscallError("tool_invalid") listing each problem, for the model to act on.
        """
        try:
            checked = self.arguments.model_validate(arguments)
        except ValidationError as problem:
            problems = [
                f"{'.'.join(str(part) for part in error['loc']) or 'arguments'}: {error['msg']}"
                for error in problem.errors(include_url=False, include_input=False)
            ]
            raise SyscallError(
                "tool_invalid",
                f"{self.spec.name} was called with wrong arguments: {'; '.join(problems)}",
                tool=self.spec.name,
                problems=problems,
            ) from problem
        return {name: getattr(checked, name) for name in type(checked).model_fields}


def tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    timeout_s: float = 30.0,
    max_output_chars: int = 8_000,
) -> Tool:
    """A tool made from a function: parameters need types, the docstring is its description.

    Raises: ConfigError when a parameter has no type or the docstring is missing.
    """
    tool_name = name or function.__name__
    description = inspect.getdoc(function)
    if not description:
        raise ConfigError(f"tool {tool_name}", "write a docstring: the model chooses by it")
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    parameters = list(inspect.signature(function).parameters.values())
    wants_handle = bool(parameters) and parameters[0].name == "os"
    for parameter in parameters[1:] if wants_handle else parameters:
        if parameter.name not in hints:
            raise ConfigError(f"tool {tool_name}", f"give parameter {parameter.name} a type")
        has_default = parameter.default is not inspect.Parameter.empty
        fields[parameter.name] = (
            hints[parameter.name],
            parameter.default if has_default else ...,
        )
    model = create_model(tool_name, __config__=ConfigDict(extra="forbid"), **fields)
    schema = model.model_json_schema()
    schema.pop("title", None)
    return Tool(
        spec=ToolSpec(name=tool_name, description=description, parameters=schema),
        function=function,
        arguments=model,
        wants_handle=wants_handle,
        timeout_s=timeout_s,
        max_output_chars=max_output_chars,
    )
