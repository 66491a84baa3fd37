"""Words that a person typed, as the JSON arguments of a program.

A word that is JSON is that value, `name=word` is a keyword argument, a word that names an existing
folder or file becomes an absolute path (a process's own working folder is its home, not the
person's), and anything else is a string.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from llmos.exits import UsageError
from llmos.syscalls.trap import ProgramFunction
from llmos.syscalls.values import JsonObject, JsonValue

_KEYWORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


# Program files by path: when they had last changed as they were executed, and what came of it.
_executed: dict[Path, tuple[int, ModuleType]] = {}


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

    Without a function's name it is `main`. Raises: UsageError when the file or function is not
    there, or the file cannot be executed.
    """
    file_name, _, function_name = name.partition(":")
    if not file_name.endswith(".py"):
        return name
    path = Path(file_name).expanduser().absolute()
    if not path.is_file():
        raise UsageError(f"{name}: there is no such file")
    wanted = function_name or "main"
    function = getattr(_execute(path), wanted, None)
    if not inspect.iscoroutinefunction(function):
        raise UsageError(
            f"{name}: the file has no async function {wanted!r}; name one as FILE.py:FUNCTION"
        )
    return function


def usage(name: str, function: ProgramFunction) -> str:
    """How a program is called: `documents FOLDER [QUESTIONS...] [model=...]`."""
    _, *parameters = inspect.signature(function).parameters.values()  # the first is its handle
    return " ".join([name, *(_shown(parameter) for parameter in parameters)])


def check_arguments(name: str, function: ProgramFunction, arguments: Arguments) -> None:
    """Raises: UsageError when a program cannot be called with these arguments."""
    try:
        inspect.signature(function).bind(None, *arguments.args, **arguments.kwargs)
    except TypeError as problem:
        raise UsageError(f"{name}: {problem}; usage: {usage(name, function)}") from problem


# --- internals ------------------------------------------------------------------------------------


def _shown(parameter: inspect.Parameter) -> str:
    word = parameter.name.upper()
    match parameter.kind:
        case inspect.Parameter.VAR_POSITIONAL:
            return f"[{word}...]"
        case inspect.Parameter.VAR_KEYWORD:
            return "[KEY=VALUE...]"
        case inspect.Parameter.KEYWORD_ONLY:
            word = f"{parameter.name}=..."
        case _:
            pass
    return word if parameter.default is inspect.Parameter.empty else f"[{word}]"


def _not_json(word: str) -> JsonValue:
    raise ValueError(f"{word} is Python's, not JSON")


def _absolute(word: str) -> str:
    """The word, made absolute if it names a folder, or a file and looks like it."""
    if not word or " " in word:
        return word
    path = Path(word).expanduser()
    try:
        is_path = path.is_dir() or (("." in word or "/" in word) and path.exists())
    except OSError:  # longer than a path can be: prose
        return word
    return str(path.resolve()) if is_path else word


def _execute(path: Path) -> ModuleType:
    """The module of a file, executed once for each state of the file.

    As with `python FILE`, the file's folder is searched for what it imports.
    """
    changed_ns = path.stat().st_mtime_ns
    known = _executed.get(path)
    if known is not None and known[0] == changed_ns:
        return known[1]
    # Dataclasses and pydantic look their module up by name; one that is taken stays whose it is.
    free = path.stem if path.stem not in sys.modules else f"{path.stem}_{len(_executed)}"
    name = known[1].__name__ if known is not None else free
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: this is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        del sys.modules[name]
        raise UsageError(
            f"{path}: the file does not run: {type(problem).__name__}: {problem}"
        ) from problem
    _executed[path] = (changed_ns, module)
    return module
