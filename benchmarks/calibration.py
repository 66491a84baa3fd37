"""What a device's steps cost, measured on the real model through its driver, for the simulation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

from benchmarks.simulation import Costs
from llmos.drivers.contract import Feed, LanguageModel
from llmos.kernel.engine import Engine
from llmos.kernel.kernel import Kernel
from llmos.syscalls.options import Sampling

ROWS = (1, 2, 4, 8, 16)
CHUNKS = (32, 128, 256)
REPEATS = 5
# Drawing a token costs more than taking the likeliest; most programs draw.
SAMPLING = Sampling(temperature=1.0, seed=1)
# Beyond the chunks, a pass takes about as long a token as the largest one did.
_LARGEST = 512


async def calibrate(kernel: Kernel) -> Costs:
    """Measure the default model's device, which must be idle and hold nothing."""
    engine = await kernel.devices.engine(None)
    assert isinstance(engine, Engine), "the default model is not on this machine"
    return await engine.on_device(measured)


def measured(driver: LanguageModel) -> Costs:
    """Step times of a driver whose sequences are all free; they are free again afterwards."""
    rows = [count for count in ROWS if count <= driver.info.sequences]
    text = [500 + number % 997 for number in range(_LARGEST)]
    passes: dict[int, float] = {}
    deep = _prompts(driver, text, passes)
    depth = driver.length(0)
    most = rows[-1]
    for sequence in range(1, most):
        driver.fork(0, sequence, depth)
    slow = _decodes(driver, most)
    for sequence in range(most):
        driver.trim(sequence, 8)
    for count in rows:
        passes[count] = _decodes(driver, count)
    blob_s = _copy(driver)
    for sequence in range(most):
        driver.trim(sequence, 0)
    chunk = CHUNKS[1]
    return Costs(
        passes=dict(sorted(passes.items())),
        decode_depth_s=max(0.0, (slow - passes[most]) / (most * depth)),
        prompt_depth_s=max(0.0, (deep - passes[chunk]) / (chunk * depth)),
        copy_token_s=blob_s,
    )


def mean(one: Costs, other: Costs) -> Costs:
    """The costs half way between two measurements."""
    return Costs(
        {rows: (one.passes[rows] + other.passes[rows]) / 2 for rows in one.passes},
        (one.decode_depth_s + other.decode_depth_s) / 2,
        (one.prompt_depth_s + other.prompt_depth_s) / 2,
        (one.copy_token_s + other.copy_token_s) / 2,
    )


def _prompts(driver: LanguageModel, text: Sequence[int], passes: dict[int, float]) -> float:
    """Fill in the passes of prompts; the time of a chunk behind the last, left in sequence 0."""
    driver.add(0, sampling=SAMPLING)
    for size in CHUNKS:
        driver.trim(0, 0)
        driver.add(0, sampling=SAMPLING)
        half_s = passes.get(size // 2, 0.0)
        passes[size] = max(_timed(driver, [Feed(0, text[:size], sample=False)]), half_s)
    passes[_LARGEST] = passes[CHUNKS[-1]] * _LARGEST / CHUNKS[-1]
    driver.step([Feed(0, text[: CHUNKS[-1]], sample=False)])
    return _timed(driver, [Feed(0, text[: CHUNKS[1]], sample=False)])


def _decodes(driver: LanguageModel, count: int) -> float:
    """Median seconds of a step in which `count` sequences decode."""
    for sequence in range(count):
        if driver.length(sequence) == 0:
            driver.step([Feed(sequence, [500, 501, 502], sample=False)])
        driver.add(sequence, sampling=SAMPLING)
    feeds = [Feed(sequence, [500 + sequence], sample=True) for sequence in range(count)]
    driver.step(feeds)
    return statistics.median(_timed(driver, feeds) for _ in range(REPEATS))


def _copy(driver: LanguageModel) -> float:
    """Seconds a token to save and to restore a sequence, the slower of the two."""
    tokens = driver.length(0)
    started = time.perf_counter()
    blob = driver.save(0)
    saved = time.perf_counter()
    driver.trim(0, 0)
    driver.restore(blob, 0)
    return max(saved - started, time.perf_counter() - saved) / tokens


def _timed(driver: LanguageModel, feeds: Sequence[Feed]) -> float:
    started = time.perf_counter()
    driver.step(feeds)
    return time.perf_counter() - started


def shown(costs: Costs) -> Mapping[str, float]:
    """The costs as figures of a benchmark."""
    return {
        **{f"pass_{rows}_ms": round(1000 * s, 1) for rows, s in costs.passes.items()},
        "decode_depth_us": round(1e6 * costs.decode_depth_s, 2),
        "prompt_depth_us": round(1e6 * costs.prompt_depth_s, 2),
    }
