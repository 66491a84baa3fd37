"""Several tasks learnt at once: one shared body, a head for each task.

Owns how often each task is drawn, how their losses add up, and scores by task. Refuses to know
steps. A task's loss is brought to one unit an item, else a sentence of thirty tagged words would
count as thirty texts.
Source of the temperature: Raffel et al., "T5", 2019 (arXiv 1910.10683), section 3.5.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmos.drivers.task_folder import TaskHead
from llmos.drivers.training import classify, tag
from llmos.drivers.training.classify import ClassifyTask
from llmos.drivers.training.encoder import open_encoder, rate
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.objectives import Rows
from llmos.drivers.training.tag import TagTask
from llmos.drivers.training.task import Built, Encoded, Item, Measured, OfTask
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.recipe import TaskSpec
from llmos.syscalls.values import JsonValue

if TYPE_CHECKING:
    import torch


def shares(
    rows: Mapping[str, int], weights: Mapping[str, float], *, temperature: float
) -> dict[str, float]:
    """How much of an epoch each task gets; the shares add up to 1.

    At temperature 1 a task is drawn by its weight times its rows; the higher the temperature, the
    more equal the shares.
    """
    drawn = {name: (weights[name] * rows[name]) ** (1 / temperature) for name in rows}
    total = sum(drawn.values())
    return {name: one / total for name, one in drawn.items()}


class MixtureTask:
    """Trains the heads of several tasks on one body. Satisfies `Task`.

    `units` is each task's mean weight of an item, by which its loss is divided.
    """

    metric = "score"
    is_higher_better = True

    def __init__(
        self, tasks: Mapping[str, ClassifyTask | TagTask], units: Mapping[str, float]
    ) -> None:
        self._tasks = tasks
        self._units = units

    def encode(self, rows: Sequence[OfTask], /) -> Encoded:
        items: dict[str, Item] = {}
        truncated: list[str] = []
        skipped: list[str] = []
        for name, task in self._tasks.items():
            encoded = task.encode([one.row for one in rows if one.task == name])
            items |= {f"{name} {item.origin}": item for item in encoded.items}
            truncated += encoded.truncated
            skipped += encoded.skipped
        order = (f"{one.task} {one.origin}" for one in rows)
        return Encoded(
            tuple(items[key] for key in order if key in items), tuple(truncated), tuple(skipped)
        )

    def loss(self, model: Any, items: Sequence[Item], /) -> tuple[torch.Tensor, float]:
        parts = [
            self._tasks[name].loss(model, chosen)[0] / self._units[name]
            for name, chosen in self._by_task(items).items()
        ]
        return sum(parts[1:], parts[0]), float(len(items))

    def evaluate(self, model: Any, items: Sequence[Item], /, *, batch_size: int) -> Measured:
        """Scores by task as "task.metric"; "score" is the mean of the tasks' own metrics."""
        metrics: dict[str, float] = {}
        predictions: list[JsonValue] = []
        best: list[float] = []
        losses: list[float] = []
        for name, chosen in self._by_task(items).items():
            task = self._tasks[name]
            measured = task.evaluate(model, chosen, batch_size=batch_size)
            metrics |= {f"{name}.{key}": value for key, value in measured.metrics.items()}
            best.append(measured.metrics[task.metric])
            losses.append(measured.metrics["loss"])
            predictions += [{"task": name, "of": one} for one in measured.predictions]
        mean_loss = sum(losses) / len(losses)
        return Measured({"loss": mean_loss, "score": sum(best) / len(best), **metrics}, predictions)

    def _by_task(self, items: Sequence[Item]) -> dict[str, list[Item]]:
        found = {name: [item for item in items if item.task == name] for name in self._tasks}
        return {name: chosen for name, chosen in found.items() if chosen}


def build(job: TrainJob, device: str, rows: Rows) -> Built:
    """One encoder with a head for each of the job's tasks, ready to train.

    Raises: SyscallError("invalid") for a task that an encoder does not learn, or that has no rows;
    DeviceError.
    """
    own = {
        spec.name: [one.row for one in rows.train if one.task == spec.name] for spec in job.tasks
    }
    heads = [_head(spec, own[spec.name]) for spec in job.tasks]
    encoder = open_encoder(job, device, heads)
    tasks: dict[str, ClassifyTask | TagTask] = {}
    for place, spec in enumerate(job.tasks):
        if spec.objective == "classify":
            tasks[spec.name] = one = ClassifyTask(encoder, place)
            one.begin(one.encode(own[spec.name]).items)
        else:
            tasks[spec.name] = TagTask(encoder, place)
    return Built(
        encoder.network,
        MixtureTask(tasks, {spec.name: _unit(spec, own[spec.name]) for spec in job.tasks}),
        encoder.save,
        rate(job),
        shares=shares(
            {name: len(chosen) for name, chosen in own.items()},
            {spec.name: spec.weight for spec in job.tasks},
            temperature=job.temperature,
        ),
        kind="task",
    )


def _head(spec: TaskSpec, rows: Sequence[Any]) -> TaskHead:
    if not rows:
        raise SyscallError(
            "invalid", f"tasks: {spec.name} has no training rows", field="tasks", task=spec.name
        )
    match spec.objective:
        case "classify":
            return classify.head_of(rows, spec.name)
        case "tag":
            return tag.head_of(rows, spec.name)
        case _:
            raise SyscallError(
                "invalid",
                f"tasks: {spec.name} is {spec.objective}; tasks that share an encoder are classify "
                "or tag",
                field="tasks",
                task=spec.name,
            )


def _unit(spec: TaskSpec, rows: Sequence[Any]) -> float:
    """The mean weight of a task's item: words of a sentence, or one text."""
    if spec.objective != "tag":
        return 1.0
    return max(1.0, sum(len(row.tokens) for row in rows) / len(rows))
