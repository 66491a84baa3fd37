"""How fast an open model is, and what that is worth for agents.

Owns the measurement of one configuration: prefill of a long prompt, and decodes of several
sequences that stand at that depth, each with KV of its own. Refuses to know formats, files and
which configuration is better. Works on every driver; nothing else may use the model meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from llmos.drivers.contract import DeviceError, Feed, LanguageModel
from llmos.syscalls.options import Sampling

Clock = Callable[[], float]

PROMPT_TOKENS = 512
BATCHES = (1, 4, 16)
ROOM_TOKENS = 64  # what a sequence must hold beside the prompt

_WARM_TOKENS = 32
_LEAST_PROMPT_TOKENS = 64
_PREFILL_S = 1.5  # a measurement is repeated, or its prompt cut, to take about this long
_DECODE_S = 0.5
_MOST_PREFILLS = 3
_LEAST_STEPS, _MOST_STEPS = 4, 24


class Speed(NamedTuple):
    """Tokens a second; `decode` by the number of sequences in a step, of all of them together."""

    prefill: float
    decode: Mapping[int, float]


class Mix(NamedTuple):
    """What agents ask of a device, for each new token.

    `prompt_tokens` to prefill, and how the decoding of new tokens is shared between steps of few
    and of many sequences.
    """

    prompt_tokens: float
    decode: Mapping[int, float]


# Agents read more than they write: instructions, retrieved text and tool results come to about
# four tokens that no cache holds for each new one. Most of the time many of them run at once.
AGENTS = Mix(prompt_tokens=4, decode={1: 0.1, 4: 0.3, 16: 0.6})


def cost_ms(speed: Speed, mix: Mix = AGENTS) -> float:
    """Milliseconds of the device for one new token with its share of prompt.

    A batch size that was not measured takes the rate of the largest one that was below it.
    """
    decode_s = 0.0
    for size, share in mix.decode.items():
        measured = max((known for known in speed.decode if known <= size), default=None)
        if measured is None:
            raise ValueError(f"no decode of {size} sequences or fewer was measured")
        decode_s += share / speed.decode[measured]
    return 1000 * (mix.prompt_tokens / speed.prefill + decode_s / sum(mix.decode.values()))


def measure_speed(
    model: LanguageModel, tokens: Sequence[int], *, clock: Clock = time.perf_counter
) -> Speed:
    """The rates of an open, unused model on a text of at least `PROMPT_TOKENS` tokens.

    Takes about three seconds, also on a slow model. Sequences are empty again afterwards.
    Raises: DeviceError, also when the text or the model's window is too short.
    """
    room = model.info.context_tokens - ROOM_TOKENS
    prompt = list(tokens[: min(PROMPT_TOKENS, room)])
    if len(prompt) < _LEAST_PROMPT_TOKENS:
        raise DeviceError(f"{len(prompt)} tokens are too few to measure a model with")
    sizes = [size for size in BATCHES if size <= model.info.sequences]
    try:
        for sequence in range(sizes[-1]):
            model.add(sequence, sampling=Sampling(temperature=0.0))
        prefill, depth = _prefill(model, prompt, clock)
        blob = model.save(0)
        for sequence in range(1, sizes[-1]):
            model.restore(blob, sequence)
        decode = {size: _decode(model, size, depth, prompt, clock) for size in sizes}
    finally:
        for sequence in range(sizes[-1]):
            model.trim(sequence, 0)
    return Speed(prefill, decode)


def _prefill(model: LanguageModel, prompt: list[int], clock: Clock) -> tuple[float, int]:
    """The best rate of a few prefills, and the depth at which sequence 0 is left."""
    _feed(model, prompt[:_WARM_TOKENS])  # the first step brings the weights into memory
    started = clock()
    _feed(model, prompt[:_WARM_TOKENS])
    estimate = _WARM_TOKENS / (clock() - started)
    prompt = prompt[: max(_LEAST_PROMPT_TOKENS, int(estimate * 2 * _PREFILL_S))]
    best, spent = 0.0, 0.0
    for _ in range(_MOST_PREFILLS):
        started = clock()
        _feed(model, prompt)
        elapsed = clock() - started
        best, spent = max(best, len(prompt) / elapsed), spent + elapsed
        if spent >= _PREFILL_S:
            break
    return best, len(prompt)


def _feed(model: LanguageModel, tokens: list[int]) -> None:
    """Fill sequence 0 with these tokens and no others."""
    model.trim(0, 0)
    step = model.info.batch_tokens
    for start in range(0, len(tokens), step):
        part = tokens[start : start + step]
        model.step([Feed(0, part, sample=start + step >= len(tokens))])


def _decode(
    model: LanguageModel, size: int, depth: int, tokens: Sequence[int], clock: Clock
) -> float:
    """The rate of steps that feed one token to each of `size` sequences.

    All steps are the same work, so the faster ones tell what the device can do: the lower quartile
    of their times, which other work on the machine moves least.
    """
    steps: list[float] = []
    while len(steps) < _MOST_STEPS and (len(steps) < _LEAST_STEPS or sum(steps) < _DECODE_S):
        feeds = [
            Feed(sequence, [tokens[(len(steps) + 7 * sequence) % len(tokens)]], sample=True)
            for sequence in range(size)
        ]
        started = clock()
        model.step(feeds)
        steps.append(clock() - started)
    for sequence in range(size):
        model.trim(sequence, depth)
    return size / statistics.quantiles(steps, n=4)[0]
