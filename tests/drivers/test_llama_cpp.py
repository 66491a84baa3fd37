"""What is particular to the llama.cpp driver; the contract suite covers the rest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.drivers.contract import DeviceError, Feed, ModelSpec
from llmos.drivers.llama_cpp import LlamaCpp
from llmos.drivers.utf8 import TextStream
from llmos.syscalls.content import assistant, system, user
from llmos.syscalls.options import GREEDY, Sampling

pytestmark = pytest.mark.model

PROMPT = "Rivers run to the"


def spec(path: Path, **sizes: Any) -> ModelSpec:
    small: dict[str, Any] = {"context_tokens": 256, "sequences": 4, "batch_tokens": 64}
    return ModelSpec("smollm2", path, **{**small, "threads": 1, **sizes})


@pytest.fixture(scope="module")
def opened(smollm2_path: Path) -> Iterator[LlamaCpp]:
    model = LlamaCpp(spec(smollm2_path))
    yield model
    model.close()


@pytest.fixture
def model(opened: LlamaCpp) -> Iterator[LlamaCpp]:
    yield opened
    for sequence in range(opened.info.sequences):
        opened.trim(sequence, 0)


def go_on(model: LlamaCpp, sequence: int = 0, tokens: int = 6, **adds: Any) -> list[int]:
    """The tokens that follow the prompt on an empty sequence."""
    pending, out = model.tokenize(PROMPT), list[int]()
    model.add(sequence, **{"sampling": GREEDY, **adds})
    for _ in range(tokens):
        (sampled,) = model.step([Feed(sequence, pending, True)])
        out.append(sampled.token)
        pending = [sampled.token]
    return out


# --- opening --------------------------------------------------------------------------------------


def test_the_info_comes_from_the_file(model: LlamaCpp) -> None:
    info = model.info
    assert (info.driver, info.architecture, info.weights_format) == ("llama_cpp", "llama", "Q4_1")
    assert info.parameters == 134_515_008
    assert info.vocabulary == 49_152
    assert not info.abilities.can_mix_adapters


def test_a_token_costs_the_kv_bytes_that_the_info_says(model: LlamaCpp) -> None:
    go_on(model)
    shorter, tokens = len(model.save(0)), model.length(0)
    model.step([Feed(0, [65] * 10, False)])
    # Each token also has 12 bytes of bookkeeping in a saved state.
    assert len(model.save(0)) - shorter == 10 * (model.info.kv_bytes_per_token + 12)
    assert model.length(0) == tokens + 10


def test_allocations_add_up_to_what_was_asked_for(model: LlamaCpp) -> None:
    held = {one.what: one.bytes for one in model.allocations()}
    info = model.info
    assert held["kv_cache"] == info.kv_bytes_per_token * info.context_tokens * info.sequences
    assert 90_000_000 < held["weights"] < 110_000_000
    assert 0 < held["compute"] < 50_000_000


def test_the_window_is_no_longer_than_what_the_model_was_trained_for(smollm2_path: Path) -> None:
    model = LlamaCpp(spec(smollm2_path, context_tokens=10_000, sequences=1))
    try:
        assert model.info.context_tokens == 8192
    finally:
        model.close()


def test_threads_are_the_cores_that_the_process_may_use(smollm2_path: Path) -> None:
    model = LlamaCpp(spec(smollm2_path, threads=None))
    try:
        threads: int = model._lib.llama_n_threads(model._context)  # pyright: ignore[reportPrivateUsage]
        assert threads == len(os.sched_getaffinity(0))
    finally:
        model.close()


def test_more_sequences_than_batch_tokens_open_and_run(smollm2_path: Path) -> None:
    model = LlamaCpp(spec(smollm2_path, context_tokens=32, sequences=12, batch_tokens=8))
    try:
        assert go_on(model, 11, tokens=2)
    finally:
        model.close()


def broken(whole: bytes, how: str) -> bytes:
    match how:
        case "empty":
            return b""
        case "not GGUF":
            return b"PK\x03\x04" + whole[4:4096]
        case "version":
            return whole[:4] + b"\x63\0\0\0" + whole[8:4096]
        case "header cut":
            return whole[:1000]
        case "tensors cut":
            return whole[: len(whole) // 2]
        case "last byte missing":
            return whole[:-1]
        case _:
            raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("empty", "too short"),
        ("not GGUF", "no GGUF"),
        ("version", "version 99"),
        ("header cut", "damaged or cut short"),
        ("tensors cut", "cut short"),
        ("last byte missing", "cut short"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(
    smollm2_path: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    how: str,
    reason: str,
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(broken(smollm2_path.read_bytes(), how))
    with pytest.raises(DeviceError, match=reason) as caught:
        LlamaCpp(spec(path))
    assert "model.gguf" in str(caught.value)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        LlamaCpp(spec(tmp_path / "absent.gguf"))
    with pytest.raises(DeviceError):
        LlamaCpp(spec(tmp_path))


def test_a_file_that_llama_cpp_does_not_know_is_refused_in_its_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "strange.gguf"
    write_gguf(path, architecture="strange", tensors={"x": np.zeros((4, 4), np.float32)})
    with pytest.raises(DeviceError, match="unknown model architecture: 'strange'"):
        LlamaCpp(spec(path))
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cuda"}, "device cpu"),
        ({"dtype": "float16"}, "dtype"),
        ({"sequences": 0}, "1 to 256 sequences"),
        ({"sequences": 257}, "1 to 256 sequences"),
        ({"batch_tokens": 0}, "at least 1"),
        ({"context_tokens": 8192, "sequences": 256, "batch_tokens": 256}, "GiB"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(
    smollm2_path: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DeviceError, match=reason):
        LlamaCpp(spec(smollm2_path, **change))


# --- tokens ---------------------------------------------------------------------------------------


def test_rendering_gives_the_ids_of_the_template_read_at_once(model: LlamaCpp) -> None:
    talk = [system("Be brief."), user("\nHi 🦙, 1 < 2?\n"), assistant(" Yes.\n\nIt is."), user("")]
    text = "".join(f"<|im_start|>{m.role}\n{m.text}<|im_end|>\n" for m in talk)
    ids = model.tokenize(text + "<|im_start|>assistant\nWell,", special=True)
    assert model.render(talk, prefix="Well,") == ids


def test_a_character_of_several_tokens_comes_out_whole(model: LlamaCpp) -> None:
    tokens = model.tokenize("🦙 ok")
    assert len(tokens) > 3
    stream = TextStream()
    pieces = [stream.push(model.detokenize([token])) for token in tokens]
    assert pieces[0] == ""
    assert "".join(pieces) + stream.finish() == "🦙 ok"


def test_tokenizing_while_the_model_closes_ends_in_ids_or_an_error(smollm2_path: Path) -> None:
    model = LlamaCpp(spec(smollm2_path, sequences=1))
    started, outcomes = threading.Barrier(4), list[Any]()

    def tokenize() -> None:
        started.wait()
        try:
            while True:
                model.tokenize(PROMPT)
        except DeviceError as problem:
            outcomes.append(problem)

    threads = [threading.Thread(target=tokenize) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    model.close()
    for thread in threads:
        thread.join()
    assert ["closed" in str(outcome) for outcome in outcomes] == [True] * 3


# --- failures in a step ---------------------------------------------------------------------------


class Faulty:
    """The library with one function replaced."""

    def __init__(self, library: Any, name: str, function: Callable[..., Any]) -> None:
        self._library = library
        setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


@pytest.mark.parametrize(("status", "is_fatal"), [(1, False), (-1, False), (-3, True)])
def test_a_failed_step_leaves_every_sequence_as_it_was(
    model: LlamaCpp, monkeypatch: pytest.MonkeyPatch, status: int, is_fatal: bool
) -> None:
    expected = go_on(model, 0)
    prompt = model.tokenize(PROMPT)
    model.add(1, sampling=GREEDY)
    model.step([Feed(1, prompt[:-1], False)])
    library: Any = model._lib  # pyright: ignore[reportPrivateUsage]

    def decode(context: Any, batch: Any) -> int:
        # The computation happened in part, as when a later pass of a step fails.
        library.llama_decode(context, batch)
        return status

    with monkeypatch.context() as patch:
        patch.setattr(model, "_lib", Faulty(library, "llama_decode", decode))
        with pytest.raises(DeviceError, match=f"status {status}") as caught:
            model.step([Feed(1, [65, 66], True), Feed(0, [67], True)])
    assert caught.value.is_fatal is is_fatal
    assert model.length(1) == len(prompt) - 1
    pending, out = prompt[-1:], list[int]()
    for _ in range(6):
        (sampled,) = model.step([Feed(1, pending, True)])
        out.append(sampled.token)
        pending = [sampled.token]
    assert out == expected


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_step_that_fails_in_any_of_its_passes_leaves_every_sequence_as_it_was(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    model = LlamaCpp(spec(smollm2_path, batch_tokens=96))
    prompt = model.tokenize(PROMPT)
    for sequence in range(3):
        model.add(sequence, sampling=GREEDY)
        model.step([Feed(sequence, prompt[:-1], False)])
    expected = model.step([Feed(0, prompt[-1:], True)])[0].token
    model.trim(0, len(prompt) - 1)
    library: Any = model._lib  # pyright: ignore[reportPrivateUsage]
    calls = 0

    def decode(context: Any, batch: Any) -> int:
        nonlocal calls
        calls += 1
        status: int = library.llama_decode(context, batch)
        return -1 if calls == failing else status

    long = (prompt * 40)[:40]
    with monkeypatch.context() as patch:
        patch.setattr(model, "_lib", Faulty(library, "llama_decode", decode))
        with pytest.raises(DeviceError, match="status -1"):
            model.step([Feed(0, prompt[-1:], True), Feed(1, long, True), Feed(2, long, True)])
    assert calls == failing
    assert [model.length(sequence) for sequence in range(3)] == [len(prompt) - 1] * 3
    for sequence in range(3):
        model.add(sequence, sampling=GREEDY)
        assert model.step([Feed(sequence, prompt[-1:], True)])[0].token == expected
    model.close()


def test_a_state_that_does_not_load_leaves_the_sequence_empty(model: LlamaCpp) -> None:
    go_on(model)
    blob = bytearray(model.save(0))
    blob[40:60] = b"\xff" * 20
    with pytest.raises(DeviceError, match="cannot be restored"):
        model.restore(bytes(blob), 1)
    assert model.length(1) == 0
    assert go_on(model, 1) == go_on(model, 2)


# --- adapters -------------------------------------------------------------------------------------

RANK, WIDTH = 2, 576


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    tensors: dict[str, Any],
    kind: str | None = None,
) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    if kind is not None:
        writer.add_type(kind)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(RANK))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_adapter(path: Path, *, seed: int, scale: float = 3.0) -> Path:
    """A LoRA of the last layers' queries that changes what the model says."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for layer in range(20, 30):
        name = f"blk.{layer}.attn_q.weight"
        tensors[f"{name}.lora_a"] = random.normal(0, 1, (RANK, WIDTH)).astype(np.float32)
        tensors[f"{name}.lora_b"] = random.normal(0, scale, (WIDTH, RANK)).astype(np.float32)
    return write_gguf(path, tensors=tensors, kind="adapter")


def test_sequences_name_their_adapter_and_steps_switch_it(model: LlamaCpp, tmp_path: Path) -> None:
    plain = go_on(model, 0)
    model.attach("one", write_adapter(tmp_path / "one.gguf", seed=1))
    model.attach("two", write_adapter(tmp_path / "two.gguf", seed=2))
    try:
        one, two = go_on(model, 1, adapter="one"), go_on(model, 2, adapter="two")
        assert len({tuple(plain), tuple(one), tuple(two)}) == 3
        # The base model goes on between them as if they were not there.
        model.trim(0, 0)
        assert go_on(model, 0) == plain
        model.trim(1, 0)
        assert go_on(model, 1, adapter="one") == one
        held = {allocation.what: allocation.bytes for allocation in model.allocations()}
        assert held["adapter one"] == (tmp_path / "one.gguf").stat().st_size
    finally:
        for sequence in range(3):
            model.trim(sequence, 0)
        model.detach("one")
        model.detach("two")
    assert go_on(model, 3) == plain


def test_one_step_cannot_mix_adapters(model: LlamaCpp, tmp_path: Path) -> None:
    model.attach("one", write_adapter(tmp_path / "one.gguf", seed=1))
    try:
        model.add(0, sampling=GREEDY, adapter="one")
        model.add(1, sampling=GREEDY)
        with pytest.raises(DeviceError, match="mixes the adapters"):
            model.step([Feed(0, [65], True), Feed(1, [65], True)])
        assert model.length(0) == model.length(1) == 0
    finally:
        model.detach("one")


def test_an_adapter_in_use_is_not_detached(model: LlamaCpp, tmp_path: Path) -> None:
    model.attach("one", write_adapter(tmp_path / "one.gguf", seed=1))
    with pytest.raises(DeviceError, match="attached already"):
        model.attach("one", tmp_path / "one.gguf")
    go_on(model, 0, adapter="one")
    with pytest.raises(DeviceError, match="sequence 0 uses the adapter one"):
        model.detach("one")
    model.trim(0, 0)
    model.detach("one")
    with pytest.raises(DeviceError, match="never added"):
        model.step([Feed(0, [65], True)])


def test_files_that_are_no_adapter_of_this_model_are_refused(
    model: LlamaCpp, smollm2_path: Path, tmp_path: Path
) -> None:
    whole = write_adapter(tmp_path / "whole.gguf", seed=1).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    narrow = {"blk.0.attn_q.weight.lora_a": np.zeros((RANK, 8), np.float32)}
    narrow["blk.0.attn_q.weight.lora_b"] = np.zeros((8, RANK), np.float32)
    write_gguf(tmp_path / "narrow.gguf", tensors=narrow, kind="adapter")
    for path in (tmp_path / "cut.gguf", tmp_path / "narrow.gguf", tmp_path, smollm2_path):
        with pytest.raises(DeviceError) as caught:
            model.attach("bad", path)
        assert not caught.value.is_fatal
    with pytest.raises(DeviceError, match="No such file"):
        model.attach("bad", tmp_path / "absent.gguf")
    assert go_on(model)


def test_logits_that_are_not_finite_are_a_fatal_error(smollm2_path: Path, tmp_path: Path) -> None:
    model = LlamaCpp(spec(smollm2_path))
    try:
        model.attach("nan", write_adapter(tmp_path / "nan.gguf", seed=1, scale=float("nan")))
        for sampling in (GREEDY, Sampling(temperature=1.0)):
            model.add(0, sampling=sampling, adapter="nan")
            with pytest.raises(DeviceError, match="not finite") as caught:
                model.step([Feed(0, [65, 66], True)])
            assert caught.value.is_fatal
    finally:
        model.close()


# --- streams --------------------------------------------------------------------------------------


def test_running_sequences_move_together_and_nothing_else_changes(model: LlamaCpp) -> None:
    expected = go_on(model, 0, tokens=8)
    model.trim(0, 0)
    prompt = model.tokenize(PROMPT)
    stream_of = model._kv.number  # pyright: ignore[reportPrivateUsage]
    # Two run with one between them that rests on other tokens.
    resting = go_on(model, 1, tokens=3, sampling=Sampling(logit_bias={500: 90.0}))
    blob, kept = model.save(1), model.length(1)
    outs: dict[int, list[int]] = {0: [], 2: []}
    pending = {0: prompt, 2: prompt}
    for sequence in outs:
        model.add(sequence, sampling=GREEDY)
    for _ in range(8):
        for one in model.step([Feed(s, tokens, True) for s, tokens in pending.items()]):
            outs[one.sequence].append(one.token)
            pending[one.sequence] = [one.token]
    assert abs(stream_of(0) - stream_of(2)) == 1
    assert outs[0] == outs[2] == expected
    assert (model.save(1)[44:], model.length(1)) == (blob[44:], kept)
    assert resting == [500] * 3


# --- drafts ---------------------------------------------------------------------------------------


def test_sampled_texts_are_the_same_with_and_without_guesses(model: LlamaCpp) -> None:
    """One draw a token from logits that guesses do not change: the distribution is untouched."""
    differing = 0
    for seed in range(6):
        sampling = Sampling(temperature=1.0, top_k=40, seed=seed)
        plain = go_on(model, tokens=24, sampling=sampling)
        model.trim(0, 0)
        model.add(0, sampling=sampling)
        pending, out = model.tokenize(PROMPT), list[int]()
        while len(out) < 24:
            # Right, then wrong from the third on.
            draft = [*plain[len(out) : len(out) + 2], 65, 66][: 24 - len(out)]
            sampled = model.step([Feed(0, pending, True, draft)])
            out += [one.token for one in sampled]
            pending = out[-1:]
        model.trim(0, 0)
        differing += out[:24] != plain
    assert differing <= 1  # a draw may fall within the rounding of another batch shape
