"""The commands about training data: `data check`, `stats`, `split`, `consent`, `traces`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmos import exits
from llmos.commands_memory import say
from llmos.drivers.rows.checks import (
    check_apart,
    check_classes,
    check_labels,
    find_leaks,
    huge_rows,
)
from llmos.drivers.rows.near import without_near_duplicates, without_near_leaks
from llmos.drivers.rows.reading import read_and_check, read_rows
from llmos.drivers.rows.redaction import load_redactor, redact_rows
from llmos.drivers.rows.splits import Split, split
from llmos.drivers.rows.statistics import statistics
from llmos.drivers.rows.writing import write_rows
from llmos.memory.episodes import EpisodeStore
from llmos.syscalls.errors import SyscallError
from llmos.tables import console, count, text_table

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.drivers.rows.kinds import Row

OPERATOR = "the operator"  # who gives consent by command


def check_file(
    file: Path, objective: str, *, test: Path | None, group_field: str | None, as_json: bool
) -> int:
    """Say what is wrong with rows, and with rows held out beside them."""
    rows, problems = read_and_check(file, objective, name=str(file), group_field=group_field)
    notes = [f"{origin} is huge: it will be cut to fit" for origin in huge_rows(rows)]
    if rows:
        problems += _found(lambda: check_classes(rows, field=str(file)))
    if test is not None:
        held_out, wrong = read_and_check(test, objective, name=str(test), group_field=group_field)
        problems += wrong
        problems += _found(lambda: check_labels(rows, held_out, field=str(test)))
        problems += _found(lambda: check_apart(rows, held_out, field=str(test)))
        for leak in find_leaks(rows, held_out):
            if not leak.what:
                notes.append(f"{leak.held_out_origin} is {leak.train_origin} again")
    if as_json:
        told = [
            {"message": problem.message, **problem.fields, "code": problem.code}
            for problem in problems
        ]
        print(json.dumps({"rows": len(rows), "problems": told, "notes": notes}))
    else:
        for line in (*(problem.message for problem in problems), *notes):
            say(line)
        wrong_ones = f"{count(len(problems))} problems" if problems else "nothing is wrong"
        say(f"{file}: {count(len(rows))} {objective} rows, {wrong_ones}")
    return exits.FAILED if problems else exits.OK


def describe(
    config: Config,
    file: Path,
    objective: str,
    *,
    out: Path | None,
    group_field: str | None,
    as_json: bool,
) -> int:
    """Describe rows."""
    rows = read_rows(file, objective, name=str(file), group_field=group_field)
    found = statistics(rows, objective, redactor=load_redactor(config.redactor))
    page = found.markdown(file.name)
    if out is not None:
        with _writing(out):
            out.write_text(page, encoding="utf-8")
    if as_json:
        print(json.dumps(found.json(), ensure_ascii=False))
    elif out is None:
        print(page, end="")
    else:
        say(f"{count(found.rows)} rows described in {out}")
    return exits.OK


def divide(
    config: Config,
    file: Path,
    objective: str,
    *,
    out: Path,
    eval_share: float,
    test_share: float,
    seed: int,
    stratify: bool,
    is_deduping: bool,
    is_redacting: bool,
    group_field: str | None,
    as_json: bool,
) -> int:
    """Divide rows into files of a folder."""
    rows = read_rows(file, objective, name=str(file), group_field=group_field)
    report: dict[str, Any] = {"rows": len(rows)}
    if is_redacting:
        rows, redacted = redact_rows(rows, load_redactor(config.redactor))
        report["redacted"] = dict(redacted)
    if is_deduping:
        kept, _ = without_near_duplicates(rows)
        report["duplicates"] = len(rows) - len(kept)
        rows = kept
    done: Split[Row] = split(
        rows,
        eval_share=eval_share,
        test_share=test_share,
        seed=seed,
        stratify=stratify,
        by_group=group_field is not None,
    )
    if is_deduping:
        cleaned = without_near_leaks(done)
        done, report["leaks"] = cleaned.split, len(cleaned.dropped)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for side in ("train", "dev", "test"):
            path = out / f"{side}.jsonl"
            report[side] = {"file": str(path), "rows": write_rows(getattr(done, side), path)}
    if as_json:
        print(json.dumps(report))
    else:
        table = [(side, count(report[side]["rows"])) for side in ("train", "dev", "test")]
        console().print(text_table(("", "rows"), table))
        for what in ("duplicates", "leaks"):
            if what in report:
                say(f"{count(report[what])} {what} dropped")
        if report.get("redacted"):
            said = ", ".join(f"{kind} {count(n)}" for kind, n in report["redacted"].items())
            say(f"replaced: {said}")
    return exits.OK


def list_consents(config: Config, *, as_json: bool) -> int:
    """Who allowed or forbade, and how many episodes are kept and judged."""
    with closing(EpisodeStore(config.home)) as store:
        consents, counts = store.consents(), store.counts()
    told = [
        (namespace, is_granted, *counts.get(namespace, (0, 0)))
        for namespace, is_granted in sorted(consents.items())
    ]
    if as_json:
        names = ("namespace", "is_granted", "episodes", "judged")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in told]))
    elif told:
        rows = [
            (name, "yes" if is_granted else "no", count(kept), count(judged))
            for name, is_granted, kept, judged in told
        ]
        console().print(text_table(("namespace", "consents", "episodes", "judged"), rows))
    else:
        say("nobody has consented; `llmos data consent NAMESPACE` records that somebody does")
    return exits.OK


def record_consent(config: Config, namespace: str, *, is_granted: bool, as_json: bool) -> int:
    """Record a consent; a kernel that runs keeps episodes from its next start on."""
    with closing(EpisodeStore(config.home)) as store:
        deleted = store.consent(namespace, is_granted=is_granted, by=OPERATOR, at=time.time())
    if as_json:
        print(
            json.dumps(
                {"namespace": namespace, "is_granted": is_granted, "deleted_episodes": deleted}
            )
        )
    elif is_granted:
        say(f"traces of {namespace} are kept from a kernel's next start on")
    else:
        say(f"traces of {namespace} are no longer kept; {count(deleted)} episodes are deleted")
    return exits.OK


def write_traces(
    config: Config,
    out: Path,
    *,
    namespaces: Sequence[str] | None,
    objective: Literal["instruct", "prefer"],
    min_reward: float | None,
    days: float | None,
    limit: int | None,
    is_redacting: bool,
    is_deduping: bool,
    as_json: bool,
) -> int:
    """Write rows made of episodes; without any the file stays as it is, and the status is 1."""
    from llmos.memory.trace_rows import compose

    with closing(EpisodeStore(config.home)) as store:
        granted = [name for name, is_granted in store.consents().items() if is_granted]
        for name in namespaces or ():
            if name not in granted:
                raise SyscallError(
                    "denied",
                    f"the namespace {name} has not consented; those that have: "
                    f"{', '.join(granted) or 'none'}",
                    capability=f"consent:{name}",
                )
        episodes = store.find(
            namespaces or granted,
            min_score=min_reward if objective == "instruct" else None,
            is_judged=objective == "prefer",
            since=None if days is None else time.time() - days * 86_400,
            limit=limit,
        )
    made = compose(
        episodes,
        objective,
        min_score=min_reward,
        redactor=load_redactor(config.redactor) if is_redacting else None,
        is_deduped=is_deduping,
    )
    if made.lines:
        with _writing(out):
            out.write_text("".join(made.lines), encoding="utf-8")
    if as_json:
        print(
            json.dumps(
                {
                    "file": str(out) if made.lines else None,
                    "rows": len(made.lines),
                    "episodes": len(episodes),
                    "left_out": dict(made.left_out),
                    "redacted": dict(made.redacted),
                    "digest": made.digest,
                }
            )
        )
    else:
        if made.lines:
            say(f"{count(len(made.lines))} rows of {count(len(episodes))} episodes in {out}")
        else:
            say(f"no rows of {count(len(episodes))} episodes; nothing is written to {out}")
        for what, counted in (("left out", made.left_out), ("replaced", made.redacted)):
            if counted:
                say(f"{what}: " + ", ".join(f"{why} {count(n)}" for why, n in counted.items()))
    return exits.OK if made.lines else exits.FAILED


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as problem:
        raise SyscallError(
            "storage", f"{path} cannot be written: {problem.strerror}", path=str(path)
        ) from problem


def _found(check: Callable[[], None]) -> list[SyscallError]:
    """What a check of a set of rows finds wrong."""
    try:
        check()
    except SyscallError as problem:
        return [problem]
    return []
