"""`llmos learn`: run a learning loop to the end of its plan, or on from where it was."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from llmos import exits
from llmos.agents.learn_plan import make_plan
from llmos.agents.learn_statistics import Interval
from llmos.agents.tool_tasks import TOOLS
from llmos.arguments import load_program
from llmos.booting import boot
from llmos.commands_finetune import follow
from llmos.logs import log_to_file
from llmos.pulling import bring_models
from llmos.tables import console, seconds

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.kernel.kernel import Kernel
    from llmos.syscalls.values import JsonObject

_VERDICTS = {
    "promoted": "promoted: it is in use now",
    "discarded": "discarded: it is not better beyond doubt",
    "refused": "refused by the gate",
    "too_little_data": "not trained: too little data yet",
}


def learn(config: Config, folder: Path, fields: JsonObject, *, as_json: bool) -> int:
    """Run a loop in a folder, telling of each stage; Ctrl-C ends it, and the same goes on."""
    log_to_file(config.home)
    make_plan(fields)  # a mistake is told before a model opens
    bring_models(config, console(is_error=True))
    sys.path.insert(0, str(Path.cwd()))
    return asyncio.run(_learn(config, str(folder.absolute()), fields, as_json=as_json))


async def start_loop(kernel: Kernel, folder: str, fields: JsonObject) -> int:
    """Start the program `learner` and return its pid. Raises: UsageError for a wrong practice.

    What the tool agent practises with is offered first, and a practice in a file is made known.
    """
    there = set(kernel.tools.names())
    for tool in TOOLS:
        if tool.spec.name not in there:
            kernel.tools.add(tool)
    practice = load_program(fields["practice"])
    name = practice if isinstance(practice, str) else kernel.programs.load(practice)
    return await kernel.os.spawn("learner", folder, **{**fields, "practice": name})


def told(event: JsonObject) -> str | None:
    """A stage of a loop in one line."""
    match event["event"]:
        case "measured":
            who = event["version"] or "the base"
            return f"{who}: {_share(event['success'])} of the held-out tasks"
        case "collected":
            return (
                f"round {event['round']}: {event['solved']} of {event['tried']} tasks solved in "
                f"{event['attempts']} attempts, {event['rows']} new rows "
                f"({seconds(event['seconds'])})"
            )
        case "trained":
            return (
                f"round {event['round']}: {event['version']} trained on {event['rows']} rows "
                f"({seconds(event['seconds'])})"
            )
        case "judged":
            gain = "" if event["gain"] is None else f" (gain {_interval(event['gain'])})"
            return f"round {event['round']}: {_VERDICTS[event['verdict']]}{gain}"
        case _:
            return None


# --- internals ------------------------------------------------------------------------------------


async def _learn(config: Config, folder: str, fields: JsonObject, *, as_json: bool) -> int:
    errors = console(is_error=True)

    def show(event: JsonObject) -> None:
        if as_json:
            print(json.dumps(event), flush=True)
        elif line := told(event):
            errors.print(Text(line), soft_wrap=True)

    async with boot(config) as kernel:
        pid = await start_loop(kernel, folder, fields)
        is_cancelled, exited = await follow(kernel, pid, show)
    if is_cancelled:
        errors.print(Text("ended; the same command goes on from here", style="dim"))
        return exits.INTERRUPTED
    value = exited.unwrap()
    if as_json:
        print(json.dumps({"event": "outcome", **value}))
    else:
        print(_outcome(value))
    return exits.OK


def _outcome(value: JsonObject) -> str:
    before, after = (_share(value[when]) for when in ("before", "after"))
    version = value["version"] or "nothing new"
    return f"{version} is in use: {before} before, {after} now\nreport: {value['report']}"


def _share(rate: JsonObject | None) -> str:
    if rate is None:
        return "not measured"
    return f"{rate['value']:.0%} ({rate['low']:.0%} to {rate['high']:.0%})"


def _interval(gain: list[float]) -> str:
    value, low, high = Interval(*gain)
    return f"{value:+.0%}, {low:+.0%} to {high:+.0%}"
