"""Few-shot prompting as a method: a version without weights that shows a model nearby examples.

Owns versions of the kind "prompt": the examples are procedural notes in a namespace of their own,
and the card holds the instruction, the labels and how many are shown. With none shown it is
zero-shot prompting. For a text the most similar examples are put before it, and a label is chosen
among those of the similar examples: a small model finds one in ten, not one in a hundred. Refuses
to know devices. Event-loop thread only.

Source: Liu et al., "What Makes Good In-Context Examples for GPT-3?", 2022 (choice by similarity).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from llmos.drivers.rows.kinds import ChatRow, LabelledRow, Row
from llmos.drivers.rows.near import without_near_duplicates, without_near_leaks
from llmos.drivers.rows.reading import read_rows
from llmos.drivers.rows.redaction import load_redactor, redact_rows
from llmos.drivers.rows.splits import split
from llmos.kernel.label_prompt import Shot, answer_messages, label_messages, spoken
from llmos.kernel.library import Library
from llmos.kernel.process import Process
from llmos.kernel.rows_file import Given, RowsFile, as_file
from llmos.kernel.targets import Targets
from llmos.memory.registry import Registry
from llmos.syscalls import calls
from llmos.syscalls.content import Message
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning_results import Classified, LabelScore, Trained
from llmos.syscalls.options import ChoiceConstraint
from llmos.syscalls.results import Generated, ModelVersion
from llmos.syscalls.trap import Trap
from llmos.syscalls.values import JsonObject

CANDIDATE_EXAMPLES = 16  # similar examples whose labels are the candidates
LABEL_TOKENS = 64  # longest label
AT_ONCE = 32  # generations of one call under way at a time
_NOTES_AT_ONCE = 256
_OBJECTIVES = ("classify", "instruct")
# Fields that would say which rows there are, or what else becomes of them.
_OF_TRAINING = ("tasks", "replay", "join", "scratch", "average", "test_data")

Generate = Callable[[Process, calls.Generate], Awaitable[Generated]]


class Said(NamedTuple):
    """A label chosen for a text, and what it cost."""

    label: str
    tokens: int


class Prompting:
    """`as_kernel` is the process on whose behalf the examples are kept and found.

    `redactor` is "module:name" of what finds personal data in them; None is the built-in one.
    """

    def __init__(
        self,
        *,
        library: Library,
        registry: Callable[[], Registry],
        generate: Generate,
        as_kernel: Callable[[], Process],
        targets: Targets,
        redactor: str | None = None,
    ) -> None:
        self._library = library
        self._registry = registry
        self._generate = generate
        self._as_kernel = as_kernel
        self._targets = targets
        self.redactor = redactor

    def job(self, call: calls.Finetune, rows: Given) -> PromptJob:
        """What makes a version from rows, as a process. Raises: SyscallError."""
        if call.objective not in _OBJECTIVES:
            raise SyscallError(
                "not_available",
                f"objective: {call.objective} cannot be prompted; available: "
                + ", ".join(_OBJECTIVES),
                field="objective",
                available=list(_OBJECTIVES),
            )
        if given := [field for field in _OF_TRAINING if getattr(call, field)]:
            raise SyscallError(
                "invalid",
                f"{given[0]}: it is about training, and the method prompt trains nothing",
                field=given[0],
            )
        if any(version.name == call.name for version in self._registry().list()):
            raise SyscallError(
                "invalid",
                f"name: the registry has a version {call.name} already; choose another name",
                field="name",
            )
        return PromptJob(self, call, rows, base=self._targets.serves(call.base).name)

    def version(self, name: str) -> ModelVersion | None:
        """The prompt version that a name means now, itself or as what serves there; else None."""
        registry = self._registry()
        try:
            found = registry.serving(name) or registry.get(name)
        except SyscallError as problem:
            if problem.code != "unknown_model":
                raise
            return None
        return found if found.kind == "prompt" else None

    async def classify(
        self, process: Process, version: ModelVersion, call: calls.Classify
    ) -> Classified:
        """Label texts by prompting; the label has no probability that means one, so it has 1.

        Raises: SyscallError: "denied", "invalid" for a version of another objective, and as
        `Generate`.
        """
        if version.card.get("objective") != "classify":
            raise SyscallError(
                "invalid", f"model: {version.name} answers, it does not label", field="model"
            )
        if not process.capabilities.allows("models", version.name):
            raise SyscallError(
                "denied",
                f"process {process.pid} ({process.program}) does not hold models:{version.name}",
                capability=f"models:{version.name}",
            )
        said = await self.labels(process, version, call.texts, generate=self._generate)
        return Classified(
            labels=tuple((LabelScore(label=one.label, probability=1.0),) for one in said),
            model=version.name,
            tokens=sum(one.tokens for one in said),
        )

    async def labels(
        self, process: Process, version: ModelVersion, texts: Sequence[str], *, generate: Generate
    ) -> list[Said]:
        """A label for each text, generated on behalf of a process."""
        card = version.card
        model = self._targets.serves(version.base).model

        async def label(text: str) -> Said:
            known: Sequence[str] = card["labels"]
            near = await self._near(version, text, least=CANDIDATE_EXAMPLES)
            if near:
                known = list(dict.fromkeys(shot.answer for shot in near))
            shots = list(reversed(near[: card["shots"]]))
            return await choose_label(
                generate,
                process,
                text,
                labels=known,
                shots=shots,
                model=model,
                instruction=card["instruction"],
            )

        return await gathered([lambda text=text: label(text) for text in texts])

    async def shown(self, version: ModelVersion, messages: Sequence[Message]) -> list[Message]:
        """A conversation with the examples that are most like its last turn before it."""
        near = await self._near(version, messages[-1].text, least=0)
        shots = list(reversed(near[: version.card["shots"]]))
        return answer_messages(messages, shots=shots, instruction=version.card["instruction"])

    async def keep(self, version: ModelVersion, shots: Sequence[Shot]) -> None:
        """Store a version's examples, in place of what is in its namespace."""
        space = version.card["namespace"]
        await self.forget(version)
        for start in range(0, len(shots), _NOTES_AT_ONCE):
            await self._library.remember_in(
                space,
                [
                    calls.Note(text=one.text, kind="procedural", metadata={"answer": one.answer})
                    for one in shots[start : start + _NOTES_AT_ONCE]
                ],
            )

    async def forget(self, version: ModelVersion) -> None:
        """Delete a version's examples; one that shows none has none, and needs no store."""
        if not version.card["shots"]:
            return
        everything = calls.Forget(namespace=version.card["namespace"], everything=True)
        await self._library.forget(self._as_kernel(), everything)

    async def register(self, version: ModelVersion) -> ModelVersion:
        """Enter a version in the registry. Raises: SyscallError."""
        return await asyncio.to_thread(self._registry().add, version)

    async def _near(self, version: ModelVersion, text: str, *, least: int) -> list[Shot]:
        """Examples by how like the text they are, the nearest first; none for zero-shot."""
        if not version.card["shots"]:
            return []
        hits = await self._library.retrieve(
            self._as_kernel(),
            calls.Retrieve(
                query=text,
                k=max(version.card["shots"], least),
                mode="dense",
                namespaces=(version.card["namespace"],),
                kinds=("procedural",),
            ),
        )
        return [Shot(hit.text, str(hit.metadata["answer"])) for hit in hits.hits]


class PromptJob:
    """Reads rows, keeps them as examples and registers the version; nothing is trained."""

    def __init__(
        self, prompting: Prompting, call: calls.Finetune, rows: Given, *, base: str
    ) -> None:
        self.name = call.name
        self._prompting = prompting
        self._call = call
        self._given = rows
        self._base = base

    def prepare(self, process: Process) -> dict[str, Any]:
        """Nothing: there is no worker that signals must reach."""
        return {}

    async def run(self, trap: Trap) -> Trained:
        """Make the version. Raises: SyscallError."""
        started = time.monotonic()
        call = self._call
        async with as_file(self._given) as file:
            rows, redacted, dropped = await asyncio.to_thread(self._rows, file)
        shots = [_shot(row) for row in rows] if call.shots else []
        labels = sorted({row.label for row in rows if isinstance(row, LabelledRow)})
        version = ModelVersion(
            name=call.name,
            kind="prompt",
            base=self._base,
            parent=self._base,
            card={
                "objective": call.objective,
                "method": "prompt",
                "instruction": call.instruction,
                "labels": labels,
                "shots": call.shots,
                "namespace": f"prompt:{call.name}",
                "data": {
                    "path": file.name,
                    "rows": len(rows),
                    "examples": len(shots),
                    "redacted": redacted,
                    "dropped": dropped,
                },
            },
        )
        await _say(trap, {"event": "start", "rows": len(rows), "examples": len(shots)})
        if shots:
            await self._prompting.keep(version, shots)
        version = await self._prompting.register(version)
        seconds = time.monotonic() - started
        await _say(trap, {"event": "done", "seconds": round(seconds, 3), "examples": len(shots)})
        return Trained(version=version, losses=(), seconds=seconds)

    def _rows(self, file: RowsFile) -> tuple[list[Row], dict[str, int], dict[str, int]]:
        """The rows that a training with these settings would train on; what was redacted and
        dropped. Rows of `eval_data` are not read, so what repeats them stays.
        """
        call = self._call
        rows = read_rows(file.path, call.objective, name=file.name, group_field=call.group_field)
        redacted: dict[str, int] = {}
        if call.redact:
            rows, counts = redact_rows(rows, load_redactor(self._prompting.redactor))
            redacted = dict(counts)
        dropped: dict[str, int] = {}
        if call.dedupe:
            kept, _ = without_near_duplicates(rows)
            dropped["duplicates"] = len(rows) - len(kept)
            rows = kept
        if call.eval_data is not None:
            return rows, redacted, dropped
        parts = split(
            rows,
            eval_share=call.eval_share,
            seed=call.seed,
            stratify=call.stratify,
            by_group=call.group_field is not None,
        )
        if call.dedupe:
            cleaned = without_near_leaks(parts)
            dropped["leaks"] = len(cleaned.dropped)
            parts = cleaned.split
        return parts.train, redacted, dropped


async def choose_label(
    generate: Generate,
    process: Process,
    text: str,
    *,
    labels: Sequence[str],
    model: str | None,
    shots: Sequence[Shot] = (),
    adapter: str | None = None,
    instruction: str | None = None,
) -> Said:
    """The label that a model generates for a text when it may generate nothing else."""
    choices = spoken(labels)
    generated = await generate(
        process,
        calls.Generate(
            messages=tuple(label_messages(text, choices, shots=shots, instruction=instruction)),
            model=model,
            adapter=adapter,
            constraint=ChoiceConstraint(choices=tuple(choices)),
            max_tokens=LABEL_TOKENS,
        ),
    )
    if generated.text not in choices:
        raise SyscallError(
            "invalid",
            f"labels: one is longer than {LABEL_TOKENS} tokens: it was cut to {generated.text!r}",
            field="labels",
        )
    return Said(choices[generated.text], generated.usage.prompt_tokens)


async def gathered(tasks: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Results in order, `AT_ONCE` under way at a time; the first failure ends the others."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(task: Callable[[], Awaitable[Any]]) -> Any:
        async with turns:
            return await task()

    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one(task)) for task in tasks]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [task.result() for task in running]


def _shot(row: Row) -> Shot:
    match row:
        case LabelledRow():
            return Shot(row.text, row.label)
        case ChatRow():
            return Shot(row.messages[-2].text, row.messages[-1].text)
        case _:
            raise AssertionError(f"rows of another objective: {row.origin}")


async def _say(trap: Trap, event: JsonObject) -> None:
    line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
    await trap.call(calls.Write(fd=1, data=line))
