"""What llama.cpp's KV cache holds after any moves, in both layouts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.drivers.contract import DeviceError, Feed, ModelSpec, Sampled
from llmos.drivers.llama_cpp import LlamaCpp
from llmos.drivers.llama_requantise import requantised
from llmos.syscalls.options import GREEDY, Sampling

pytestmark = pytest.mark.model

TEXT = "Seven bridges cross the river, and every evening someone lights the lamps on them all."
SEQUENCES, REFERENCE = 5, 4  # the last sequence recomputes what the others hold
WATCHED = Sampling(logprobs=2)
# Natural-log units by which rounding moves logits when cells lie elsewhere in the buffer, with
# weights in 16 bits. The shipped file's products round their inputs to 8 bits: that moves them by
# tenths, as much as a fault might.
ROUNDING = 0.05


def spec(path: Path, **changes: Any) -> ModelSpec:
    sizes: dict[str, Any] = {"context_tokens": 256, "sequences": SEQUENCES, "batch_tokens": 64}
    return ModelSpec("smollm2", path, **{**sizes, "threads": 1, **changes})


@pytest.fixture(scope="module")
def exact_path(smollm2_path: Path) -> Path:
    return requantised(smollm2_path, "F16")


@pytest.fixture(scope="module", params=["streams", "unified"])
def opened(request: pytest.FixtureRequest, exact_path: Path) -> Iterator[LlamaCpp]:
    model = LlamaCpp(spec(exact_path, kv_layout=request.param))
    yield model
    model.close()


@pytest.fixture
def model(opened: LlamaCpp) -> Iterator[LlamaCpp]:
    yield opened
    free_all(opened)


@pytest.fixture(scope="module")
def streams(smollm2_path: Path) -> Iterator[LlamaCpp]:
    model = LlamaCpp(spec(smollm2_path))
    yield model
    model.close()


def free_all(model: LlamaCpp) -> None:
    for sequence in range(model.info.sequences):
        model.trim(sequence, 0)


def feed(model: LlamaCpp, sequence: int, tokens: list[int]) -> None:
    model.add(sequence, sampling=GREEDY)
    model.step([Feed(sequence, tokens, False)])


def last(model: LlamaCpp, sequence: int, token: int) -> Sampled:
    """What follows when a sequence is fed one more token."""
    model.add(sequence, sampling=WATCHED)
    (sampled,) = model.step([Feed(sequence, [token], True)])
    return sampled


def recomputed(model: LlamaCpp, chunks: list[list[int]], token: int) -> Sampled:
    """The same by a sequence that is fed the same chunks anew."""
    for chunk in chunks:
        feed(model, REFERENCE, chunk)
    sampled = last(model, REFERENCE, token)
    model.trim(REFERENCE, 0)
    return sampled


def cut(chunks: list[list[int]], tokens: int) -> list[list[int]]:
    """The first `tokens` tokens, in the chunks in which they were fed."""
    kept: list[list[int]] = []
    for chunk in chunks:
        if tokens > 0:
            kept.append(chunk[:tokens])
            tokens -= len(chunk)
    return kept


def assert_same(one: Sampled, other: Sampled) -> None:
    gap = other.top[0][1] - other.top[1][1]
    assert one.token == other.token or gap < ROUNDING
    assert abs(one.top[0][1] - other.top[0][1]) < ROUNDING


def copies(model: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The copies of KV that the driver makes from now on."""
    states = model._states  # pyright: ignore[reportPrivateUsage]
    copy, made = states.copy, list[tuple[int, int, int]]()

    def counted(source: int, target: int, tokens: int) -> None:
        made.append((source, target, tokens))
        copy(source, target, tokens)

    monkeypatch.setattr(states, "copy", counted)
    return made


MOVES = ["feed", "feed", "together", "beside", "fork", "fork", "trim", "free", "save", "restore"]


@settings(max_examples=12)
@given(
    st.lists(
        st.tuples(st.sampled_from(MOVES), st.integers(0, 3), st.integers(0, 3), st.integers(1, 9)),
        min_size=4,
        max_size=14,
    )
)
def test_after_any_moves_each_sequence_goes_on_as_if_computed_anew(
    opened: LlamaCpp, moves: list[tuple[str, int, int, int]]
) -> None:
    model = opened
    words = model.tokenize(TEXT)
    held: dict[int, list[list[int]]] = {sequence: [] for sequence in range(REFERENCE)}
    saved: tuple[bytes, list[list[int]]] | None = None

    def length(sequence: int) -> int:
        return sum(map(len, held[sequence]))

    free_all(model)
    for number, (move, one, other, count) in enumerate([("feed", 0, 1, 9), *moves]):
        chunk = words[number % 7 : number % 7 + count]
        kept = 1 + (length(one) - 1) * count // 9
        match move:
            case "feed":
                feed(model, one, chunk)
                held[one].append(chunk)
            case "together" if one != other:
                for sequence in (one, other):
                    model.add(sequence, sampling=GREEDY)
                    held[sequence].append(chunk)
                model.step([Feed(one, chunk, False), Feed(other, chunk, False)])
            case "beside" if one != other and length(one) < 120:
                # A chunk so long that it is computed apart from the short feed.
                long = (words * 3)[number : number + 40]
                for sequence, tokens in ((one, long), (other, chunk)):
                    model.add(sequence, sampling=GREEDY)
                    held[sequence].append(tokens)
                model.step([Feed(one, long, False), Feed(other, chunk, False)])
            case "fork" if held[one] and not held[other]:
                model.fork(one, other, kept)
                held[other] = cut(held[one], kept)
            case "trim" if held[one]:
                model.trim(one, kept)
                held[one] = cut(held[one], kept)
            case "free":
                model.trim(one, 0)
                held[one] = []
            case "save" if held[one]:
                saved = (model.save(one), held[one].copy())
            case "restore" if saved is not None and not held[one]:
                model.restore(saved[0], one)
                held[one] = saved[1].copy()
            case _:
                pass
        assert [model.length(sequence) for sequence in held] == [length(s) for s in held]
    ends = {s: last(model, s, words[0]) for s in held if held[s]}
    for sequence, sampled in ends.items():
        assert_same(sampled, recomputed(model, held[sequence], words[0]))


def test_a_fork_is_copied_only_when_it_is_fed(
    streams: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = streams, streams.tokenize(TEXT)
    free_all(model)
    made = copies(model, monkeypatch)
    feed(model, 0, words)
    for target in (1, 2, 3):
        model.fork(0, target, len(words) - target)
    feed(model, 0, words)  # a source that grows disturbs nobody
    model.trim(3, 5)
    model.trim(2, 0)
    assert made == []
    assert_same(last(model, 1, words[0]), recomputed(model, [words[:-1]], words[0]))
    assert len(made) == 1
    assert_same(last(model, 3, words[0]), recomputed(model, [words[:5]], words[0]))
    assert_same(last(model, 0, words[0]), recomputed(model, [words, words], words[0]))
    assert len(made) == 2


def test_the_stream_of_a_freed_source_goes_to_its_fork_without_a_copy(
    streams: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = streams, streams.tokenize(TEXT)
    free_all(model)
    made = copies(model, monkeypatch)
    feed(model, 0, words)
    model.fork(0, 1, 9)
    model.fork(1, 2, 6)
    model.trim(0, 0)
    assert_same(last(model, 1, words[0]), recomputed(model, [words[:9]], words[0]))
    assert made == []
    feed(model, 0, words[::-1])
    assert_same(last(model, 2, words[0]), recomputed(model, [words[:6]], words[0]))
    assert len(made) == 1


def test_a_source_that_is_cut_leaves_its_stream_and_reads_on(
    streams: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = streams, streams.tokenize(TEXT)
    free_all(model)
    made = copies(model, monkeypatch)
    feed(model, 0, words)
    model.fork(0, 1, len(words))
    model.trim(0, 4)
    assert made == []
    assert (model.length(0), model.length(1)) == (4, len(words))
    assert_same(last(model, 0, words[0]), recomputed(model, [words[:4]], words[0]))
    assert_same(last(model, 1, words[0]), recomputed(model, [words], words[0]))


def test_a_copy_that_fails_leaves_the_fork_and_its_source(
    streams: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = streams, streams.tokenize(TEXT)
    free_all(model)
    feed(model, 0, words)
    model.fork(0, 1, 8)

    def fail(*_: Any) -> None:
        raise DeviceError("no memory for a copy")

    with monkeypatch.context() as patch:
        patch.setattr(model._states, "copy", fail)  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(DeviceError, match="no memory"):
            last(model, 1, words[0])
    assert (model.length(0), model.length(1)) == (len(words), 8)
    assert_same(last(model, 1, words[0]), recomputed(model, [words[:8]], words[0]))


def test_forks_take_no_cells_of_a_unified_buffer(smollm2_path: Path) -> None:
    model = LlamaCpp(
        spec(smollm2_path, kv_layout="unified", kv_cells=256, sequences=8, context_tokens=256)
    )
    try:
        assert model.info.kv_cells == 256
        assert (model.info.kv_layout or "").startswith("unified")
        feed(model, 0, [65] * 60)
        feed(model, 0, [66] * 60)
        for target in range(1, 8):
            model.fork(0, target, 120)
            feed(model, target, [67] * 10)
        # 190 cells are taken where separate streams would have taken 1,030.
        assert sum(model.length(sequence) for sequence in range(8)) == 1030
        model.step([Feed(target, [68] * 9, False) for target in range(1, 8)])
        lengths = [model.length(sequence) for sequence in range(8)]
        with pytest.raises(DeviceError, match="256 tokens has no room") as caught:
            model.step([Feed(target, [69] * 9, False) for target in range(1, 8)])
        assert not caught.value.is_fatal
        assert [model.length(sequence) for sequence in range(8)] == lengths
        model.trim(7, 0)
        assert model.step([Feed(0, [70], True)])
    finally:
        model.close()


_GROWTH = """
import sys
from pathlib import Path
import psutil
from llmos.drivers.contract import Feed, ModelSpec
from llmos.drivers.llama_cpp import LlamaCpp
from llmos.drivers.llama_requantise import requantised
from llmos.drivers.llama_library import load_library
from llmos.syscalls.options import GREEDY

load_library()
process = psutil.Process()
before = process.memory_info().rss
spec = ModelSpec("m", Path(sys.argv[1]), context_tokens=512, sequences=8, batch_tokens=64)
model = LlamaCpp(spec)
for sequence in range(8):
    model.add(sequence, sampling=GREEDY)
for start in range(0, 512, 64):
    model.step([Feed(0, range(1000, 1064), True)])
for sequence in range(1, 8):
    model.fork(0, sequence, 500)
model.step([Feed(sequence, [1000], True) for sequence in range(1, 8)])
model.tokenize("The vocabulary is read.")
named = sum(one.bytes for one in model.allocations())
print(process.memory_info().rss - before, named)
"""


def test_allocations_explain_the_memory_that_the_process_takes(smollm2_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(smollm2_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, named = map(int, run.stdout.split())
    # The rest is the tokenizer's tables and llguidance's.
    assert 0.9 * named < grown < named + 120_000_000


@pytest.mark.parametrize("layout", ["streams", "unified"])
def test_many_conversations_live_in_one_model(smollm2_path: Path, layout: str) -> None:
    model = LlamaCpp(spec(smollm2_path, kv_layout=layout, sequences=24, context_tokens=256))
    try:
        words = model.tokenize(TEXT)
        starts = [[*words[:8], words[number % len(words)], 500 + number] for number in range(24)]
        for _ in range(2):  # turns: each conversation goes on from what it holds
            for first in range(0, 24, 6):
                group = range(first, first + 6)
                for sequence in group:
                    model.add(sequence, sampling=GREEDY)
                model.step([Feed(sequence, starts[sequence], True) for sequence in group])
        ends = {sequence: last(model, sequence, words[0]) for sequence in (0, 11, 23)}
        assert all(model.length(sequence) >= 20 for sequence in range(24))
        free_all(model)
        for sequence, sampled in ends.items():
            for _ in range(2):
                feed(model, sequence, starts[sequence])
            assert_same(sampled, last(model, sequence, words[0]))
            model.trim(sequence, 0)
    finally:
        model.close()


def test_kv_in_eight_bits_halves_its_memory_and_keeps_the_text(smollm2_path: Path) -> None:
    answers: list[list[int]] = []
    sizes: list[int] = []
    for kv_type in ("f16", "q8_0"):
        model = LlamaCpp(spec(smollm2_path, kv_type=kv_type))
        try:
            held = {one.what: one.bytes for one in model.allocations()}
            info = model.info
            asked = info.kv_bytes_per_token * info.context_tokens * SEQUENCES
            assert held["kv_cache"] == pytest.approx(asked, rel=0.001)
            sizes.append(held["kv_cache"])
            feed(model, 0, model.tokenize(TEXT))
            model.restore(model.save(0), 1)
            answers.append([last(model, sequence, 65).token for sequence in (0, 1)])
        finally:
            model.close()
    assert sizes[1] / sizes[0] == pytest.approx(17 / 32, rel=0.001)
    assert answers[0] == answers[1]


def test_passes_of_any_size_give_the_same_tokens(smollm2_path: Path) -> None:
    ends: list[Sampled] = []
    for micro in (None, 8):
        model = LlamaCpp(spec(smollm2_path, micro_batch_tokens=micro, sequences=12))
        try:
            for sequence in range(12):
                model.add(sequence, sampling=WATCHED)
            model.step([Feed(0, model.tokenize(TEXT), False)])
            sampled = model.step([Feed(sequence, [65], True) for sequence in range(12)])
            ends.append(next(one for one in sampled if one.sequence == 0))
        finally:
            model.close()
    assert_same(ends[1], ends[0])


@pytest.mark.parametrize("flash_attention", [True, False])
def test_flash_attention_is_a_setting(smollm2_path: Path, flash_attention: bool) -> None:
    model = LlamaCpp(spec(smollm2_path, flash_attention=flash_attention))
    try:
        words = model.tokenize(TEXT)
        feed(model, 0, words)
        model.fork(0, 1, 10)
        assert_same(last(model, 1, words[0]), recomputed(model, [words[:10]], words[0]))
    finally:
        model.close()


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"kv_type": "q8_0", "flash_attention": False}, "leave flash_attention unset"),
        ({"kv_cells": 512}, "set kv_layout to unified"),
        ({"kv_cells": 128, "kv_layout": "unified", "context_tokens": 512}, "at least the window"),
        ({"micro_batch_tokens": 65}, "1 to batch_tokens"),
        ({"micro_batch_tokens": 0}, "1 to batch_tokens"),
        ({"kv_cells": 2**40, "kv_layout": "unified"}, "ask for fewer"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_a_remedy(
    smollm2_path: Path, changes: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(DeviceError, match=remedy):
        LlamaCpp(spec(smollm2_path, **changes))


def test_a_state_of_another_layout_is_refused(smollm2_path: Path, streams: LlamaCpp) -> None:
    free_all(streams)
    feed(streams, 0, [65] * 9)
    blob = streams.save(0)
    model = LlamaCpp(spec(smollm2_path, kv_layout="unified"))
    try:
        with pytest.raises(DeviceError, match="another driver, model or memory layout"):
            model.restore(blob, 0)
        assert model.length(0) == 0
    finally:
        model.close()
