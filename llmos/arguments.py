"""Words that a person typed, as the JSON arguments of a program.

A word that is JSON is that value, `name=word` is a keyword argument, a word that looks like a path
and exists becomes absolute (a process's own working folder is its home, not the person's), and
anything else is a string.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmos.syscalls.errors import ConfigError
from llmos.syscalls.trap import ProgramFunction
from llmos.syscalls.values import JsonObject, JsonValue

_KEYWORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_DOTS = (".", "..")


class Arguments(NamedTuple):
    args: tuple[JsonValue, ...]
    kwargs: JsonObject


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Positional and keyword arguments; a JSON string such as '"a=b"' is always positional."""
    args: list[JsonValue] = []
    kwargs: JsonObject = {}
    for word in words:
        keyword = _KEYWORD.fullmatch(word)
        if keyword:
            kwargs[keyword[1]] = parse_value(keyword[2])
        else:
            args.append(parse_value(word))
    return Arguments(tuple(args), kwargs)


def parse_value(word: str) -> JsonValue:
    """One word as a JSON value, an absolute path or a string."""
    try:
        return json.loads(word, parse_constant=_not_json)
    except ValueError:
        return _absolute(word)


def load_program(name: str) -> str | ProgramFunction:
    """A program as `spawn` takes it: `agent.py` and `agent.py:function` become the function.

    Without a function's name it is `main`. Raises: ConfigError when the file or function is not
    there, or the file cannot be executed.
    """
    file_name, _, function_name = name.partition(":")
    if not file_name.endswith(".py"):
        return name
    path = Path(file_name).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(name, "there is no such file")
    wanted = function_name or "main"
    function = getattr(_execute(path), wanted, None)
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(
            name, f"the file has no async function {wanted!r}; name one as FILE.py:FUNCTION"
        )
    return function


# --- internals ------------------------------------------------------------------------------------


def _not_json(word: str) -> JsonValue:
    raise ValueError(f"{word} is Python's, not JSON")


def _absolute(word: str) -> str:
    looks_like_path = word in _DOTS or "/" in word or ("." in word and " " not in word)
    if not looks_like_path:
        return word
    path = Path(word).expanduser()
    try:
        return str(path.resolve()) if path.exists() else word
    except OSError:  # longer than a path can be: prose
        return word


def _execute(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(str(path), "this is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise ConfigError(
            str(path), f"the file does not run: {type(problem).__name__}: {problem}"
        ) from problem
    return module
