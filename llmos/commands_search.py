"""`llmos search`: look for the settings of a finetune that give the best metric, and watch."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from llmos import exits
from llmos.booting import boot
from llmos.commands_finetune import follow
from llmos.exits import UsageError
from llmos.logs import log_to_file
from llmos.pulling import bring_models
from llmos.syscalls.calls import Finetune, Search
from llmos.syscalls.evaluation import Between, OneOf
from llmos.syscalls.evaluation_results import Searched
from llmos.tables import console, text_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llmos.config import Config
    from llmos.syscalls.values import JsonObject

_RANGE = re.compile(r"([^.|].*?)\.\.(.+?)(:log)?")


def search(config: Config, call: Search, *, as_json: bool) -> int:
    """Search, showing trials on standard error and the best settings on standard output.

    With `as_json` the events are lines of JSON on standard output, and the result the last one.
    Ctrl-C ends the search and its trials; the same command goes on.
    """
    log_to_file(config.home)
    bring_models(config, console(is_error=True))
    return asyncio.run(_search(config, call, as_json=as_json))


def search_space(words: Sequence[str]) -> dict[str, Between | OneOf]:
    """The space that words name: `rank=2..16`, `learning_rate=1e-5..1e-2:log`, `method=lora|dora`.

    Raises: UsageError.
    """
    space: dict[str, Between | OneOf] = {}
    for word in words:
        name, is_pair, values = word.partition("=")
        if not is_pair or not values:
            raise UsageError(f"--vary {word}: write FIELD=LOW..HIGH, FIELD=LOW..HIGH:log or A|B")
        space[name] = _values(word, values)
    if not space:
        raise UsageError("a search needs a field to vary: --vary rank=2..16")
    return space


def search_call(
    finetune: Finetune,
    vary: Sequence[str],
    *,
    trials: int,
    parallel: int,
    metric: str | None,
    is_pruned: bool,
    seed: int,
) -> Search:
    """The call. Raises: UsageError; SyscallError("invalid")."""
    return Search(
        finetune=finetune,
        space=search_space(vary),
        trials=trials,
        parallel=parallel,
        metric=metric,
        is_pruned=is_pruned,
        seed=seed,
    )


def event_line(event: JsonObject) -> str | None:
    """What a person is told of an event; None for one that says nothing new."""
    match event:
        case {"event": "trial", "trial": number, "settings": settings}:
            return f"trial {number}: {_shown(settings)}"
        case {"event": "tried", "trial": number, "best": best, **rest}:
            reached = ", ".join(
                f"{name} {value:.4g}" for name, value in rest.items() if name != "event"
            )
            return f"trial {number}: {reached} (best {best:.4g})"
        case {"event": "pruned", "trial": number}:
            return f"trial {number}: given up"
        case {"event": "failed", "trial": number, "why": why}:
            return f"trial {number}: failed: {why}"
        case _:
            return None


def searched_tables(found: Searched) -> list[RenderableType]:
    """The best settings, all trials, and where the report is."""
    names = sorted({name for trial in found.trials for name in trial.settings})
    rows = [
        (
            str(one.number),
            one.state,
            "" if one.value is None else f"{one.value:.4g}",
            *(_word(one.settings.get(name)) for name in names),
        )
        for one in found.trials
    ]
    parts: list[RenderableType] = [
        text_table(("trial", "state", found.metric, *names), rows),
        Text(f"best: {found.best}, {found.metric} {found.value:.4g}, {_shown(found.settings)}"),
    ]
    if found.report is not None:
        parts.append(Text(f"report: {found.report}"))
    return parts


async def _search(config: Config, call: Search, *, as_json: bool) -> int:
    errors = console(is_error=True)

    def show(event: JsonObject) -> None:
        if as_json:
            print(json.dumps(event))
        elif line := event_line(event):
            errors.print(Text(line))

    async with boot(config) as kernel:
        pid = (await kernel.os.call(call)).pid
        is_cancelled, exited = await follow(kernel, pid, show)
    if is_cancelled:
        errors.print(Text("the same command goes on", style="dim"))
        return exits.INTERRUPTED
    found = Searched.model_validate(exited.unwrap())
    if as_json:
        print(json.dumps({"event": "searched", **found.model_dump(mode="json")}))
    else:
        screen = console()
        for part in searched_tables(found):
            screen.print(part, soft_wrap=isinstance(part, Text))
    return exits.OK


def _values(word: str, values: str) -> Between | OneOf:
    if found := _RANGE.fullmatch(values):
        try:
            low, high = float(found[1]), float(found[2])
        except ValueError:
            raise UsageError(f"--vary {word}: a range goes from a number to a number") from None
        if not low < high or (found[3] and low <= 0):
            raise UsageError(
                f"--vary {word}: a range goes up, and a logarithmic one starts above 0"
            )
        return Between(low=low, high=high, is_log=bool(found[3]))
    return OneOf(values=tuple(_value(one) for one in values.split("|")))


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_word(value)}" for name, value in settings.items())


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
