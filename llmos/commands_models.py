"""The commands about what is here: `pull`, `models`, `devices`. None of them boots a kernel but
`devices --measure`, which runs a little work on each configured model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from llmos import exits
from llmos.exits import UsageError
from llmos.pulling import is_here, open_store, pull
from llmos.rates import Rates, recall_rates, remember_rates
from llmos.syscalls.errors import LlmosError, SyscallError
from llmos.tables import console, count, rate, size, text_table

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.drivers.llama_requantise import Format
    from llmos.memory.model_card import Card

_MEASURED_PROMPT = "The scheduler picks what runs next. " * 40
_MEASURED_TOKENS = 32


def pull_model(
    config: Config,
    source: str | None,
    *,
    name: str | None,
    quantize: str | None,
    is_tuning: bool,
    as_json: bool,
) -> int:
    """Pull a model and say what it is; `quantize` makes a copy in another number format too.

    A model that is configured to run tuned has its number formats compared, unless it has been.
    """
    from llmos.tuning_run import tune_pulled

    source = source or config.models[config.default_model].source
    format = None if quantize is None else parse_format(quantize)
    store = open_store(config)
    if format is None or not is_here(store, name or source):
        if config.offline:
            raise SyscallError(
                "not_available", "offline is set: nothing is downloaded", field="offline"
            )
        card = pull(store, source, console(is_error=True), name=name)
    else:
        card = store.card(name or source)
    path = None if format is None else store.copy(card.name, format)
    if is_tuning and format is None:
        tune_pulled(config, card.name, console(is_error=True))
    if as_json:
        made: dict[str, Any] = (
            {} if path is None else {"copy": {"format": format, "file": str(path)}}
        )
        print(json.dumps({**card.model_dump(mode="json"), **made}, ensure_ascii=False))
    else:
        _print(f"{card.name} is ready: {_facts(card)}")
        if path is not None:
            _print(f"its {format} copy, {size(path.stat().st_size)}, is {path}")
    return exits.OK


def remove_model(config: Config, name: str) -> int:
    """Delete a model, or with NAME:FORMAT only its copy in that format, from this machine."""
    model, _, format = name.partition(":")
    if format:
        open_store(config).remove_copy(model, format)
    else:
        open_store(config).remove(name)
    _print(f"{name} is removed")
    return exits.OK


def list_models(config: Config, *, is_verifying: bool, as_json: bool) -> int:
    """What is here, what is known, and what is configured; damaged models give status 1."""
    from llmos.memory.catalogue import CATALOGUE

    store = open_store(config)
    cards = store.list()
    problems: dict[str, str] = {}
    for card in cards:
        try:
            store.verify(card.name) if is_verifying else store.path(card.name)
        except SyscallError as problem:
            problems[card.name] = problem.message
    copies = {card.name: store.copies(card.name) for card in cards if card.name not in problems}
    here = {card.name for card in cards}
    missing = [known for known in CATALOGUE.values() if known.name not in here]
    if as_json:
        value = {
            "folder": str(store.folder),
            "models": [
                {
                    **card.model_dump(mode="json"),
                    "problem": problems.get(card.name),
                    "copies": [
                        {"format": copy.format, "bytes": copy.bytes, "file": copy.path.name}
                        for copy in copies.get(card.name, ())
                    ],
                }
                for card in cards
            ],
            "not_here": [{"name": known.name, "about": known.about} for known in missing],
            "configured": {
                name: {**model.model_dump(mode="json"), "is_here": _is_here(config, name)}
                for name, model in config.models.items()
            },
            "default": config.default_model,
        }
        print(json.dumps(value, ensure_ascii=False))
    else:
        rows: list[tuple[str, ...]] = []
        for card in cards:
            rows.append((card.name, card.kind, _facts(card), problems.get(card.name, "ok")))
            rows += [
                (f"{card.name}:{copy.format}", "copy", size(copy.bytes), "ok")
                for copy in copies.get(card.name, ())
            ]
        rows += [
            (known.name, "not here", known.about, f"llmos pull {known.name}") for known in missing
        ]
        screen = console()
        screen.print(text_table(("model", "kind", "what it is", "state"), rows))
        screen.print()
        screen.print(text_table(("agents say", "driver", "device", "model"), _configured(config)))
    return exits.FAILED if problems else exits.OK


def list_devices(config: Config, *, is_measuring: bool, as_json: bool) -> int:
    """Probe the drivers, and show the rates that each configured model was last measured at."""
    from llmos.drivers.probe import probe

    found = probe()
    problems: dict[str, str] = {}
    if is_measuring:
        problems = asyncio.run(_measure(config))
    rates = recall_rates(config.home)
    if as_json:
        value: dict[str, Any] = {
            "devices": [
                {
                    "driver": device.driver,
                    "device": device.device,
                    "is_available": device.is_available,
                    "reason": device.reason,
                    "memory_bytes": device.memory_bytes,
                    "details": dict(device.details),
                }
                for device in found
            ],
            "rates": {name: measured._asdict() for name, measured in rates.items()},
            "weights": {name: _weights(config, name) for name in config.models},
            "problems": problems,
        }
        print(json.dumps(value, ensure_ascii=False))
        return exits.OK
    rows = [
        (
            device.driver,
            device.device,
            size(device.memory_bytes) if device.memory_bytes else "",
            "available" if device.is_available else f"unavailable: {device.reason}",
            ", ".join(_detail(key, value) for key, value in device.details.items()),
        )
        for device in found
    ]
    screen = console()
    screen.print(text_table(("driver", "device", "memory", "state", "details"), rows))
    screen.print()
    head = ("model", "driver", "device", "weights", "prefill", "decode", "state")
    screen.print(text_table(head, _rated(config, rates, problems)))
    if not rates:
        _print("no rates yet: `llmos devices --measure` takes some seconds a model")
    return exits.OK


def parse_format(word: str) -> Format:
    """A number format's name, in any case. Raises: UsageError naming the known ones."""
    from llmos.drivers.llama_requantise import FORMATS

    for format in FORMATS:
        if format == word.strip().upper():
            return format
    raise UsageError(f"{word!r} is no number format; known: {', '.join(FORMATS)}")


# --- internals ------------------------------------------------------------------------------------


async def _measure(config: Config) -> dict[str, str]:
    """Run a little work on each model that is here; returns why some could not."""
    from llmos.booting import boot

    problems: dict[str, str] = {}
    async with boot(config) as kernel:
        for name in config.models:
            if not _is_here(config, name):
                continue
            try:
                await kernel.os.generate(_MEASURED_PROMPT, model=name, max_tokens=_MEASURED_TOKENS)
            except LlmosError as problem:
                problems[name] = str(problem)
        remember_rates(config.home, await kernel.os.stat())
    return problems


def _rated(
    config: Config, rates: dict[str, Rates], problems: dict[str, str]
) -> Sequence[Sequence[str]]:
    rows: list[tuple[str, ...]] = []
    for name, model in config.models.items():
        measured = rates.get(name, Rates(None, None))
        state = problems.get(name) or ("ready" if _is_here(config, name) else "not here")
        rows.append(
            (
                name,
                model.driver,
                model.where,
                _weights(config, name),
                rate(measured.prefill_tokens_per_s),
                rate(measured.decode_tokens_per_s),
                state,
            )
        )
    return rows


def _configured(config: Config) -> Sequence[Sequence[str]]:
    return [
        (
            name + (" (default)" if name == config.default_model else ""),
            model.driver,
            model.where,
            model.source + ("" if _is_here(config, name) else " (not here)"),
        )
        for name, model in config.models.items()
    ]


def _is_here(config: Config, name: str) -> bool:
    model = config.models[name]
    return model.driver in ("scripted", "remote") or is_here(open_store(config), model.source)


def _weights(config: Config, name: str) -> str:
    """What weights a model opens with; nothing to say of a driver without a choice."""
    from llmos.weights import in_force

    model = config.models[name]
    if model.driver != "llama_cpp" or not _is_here(config, name):
        return ""
    return str(in_force(model, open_store(config).find(model.source), config.tuned_folder))


def _detail(key: str, value: str) -> str:
    """One detail of a device; sizes in words."""
    return f"{size(int(value))} free" if key == "free_bytes" else f"{key} {value}"


def _facts(card: Card) -> str:
    """A card in one line."""
    facts = [card.architecture, f"{card.parameters / 1e6:,.0f} M parameters", size(card.bytes)]
    if card.context_tokens:
        facts.append(f"{count(card.context_tokens)} tokens of context")
    if card.licence:
        facts.append(card.licence)
    return ", ".join(facts)


def _print(text: str) -> None:
    console().print(Text(text), soft_wrap=True)
