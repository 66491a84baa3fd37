"""Task models as syscalls: texts are classified and tagged by versions of the registry.

A model opens at the first call that needs it, on a device of its own, and stays until the memory
that all of them may use is wanted by others: then the one that was used longest ago goes, never one
that a call waits for. A slot's name means what is promoted there when the call is made; calls under
way end on the weights that they began with. Whose texts share a pass, and whom a failure hits, is
`text_device.py`'s matter. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from llmos.drivers.labeller import Labeller
from llmos.drivers.task_folder import TaskHead, TaskObjective
from llmos.kernel.clock import Clock
from llmos.kernel.entities import tagged_text, words_of
from llmos.kernel.process import Process
from llmos.kernel.settings import TaskSetting
from llmos.kernel.task_device import TaskDevice, Text
from llmos.kernel.text_device import TOKEN_CHARS
from llmos.kernel.trace import Tracer
from llmos.memory.registry import Registry
from llmos.syscalls import learning as calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning_results import Classified, LabelScore, ModelVersion, Tagged
from llmos.syscalls.results import DeviceInfo, LedgerEntry

T = TypeVar("T")

# More text than this is split and counted on another thread, so that nobody else waits for it.
LONG_TEXT_CHARS = 65_536


@dataclass(slots=True, eq=False)
class _Loaded:
    """A version's device. `calls` wait for it now; `used` orders the devices by their last use."""

    device: TaskDevice
    digest: str
    bytes: int = 0  # once it is open
    calls: int = 0
    used: int = 0


class TaskModels:
    def __init__(
        self,
        setting: TaskSetting | None,
        *,
        registry: Callable[[], Registry],
        clock: Clock,
        tracer: Tracer,
    ) -> None:
        self._setting = setting
        self._registry = registry
        self._clock = clock
        self._tracer = tracer
        self._loaded: dict[str, _Loaded] = {}  # by the version's name
        self._uses = itertools.count(1)
        self._closing: set[asyncio.Task[None]] = set()

    async def classify(self, process: Process, call: calls.Classify) -> Classified:
        """Label texts; their tokens are charged as tokens in.

        Raises: SyscallError("unknown_model"), ("denied"), ("invalid"), ("device").
        """
        _require_text(call.texts)
        version = self._version(process, call.model)
        async with self._opened(process, version, call.op) as device:
            _require_task(device.driver, version, call.task, "classify")
            sizes = await self._charged(process, device.driver, call.texts)
            rows = await device.classify(call.texts, sizes=sizes, task=call.task)
            classes = device.driver.classes(call.task)
        return Classified(
            labels=tuple(_best(classes, row, call.top_k) for row in rows),
            model=version.name,
            tokens=sum(sizes),
        )

    async def tag(self, process: Process, call: calls.Tag) -> Tagged:
        """Find entities in texts; their tokens are charged as tokens in. Raises: as `classify`."""
        texts = await _off_loop(call.texts, lambda: [words_of(text) for text in call.texts])
        _require_text([one.text for one in texts])
        sentences = [one.words for one in texts]
        version = self._version(process, call.model)
        async with self._opened(process, version, call.op) as device:
            _require_task(device.driver, version, call.task, "tag")
            sizes = await self._charged(process, device.driver, sentences)
            rows = await device.tag(sentences, sizes=sizes, task=call.task)
        return Tagged(
            texts=tuple(tagged_text(one, row) for one, row in zip(texts, rows, strict=True)),
            model=version.name,
            tokens=sum(sizes),
        )

    def infos(self) -> list[DeviceInfo]:
        """The devices of the models that are loaded."""
        return [loaded.device.info() for loaded in self._loaded.values()]

    def ledger(self) -> list[LedgerEntry]:
        """The large allocations of each loaded model."""
        return [
            LedgerEntry(owner=name, what=one.what, bytes=one.bytes)
            for name, loaded in self._loaded.items()
            for one in loaded.device.allocations()
        ]

    async def stop(self) -> None:
        """Close every device."""
        loaded, self._loaded = list(self._loaded.values()), {}
        await asyncio.gather(*self._closing, *(one.device.stop() for one in loaded))

    # --- which version, and may it be used --------------------------------------------------------

    def _version(self, process: Process, name: str) -> ModelVersion:
        """What a call's `model` means now.

        Who may use a name may use what serves under it. Raises: SyscallError("unknown_model"),
        ("denied"), ("invalid") for what is no task model.
        """
        registry = self._registry()
        serving = registry.promoted(name)
        version = registry.get(serving or name)
        allows = process.capabilities.allows
        if not (allows("models", version.name) or allows("models", name)):
            raise SyscallError(
                "denied",
                f"process {process.pid} ({process.program}) does not hold models:{version.name}; "
                f"its parent can grant it at spawn: Capabilities(models={{{version.name!r}}})",
                capability=f"models:{version.name}",
            )
        if version.kind != "task" or version.path is None:
            raise SyscallError(
                "invalid",
                f"model: {version.name} is of the kind {version.kind}; texts are labelled by task "
                "models, which Finetune makes with the objectives classify and tag",
                field="model",
            )
        return version

    async def _charged(
        self, process: Process, driver: Labeller, texts: Sequence[Text]
    ) -> list[int]:
        """The tokens of each text, charged to the process. Raises: SyscallError."""
        longest = driver.max_length_tokens * TOKEN_CHARS

        def count() -> list[int]:
            return [
                driver.count(text[:longest] if isinstance(text, str) else text) for text in texts
            ]

        sizes = await _off_loop(texts, count)
        process.account.charge("tokens_in", sum(sizes))
        process.account.tokens_in += sum(sizes)
        return sizes

    # --- loaded on demand, evicted by use ---------------------------------------------------------

    @asynccontextmanager
    async def _opened(
        self, process: Process, version: ModelVersion, what: str
    ) -> AsyncGenerator[TaskDevice]:
        """A version's open device, which stays open for this block. Raises: SyscallError."""
        with self._in_use(process, version):
            loaded = self._device_of(version)
            loaded.calls += 1
            loaded.used = next(self._uses)
            started_s = self._clock.now()
            earlier = (process.state, process.waiting_on)
            process.state, process.waiting_on = "waiting_device", version.name
            try:
                await loaded.device.start()
                loaded.bytes = loaded.bytes or sum(one.bytes for one in loaded.device.allocations())
                self._make_room()
                yield loaded.device
            finally:
                loaded.calls -= 1
                if loaded.device.is_down and self._loaded.get(version.name) is loaded:
                    self._drop(version.name)  # the next call tries anew
                self._make_room()
                if not process.is_over:
                    process.state, process.waiting_on = earlier
                self._tracer.span(
                    what,
                    "label",
                    started_s=started_s,
                    ended_s=self._clock.now(),
                    pid=process.pid,
                    track=version.name,
                )

    @contextmanager
    def _in_use(self, process: Process, version: ModelVersion) -> Generator[None]:
        """Keep a version from being deleted."""
        uses = self._registry().uses
        uses.take(version.name, process.pid)
        try:
            yield
        finally:
            uses.drop(version.name, process.pid)

    def _device_of(self, version: ModelVersion) -> _Loaded:
        """The device of a version, opening or open; a version made anew has another."""
        known = self._loaded.get(version.name)
        if known is not None and (known.device.is_down or known.digest != version.digest):
            self._drop(version.name)
            known = None
        if known is None:
            setting = self._setting
            if setting is None:
                raise SyscallError("not_available", "this kernel serves no task models")
            registry = self._registry()

            def opened() -> Labeller:  # on the device's thread: files are read and checked
                return setting.open(registry.load(version.name), version.base)

            device = TaskDevice(version.name, opened, self._clock, self._tracer)
            known = self._loaded[version.name] = _Loaded(device, version.digest)
        return known

    def _make_room(self) -> None:
        """Close what was used longest ago, until the loaded models fit or are all waited for."""
        bound = 0 if self._setting is None else self._setting.memory_bytes
        held = sum(loaded.bytes for loaded in self._loaded.values())
        if held <= bound:
            return
        for name, loaded in sorted(self._loaded.items(), key=lambda one: one[1].used):
            if held > bound and not loaded.calls:
                held -= loaded.bytes
                self._drop(name)

    def _drop(self, name: str) -> None:
        """Close a device once its thread has done what was asked of it before."""
        closing = asyncio.ensure_future(self._close(self._loaded.pop(name)))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close(self, loaded: _Loaded) -> None:
        await loaded.device.stop()


async def _off_loop(texts: Sequence[Text], work: Callable[[], T]) -> T:
    """Read texts; many or long ones on a thread of their own."""
    chars = sum(len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts)
    return await asyncio.to_thread(work) if chars > LONG_TEXT_CHARS else work()


def _require_text(texts: Sequence[str]) -> None:
    for place, text in enumerate(texts):
        if not text.strip():
            raise SyscallError("invalid", f"texts.{place}: it is blank", field=f"texts.{place}")


def _require_task(
    driver: Labeller, version: ModelVersion, task: str | None, objective: TaskObjective
) -> None:
    """Raises: SyscallError("invalid") unless the model has the task, and it is of this kind."""
    heads: dict[str, TaskHead] = {head.name: head for head in driver.heads}
    head = driver.heads[0] if task is None else heads.get(task)
    if head is None:
        raise SyscallError(
            "invalid",
            f"task: {version.name} has no task {task}; it has {', '.join(heads)}",
            field="task",
            known=list(heads),
        )
    if head.objective != objective:
        raise SyscallError(
            "invalid",
            f"model: {version.name} was trained to {head.objective}, not to {objective}",
            field="model" if task is None else "task",
        )


def _best(
    classes: Sequence[str], probabilities: Sequence[float], top_k: int | None
) -> tuple[LabelScore, ...]:
    """Labels with their probabilities, the most likely ones first."""
    scored = sorted(zip(classes, probabilities, strict=True), key=lambda one: -one[1])
    return tuple(
        LabelScore(label=label, probability=probability) for label, probability in scored[:top_k]
    )
