"""The commands about versions: `models versions`, `show`, `promote`, `rollback`, `delete`, ...

Those that ask or tell the registry alone boot nothing; `promote`, `rollback`, `export` and what
else needs one boot a kernel, which opens a device only where a gate measures. All work beside a
kernel that runs in the same home: it follows from its next call on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rich.text import Text

from llmos import exits
from llmos.booting import boot
from llmos.memory.registry import Registry
from llmos.tables import console, size, text_table

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.kernel.kernel import Kernel
    from llmos.syscalls.learning import NumberFormat
    from llmos.syscalls.results import Decision, ModelVersion

T = TypeVar("T")


def list_versions(config: Config, *, as_json: bool) -> int:
    """All versions, a star at those that serve."""
    with _registry(config) as registry:
        found = registry.list()
    if as_json:
        print(json.dumps([one.model_dump(mode="json") for one in found], ensure_ascii=False))
    elif found:
        console().print(text_table(_COLUMNS, map(_row, found)))
    else:
        _say("no version yet: `llmos finetune` makes one")
    return exits.OK


def show_version(config: Config, name: str, *, as_json: bool) -> int:
    """One version: what it is, what it was made from, its files, and what was decided about it."""
    with _registry(config) as registry:
        lineage, decisions = registry.lineage(name), registry.decisions(name)
    version = lineage[0]
    if as_json:
        value: dict[str, Any] = {
            **version.model_dump(mode="json"),
            "lineage": [one.name for one in lineage],
            "decisions": [one.model_dump(mode="json") for one in decisions],
        }
        print(json.dumps(value, ensure_ascii=False))
        return exits.OK
    screen = console()
    screen.print(text_table(("", ""), _facts(version)))
    screen.print()
    screen.print(text_table(_COLUMNS, map(_row, lineage)))
    if decisions:
        screen.print()
        screen.print(
            text_table(
                ("when", "what", "slot", "serves", "before", "why"), map(_decided, decisions)
            )
        )
    return exits.OK


def verify_versions(config: Config, *, as_json: bool) -> int:
    """Read every byte of all versions; status 1 when one is damaged."""
    from llmos.syscalls.errors import SyscallError

    problems: dict[str, str] = {}
    with _registry(config) as registry:
        found = [version for version in registry.list() if version.path is not None]
        for version in found:
            try:
                registry.load(version.name)
            except SyscallError as problem:
                problems[version.name] = problem.message
    if as_json:
        print(json.dumps({"versions": len(found), "problems": problems}, ensure_ascii=False))
    else:
        for problem in problems.values():
            _say(problem)
        _say(f"{len(found)} versions read, {len(problems)} damaged")
    return exits.FAILED if problems else exits.OK


def promote_version(
    config: Config, name: str, *, slot: str | None, force: bool, reason: str, as_json: bool
) -> int:
    """Have a version serve its slot, if the gate lets it."""

    async def promote(kernel: Kernel) -> ModelVersion:
        return await kernel.os.model_promote(name, slot=slot, force=force, reason=reason)

    version = _in_kernel(config, promote)
    return _told(version, f"{name} serves {version.slot}", as_json=as_json)


def rollback_version(config: Config, slot: str | None, *, reason: str, as_json: bool) -> int:
    """Undo the last promotion of a slot, by default of the default model's base."""

    async def roll_back(kernel: Kernel) -> tuple[ModelVersion, ...]:
        return await kernel.os.model_rollback(slot, reason=reason)

    versions = _in_kernel(config, roll_back)
    served = versions[0].slot
    serving = next((one for one in versions if one.is_promoted), None)
    if as_json:
        print(json.dumps({"slot": served, "serving": None if serving is None else serving.name}))
    else:
        _say(f"{served} is served by {'its own weights' if serving is None else serving.name}")
    return exits.OK


def delete_version(config: Config, name: str, *, as_json: bool) -> int:
    """Delete a version that nobody needs; the examples of a prompted one are in the store."""
    with _registry(config) as registry:
        is_prompted = registry.get(name).kind == "prompt"
        freed = 0 if is_prompted else registry.remove(name)
    if is_prompted:
        freed = _in_kernel(config, lambda kernel: kernel.os.model_delete(name)).freed_bytes
    if as_json:
        print(json.dumps({"name": name, "freed_bytes": freed}))
    else:
        _say(f"{name} is deleted, {size(freed)} freed")
    return exits.OK


def pin_version(config: Config, name: str, *, is_pinned: bool, as_json: bool) -> int:
    """Keep a version from being deleted, or no longer."""
    with _registry(config) as registry:
        version = registry.pin(name, is_pinned=is_pinned)
    what = "is kept" if is_pinned else "may be deleted"
    return _told(version, f"{name} {what}", as_json=as_json)


def export_version(
    config: Config,
    name: str,
    *,
    format: Literal["safetensors", "gguf"],
    quantize: NumberFormat | None,
    path: str | None,
    as_json: bool,
) -> int:
    """Write a version merged with its base."""

    async def export(kernel: Kernel) -> Any:
        return await kernel.os.model_export(name, format, quantize=quantize, path=path)

    written = _in_kernel(config, export)
    return _told(written, f"{name} is in {written.path}, {size(written.bytes)}", as_json=as_json)


# --- internals ------------------------------------------------------------------------------------

_COLUMNS = ("version", "kind", "base", "made from", "size", "metrics", "made")


@contextmanager
def _registry(config: Config) -> Generator[Registry]:
    registry = Registry(config.home / "models")
    try:
        yield registry
    finally:
        registry.close()


def _in_kernel(config: Config, work: Callable[[Kernel], Awaitable[T]]) -> T:
    async def run() -> T:
        async with boot(config) as kernel:
            return await work(kernel)

    return asyncio.run(run())


def _row(version: ModelVersion) -> Sequence[str]:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in version.metrics.items())
    return (
        version.name + (" *" if version.is_promoted else ""),
        version.kind,
        version.base or "",
        version.parent or "",
        size(version.size_bytes),
        metrics,
        _when(version.created_at),
    )


def _facts(version: ModelVersion) -> list[Sequence[str]]:
    facts = {
        "name": version.name,
        "kind": version.kind,
        "slot": f"{version.slot}{', which it serves' if version.is_promoted else ''}",
        "files": f"{version.path or 'none'}, {size(version.size_bytes)}",
        "digest": version.digest,
        "licence": version.licence or "not known",
        "data": ", ".join(f"{what} {digest[:12]}" for what, digest in version.data_hashes.items()),
        "pinned": "yes" if version.is_pinned else "no",
        **{str(key): json.dumps(value, ensure_ascii=False) for key, value in version.card.items()},
    }
    return [(name, value) for name, value in facts.items() if value]


def _decided(decision: Decision) -> Sequence[str]:
    verdict = decision.action if decision.is_allowed else f"{decision.action} refused"
    why = "; ".join((decision.reason, *(one.why for one in decision.figures if one.why)))
    return (
        _when(decision.at),
        f"{verdict}, forced" if decision.is_forced else verdict,
        decision.slot,
        decision.name or "base",
        decision.before or "base",
        why.strip("; "),
    )


def _told(value: Any, text: str, *, as_json: bool) -> int:
    if as_json:
        print(value.model_dump_json())
    else:
        _say(text)
    return exits.OK


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


def _say(text: str) -> None:
    console().print(Text(text), soft_wrap=True)
