"""The shell's words about learning: `finetune`, `eval`, `learn`.

Jobs start in the background; `fg` watches one, and Ctrl-C then ends it with what was best kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmos.arguments import parse_arguments
from llmos.commands_finetune import evaluate_call, evaluated_tables, finetune_call
from llmos.commands_learn import start_loop
from llmos.commands_learn import told as told_of_loop
from llmos.exits import UsageError
from llmos.jobs import OK, Jobs, describe
from llmos.training_view import EventLines, told

if TYPE_CHECKING:
    from llmos.agents.handle import OS
    from llmos.kernel.kernel import Kernel
    from llmos.syscalls.values import JsonObject


class ShellLearning:
    """Commands over one kernel and one table of jobs; `show` prints to the terminal."""

    def __init__(self, kernel: Kernel, jobs: Jobs, show: Callable[[object], None]) -> None:
        self._kernel = kernel
        self._os: OS = kernel.os
        self._jobs = jobs
        self._show = show

    async def finetune(self, words: Sequence[str]) -> int:
        """Start a training job in the background."""
        path, fields = _operands(words, "finetune DATA name=NAME [FIELD=VALUE...]")
        call = finetune_call({**fields, "data": path})
        pid = (await self._os.call(call)).pid
        return self._started(pid, f"finetune {' '.join(words)}", told)

    async def evaluate(self, words: Sequence[str]) -> int:
        """Measure a model and show the figures."""
        path, fields = _operands(words, "eval DATA [model=NAME] [FIELD=VALUE...]")
        found = await self._os.call(evaluate_call({**fields, "data": path}))
        for part in evaluated_tables(found):
            self._show(part)
        return OK

    async def learn(self, words: Sequence[str]) -> int:
        """Start a learning loop in the background."""
        folder, fields = _operands(words, "learn FOLDER [practice=PROGRAM] [FIELD=VALUE...]")
        plan = {"practice": "tool-practice", "name": "tool-agent", **fields}
        pid = await start_loop(self._kernel, folder, plan)
        return self._started(pid, f"learn {' '.join(words)}", told_of_loop)

    def _started(self, pid: int, text: str, line: Callable[[JsonObject], str | None]) -> int:
        lines = EventLines()

        def rendered(data: bytes) -> bytes:
            shown = (line(event) for event in lines.feed(data))
            return "".join(f"{one}\n" for one in shown if one).encode()

        self._show(describe(self._jobs.adopt(pid, text, rendered)))
        return OK


def _operands(words: Sequence[str], usage: str) -> tuple[str, JsonObject]:
    """The path that comes first, absolute, and the fields."""
    given = parse_arguments(words)
    if len(given.args) != 1 or not isinstance(given.args[0], str):
        raise UsageError(f"usage: {usage}")
    return str(Path(given.args[0]).expanduser().absolute()), given.kwargs
