"""The programs that can be spawned by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping

from llmos.syscalls.errors import SyscallError
from llmos.syscalls.trap import ProgramFunction


class Programs:
    """Names to functions; `module:function` is imported when it is first spawned."""

    def __init__(self, programs: Mapping[str, ProgramFunction]) -> None:
        self._programs = dict(programs)

    def add(self, name: str, program: ProgramFunction) -> None:
        """Make a function spawnable by name, replacing an earlier one."""
        self._programs[name] = program

    def names(self) -> list[str]:
        """The short names."""
        return sorted(name for name in self._programs if ":" not in name)

    def load(self, program: ProgramFunction) -> str:
        """Know a function by its module and name, and return that name."""
        for name, known in self._programs.items():
            if known is program:
                return name
        name = f"{program.__module__}:{program.__qualname__}"
        if name in self._programs:  # another closure of the same function
            name = f"{name}#{len(self._programs)}"
        self._programs[name] = program
        return name

    def find(self, name: str) -> ProgramFunction:
        """The function of a name. Raises: SyscallError("not_found") with the nearest known name."""
        found = self._programs.get(name)
        if found is None and ":" in name:
            found = self._programs[name] = _import(name)
        if found is None:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise SyscallError(
                "not_found",
                f"there is no program {name!r}; {hint}known are {', '.join(self.names())}, "
                "or name one as module:function",
                what="program",
                name=name,
            )
        return found


def _import(name: str) -> ProgramFunction:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise SyscallError(
            "not_found", f"program {name}: {problem}", what="program", name=name
        ) from problem
    if not inspect.iscoroutinefunction(function):
        raise SyscallError("invalid", f"program {name} is no async function", field="program")
    return function
