"""`Evaluate`: what a model says of held-out rows, through the devices that serve it, and scores.

Owns the way from a call to predictions. Task models label rows as `Classify` and `Tag` do, language
models generate as `Generate` does, with the caller's rights and quota; a loss is measured by a
worker (`learn.py`). The scores are `drivers/metrics`. Refuses to know how figures are computed and
what a report looks like. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from llmos.drivers.metrics import predictions as metrics
from llmos.drivers.metrics.predictions import Prediction, Scores
from llmos.drivers.metrics.report import write_report
from llmos.drivers.rows.kinds import ChatRow, LabelledRow, Row, TaggedRow
from llmos.drivers.rows.reading import read_rows
from llmos.kernel.files import FileSystem
from llmos.kernel.process import Process
from llmos.kernel.prompting import Generate, Prompting, choose_label, gathered
from llmos.kernel.rows_file import RowsFile, as_file, given
from llmos.kernel.settings import Settings
from llmos.kernel.targets import Target, Targets
from llmos.kernel.task_models import TaskModels
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.evaluation_results import Compared, Evaluated
from llmos.syscalls.values import JsonObject

LOSS_OBJECTIVES = ("instruct", "pretrain", "prefer", "embed")
_TEXTS_AT_ONCE = 512  # of one Classify or Tag


class MeasureLoss(Protocol):
    """Measures a loss in a worker, and tells each row's (`learning.py`)."""

    async def __call__(
        self,
        process: Process,
        call: calls.Evaluate,
        *,
        on_rows: Callable[[list[JsonObject]], None] | None = None,
    ) -> Evaluated: ...


@dataclass(frozen=True, slots=True)
class _Measured:
    """One model's predictions, or the figures of a worker where there are none."""

    target: Target
    predictions: list[Prediction]
    scores: Scores
    rows: int
    tokens: int


class Scoring:
    def __init__(
        self,
        settings: Settings,
        *,
        files: FileSystem,
        targets: Targets,
        generate: Generate,
        task_models: TaskModels,
        prompting: Prompting,
        measure_loss: MeasureLoss,
    ) -> None:
        self._settings = settings
        self._files = files
        self._targets = targets
        self._generate = generate
        self._task_models = task_models
        self._prompting = prompting
        self._measure_loss = measure_loss

    async def evaluate(self, process: Process, call: calls.Evaluate) -> Evaluated:
        """Measure a model, and those that it is compared with on the same rows.

        Raises: SyscallError: "unknown_model", "invalid" for rows or labels that do not fit, and as
        the calls that serve the model do.
        """
        target = self._targets.of(call.model or self._encoder(call), call.adapter)
        objective = call.objective or target.objective
        others = [self._targets.of(name) for name in call.against]
        rows: Sequence[Row] = ()
        if objective not in LOSS_OBJECTIVES:  # those a worker reads by itself
            async with as_file(given(self._files, process, call.data)) as file:
                rows = await asyncio.to_thread(_read, file, objective, call)
        measured = [
            await self._measured(process, call, one, objective, rows) for one in (target, *others)
        ]
        evaluated = await asyncio.to_thread(_summed_up, call, objective, measured)
        if call.report:
            folder = self._settings.home / "evaluations" / _folder_name(target.name)
            path = await asyncio.to_thread(_kept, folder, evaluated, measured)
            evaluated = evaluated.model_copy(update={"report": str(path)})
        return evaluated

    def _encoder(self, call: calls.Evaluate) -> str | None:
        """What is meant where no model is named and texts are to be embedded."""
        embedding = self._settings.embedding
        if call.objective != "embed" or call.adapter is not None or embedding is None:
            return None
        return embedding.name

    # --- what it says -----------------------------------------------------------------------------

    async def _measured(
        self,
        process: Process,
        call: calls.Evaluate,
        target: Target,
        objective: str,
        rows: Sequence[Row],
    ) -> _Measured:
        labels: Sequence[str] = ()
        match objective:
            case "classify":
                labelled = cast("Sequence[LabelledRow]", rows)
                found, tokens, labels = await self._labels(process, call, target, labelled)
            case "tag":
                tagged = cast("Sequence[TaggedRow]", rows)
                found, tokens = await self._tags(process, call, target, tagged)
            case "generate":
                chats = cast("Sequence[ChatRow]", rows)
                found, tokens = await self._answers(process, call, target, chats)
            case _:
                return await self._losses(process, call, target, objective)
        scores = await self._scored(call, objective, found, labels)
        return _Measured(target, found, scores, rows=len(found), tokens=tokens)

    async def _labels(
        self,
        process: Process,
        call: calls.Evaluate,
        target: Target,
        rows: Sequence[LabelledRow],
    ) -> tuple[list[Prediction], int, Sequence[str]]:
        if target.kind == "task":
            return await self._task_labels(process, call, target, rows)
        if target.version is not None and target.version.kind == "prompt":
            labels: Sequence[str] = target.version.card["labels"]
            _require_known(rows, labels, target.name)
            said = await self._prompting.labels(
                process,
                target.version,
                [row.text for row in rows],
                generate=self._generate,
            )
        else:
            model = target.generating()
            labels = call.labels or sorted({row.label for row in rows})
            _require_known(rows, labels, target.name)
            said = await gathered(
                [
                    lambda row=row: choose_label(
                        self._generate,
                        process,
                        row.text,
                        labels=labels,
                        model=model,
                        adapter=target.adapter,
                        instruction=call.instruction,
                    )
                    for row in rows
                ]
            )
        found = [
            Prediction(row.origin, row.text, row.label, one.label)
            for row, one in zip(rows, said, strict=True)
        ]
        return found, sum(one.tokens for one in said), labels

    async def _task_labels(
        self,
        process: Process,
        call: calls.Evaluate,
        target: Target,
        rows: Sequence[LabelledRow],
    ) -> tuple[list[Prediction], int, Sequence[str]]:
        found: list[Prediction] = []
        tokens = 0
        labels: Sequence[str] = ()
        for start in range(0, len(rows), _TEXTS_AT_ONCE):
            batch = rows[start : start + _TEXTS_AT_ONCE]
            answer = await self._task_models.classify(
                process,
                calls.Classify(
                    texts=tuple(row.text for row in batch), model=target.name, task=call.task
                ),
            )
            if not labels:
                labels = sorted(one.label for one in answer.labels[0])
                _require_known(rows, labels, target.name)
            tokens += answer.tokens
            for row, scored in zip(batch, answer.labels, strict=True):
                chance = {one.label: one.probability for one in scored}
                best = scored[0]
                # A probability that float32 rounds to 0 has a large loss and not an infinite one.
                loss = -math.log(max(chance[row.label], 1e-12))
                found.append(
                    Prediction(row.origin, row.text, row.label, best.label, best.probability, loss)
                )
        return found, tokens, labels

    async def _tags(
        self,
        process: Process,
        call: calls.Evaluate,
        target: Target,
        rows: Sequence[TaggedRow],
    ) -> tuple[list[Prediction], int]:
        if target.kind != "task":
            raise SyscallError(
                "invalid",
                f"model: {target.name} is of the kind {target.kind}; entities are found by task "
                "models, which Finetune makes with the objective tag",
                field="model",
            )
        found: list[Prediction] = []
        tokens = 0
        for start in range(0, len(rows), _TEXTS_AT_ONCE):
            batch = rows[start : start + _TEXTS_AT_ONCE]
            answer = await self._task_models.tag(
                process,
                calls.Tag(
                    texts=tuple(row.tokens for row in batch), model=target.name, task=call.task
                ),
            )
            tokens += answer.tokens
            found += [
                Prediction(row.origin, said.text, list(row.tags), list(said.tags))
                for row, said in zip(batch, answer.texts, strict=True)
            ]
        return found, tokens

    async def _answers(
        self,
        process: Process,
        call: calls.Evaluate,
        target: Target,
        rows: Sequence[ChatRow],
    ) -> tuple[list[Prediction], int]:
        version, model = target.version, target.generating()

        async def answer(row: ChatRow) -> tuple[Prediction, int]:
            messages = list(row.messages[:-1])
            if version is not None and version.kind == "prompt":
                messages = await self._prompting.shown(version, messages)
            generated = await self._generate(
                process,
                calls.Generate(
                    messages=tuple(messages),
                    model=model,
                    adapter=target.adapter,
                    max_tokens=call.max_tokens,
                ),
            )
            wanted = row.messages[-1].text
            shown = row.messages[-2].text
            usage = generated.usage
            return (
                Prediction(row.origin, shown, wanted, generated.text),
                usage.prompt_tokens + usage.completion_tokens,
            )

        said = await gathered([lambda row=row: answer(row) for row in rows])
        return [one for one, _ in said], sum(tokens for _, tokens in said)

    async def _losses(
        self, process: Process, call: calls.Evaluate, target: Target, objective: str
    ) -> _Measured:
        """What a worker measures; of a decoder each row's loss, so that there are intervals."""
        if call.max_rows is not None:
            raise SyscallError(
                "invalid",
                f"max_rows: {objective} is measured on all rows; give fewer",
                field="max_rows",
            )
        if target.kind == "prompt":
            raise SyscallError(
                "invalid",
                "objective: a prompt version has no loss of its own; ask for generate or classify",
                field="objective",
            )
        alone = call.model_copy(update={"objective": objective, "against": (), "report": False})
        if target.name not in (call.model, call.adapter):  # one that is compared with
            alone = alone.model_copy(update={"model": target.name, "adapter": None})
        told: list[JsonObject] = []
        found = await self._measure_loss(process, alone, on_rows=told.extend)
        losses = [
            Prediction(row["origin"], "", loss=row["loss"] * row["tokens"], weight=row["tokens"])
            for row in told
        ]
        scores = Scores(found.metrics, {}, {}, found.loss)
        if losses:
            own = await self._scored(call, objective, losses)
            scores = own._replace(metrics={**found.metrics, **own.metrics})
        return _Measured(target, losses, scores, rows=found.rows, tokens=found.tokens)

    async def _scored(
        self,
        call: calls.Evaluate,
        objective: str,
        found: Sequence[Prediction],
        labels: Sequence[str] = (),
    ) -> Scores:
        return await asyncio.to_thread(
            metrics.score,
            objective,
            found,
            labels=labels,
            resamples=call.resamples,
            seed=call.seed,
        )


# --- rows -----------------------------------------------------------------------------------------


def _read(file: RowsFile, objective: str, call: calls.Evaluate) -> Sequence[Row]:
    """The rows to measure on, `max_rows` of them at most, in the order of the file."""
    kind = "instruct" if objective == "generate" else objective
    rows = read_rows(file.path, kind, name=file.name)
    if call.max_rows is None or len(rows) <= call.max_rows:
        return rows
    chosen = random.Random(call.seed).sample(range(len(rows)), call.max_rows)
    return [rows[place] for place in sorted(chosen)]


def _require_known(rows: Sequence[LabelledRow], labels: Sequence[str], model: str) -> None:
    known = set(labels)
    for row in rows:
        if row.label not in known:
            raise SyscallError(
                "invalid",
                f"{row.origin}: label: {model} does not know the label {row.label!r}; it knows "
                f"{', '.join(sorted(known)[:20])}{', ...' if len(known) > 20 else ''}",
                field="label",
                origin=row.origin,
            )


# --- results --------------------------------------------------------------------------------------


def _summed_up(call: calls.Evaluate, objective: str, measured: Sequence[_Measured]) -> Evaluated:
    """The first model's figures, with its changes against the others."""
    first, *others = measured
    compared = tuple(
        Compared(
            model=other.target.name,
            metrics=other.scores.metrics,
            intervals=other.scores.intervals,
            changes=metrics.compare(
                objective,
                first.predictions,
                other.predictions,
                resamples=call.resamples,
                seed=call.seed,
            )
            if other.predictions
            else {},
        )
        for other in others
    )
    scores = first.scores
    return Evaluated(
        model=first.target.name,
        objective=objective,
        loss=scores.loss,
        perplexity=scores.metrics.get("perplexity"),
        rows=first.rows,
        tokens=first.tokens,
        metrics=scores.metrics,
        intervals=scores.intervals,
        tables=scores.tables,
        compared=compared,
    )


def _kept(folder: Path, evaluated: Evaluated, measured: Sequence[_Measured]) -> Path:
    """Write the report with all predictions beside it; the page's path.

    Raises: SyscallError("storage").
    """
    try:
        folder.mkdir(parents=True)
        for number, one in enumerate(measured):
            metrics.write_predictions(folder / f"predictions-{number}.jsonl", one.predictions)
        version = measured[0].target.version
        curves: JsonObject = {} if version is None else version.card.get("curves", {})
        return write_report(folder, evaluated, curves=curves)
    except OSError as problem:
        shutil.rmtree(folder, ignore_errors=True)
        raise SyscallError(
            "storage", f"the report cannot be written to {folder}: {problem}", path=str(folder)
        ) from problem


def _folder_name(model: str) -> str:
    """A new folder's name: the model, and when."""
    plain = "".join(char if char.isalnum() or char in "._-" else "-" for char in model)
    return f"{plain}-{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns() % 1000:03d}"
