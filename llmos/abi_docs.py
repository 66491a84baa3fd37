"""The ABI's reference, written from the ABI itself: docs/abi.md and docs/abi.json.

`python -m llmos.abi_docs` rewrites both in the current folder's docs/; `--check` only compares, for
`make check`. Everything comes from the types, docstrings and comments in `syscalls/`, so the
reference cannot say anything else than the code.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from llmos.syscalls import calls, errors, evaluation, learning, traces
from llmos.syscalls.calls import Call
from llmos.syscalls.values import Value
from llmos.syscalls.wire import CALL_TYPES, abi_schema, op_of, result_type

_NAMES = {Any: "JSON", type(None): "None"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def main(arguments: list[str]) -> int:
    """Write the documents, or with `--check` say which are out of date. Returns the exit status."""
    folder = Path("docs")
    documents = {folder / "abi.md": abi_markdown(), folder / "abi.json": abi_json()}
    if "--check" not in arguments:
        for path, text in documents.items():
            path.write_text(text)
        return 0
    stale = [p for p, text in documents.items() if not p.exists() or p.read_text() != text]
    for path in stale:
        print(f"{path} is out of date; run `make docs`", file=sys.stderr)
    return 1 if stale else 0


def abi_json() -> str:
    """The JSON Schema of every call and result."""
    return json.dumps(abi_schema(), indent=1, sort_keys=True) + "\n"


def abi_markdown() -> str:
    """The reference for people."""
    lines = [
        "# The syscall ABI",
        "",
        "Written by `make docs` from `syscalls/`; do not edit. Its JSON Schema is `abi.json`.",
        "",
        "Every call is one value with one result. In Python an agent issues it by the method of "
        "the same name on its handle (`os.generate(...)`); as JSON it is an object whose `op` "
        "says which call it is. Unknown fields are refused.",
        "",
        *_overview(),
    ]
    for section, section_calls in _sections().items():
        lines += [f"## Calls: {section}", ""]
        for call in section_calls:
            lines += _call(call)
    lines += ["## Values", "", "What calls and results are made of, by name.", ""]
    for value in sorted(_reachable(), key=lambda value: value.__name__):
        lines += _entry(value.__name__, value)
    lines += _errors()
    return "\n".join(lines).rstrip() + "\n"


def error_meanings() -> dict[str, str]:
    """What each error code means: the comments beside the codes in `syscalls/errors.py`.

    Raises: ValueError when a code has none.
    """
    source = inspect.getsource(errors)
    found = dict(re.findall(r'^    "(\w+)",  # (.+)$', source, re.MULTILINE))
    missing = [code for code in errors.ERROR_CODES if code not in found]
    if missing:
        raise ValueError(f"syscalls/errors.py says nothing about {', '.join(missing)}")
    return {code: found[code] for code in errors.ERROR_CODES}


# --- parts of the document ------------------------------------------------------------------------


def _sections() -> dict[str, list[type[Call[Any]]]]:
    """The calls under the headings that their modules have, in their order."""
    types_by_name = {call.__name__: call for call in CALL_TYPES}
    sections: dict[str, list[type[Call[Any]]]] = {}
    heading = ""
    lines = [
        line
        for module in (calls, learning, evaluation, traces)
        for line in inspect.getsource(module).splitlines()
    ]
    for line in lines:
        if found := re.match(r"# --- (.+?) -+$", line):
            heading = found[1]
        elif (found := re.match(r"class (\w+)\(", line)) and found[1] in types_by_name:
            sections.setdefault(heading, []).append(types_by_name[found[1]])
    return sections


def _overview() -> list[str]:
    lines = ["| group | calls |", "|---|---|"]
    for section, section_calls in _sections().items():
        links = ", ".join(f"[`{op_of(call)}`](#{op_of(call)})" for call in section_calls)
        lines.append(f"| {section} | {links} |")
    return [*lines, ""]


def _call(call: type[Call[Any]]) -> list[str]:
    result = result_type(call).__name__
    return [*_entry(op_of(call), call), f"Result: [{result}](#{result.lower()})", ""]


def _entry(title: str, value: type[Value]) -> list[str]:
    lines = [f"### {title}", ""]
    description = _docstring(value)
    if description:
        lines += [description, ""]
    fields = {n: field for n, field in value.model_fields.items() if n not in ("op", "type")}
    if fields:
        lines += ["| field | type | default |", "|---|---|---|"]
        lines += [_row(name, field) for name, field in fields.items()]
        lines.append("")
    return lines


def _docstring(value: type[Value]) -> str:
    # A class without a docstring of its own would inherit its base's.
    return inspect.cleandoc(value.__dict__.get("__doc__") or "")


def _row(name: str, field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    elif field.default_factory is not None:
        default = "`{}`"
    elif isinstance(field.default, Value):
        default = f"`{type(field.default).__name__}()`"
    else:
        default = f"`{json.dumps(field.default, default=list)}`"
    bounds = _bounds(field)
    kind = _type_name(field.annotation).replace("|", "\\|")
    return f"| `{name}` | {kind}{', ' + bounds if bounds else ''} | {default} |"


def _bounds(field: FieldInfo) -> str:
    said = [
        f"{sign} {getattr(rule, attribute)}"
        for rule in field.metadata
        for attribute, sign in _BOUNDS.items()
        if getattr(rule, attribute, None) is not None
    ]
    if any(getattr(rule, "min_length", None) for rule in field.metadata):
        said.append("not empty")
    said += [f"matches `{p}`" for r in field.metadata if (p := getattr(r, "pattern", None))]
    return ", ".join(said)


def _errors() -> list[str]:
    lines = [
        "## Errors",
        "",
        "Every call can be refused with a `SyscallError`: a code, a message that says what to do, "
        "whether a retry can help, and fields.",
        "",
        "| code | meaning |",
        "|---|---|",
    ]
    return [*lines, *(f"| `{code}` | {text} |" for code, text in error_meanings().items())]


# --- types ----------------------------------------------------------------------------------------


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " | ".join(f"`{json.dumps(argument)}`" for argument in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is not None:
        inside = ", ".join(_type_name(a) for a in arguments if a is not Ellipsis)
        return f"{origin.__name__}[{inside}{', ...' if Ellipsis in arguments else ''}]"
    if isinstance(annotation, type) and issubclass(annotation, Value):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return str(annotation.__name__)


def _reachable() -> set[type[Value]]:
    """Every value that a call or a result is made of, calls left out."""
    found: set[type[Value]] = set()
    todo: list[type[Value]] = list(CALL_TYPES)
    todo += [result_type(call) for call in CALL_TYPES]
    todo.append(errors.ErrorValue)
    while todo:
        value = todo.pop()
        if value in found:
            continue
        found.add(value)
        for field in value.model_fields.values():
            todo += _values_in(field.annotation)
    return found - set(CALL_TYPES)


def _values_in(annotation: Any) -> Iterator[type[Value]]:
    if isinstance(annotation, type) and issubclass(annotation, Value):
        yield annotation
    for argument in get_args(annotation):
        yield from _values_in(argument)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
