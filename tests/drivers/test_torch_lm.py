"""The torch driver beyond the contract: its arithmetic, its failures, adapters, other formats.

Most run on a tiny model with random weights, whose probabilities are compared with those that
transformers computes without any of our code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.drivers.contract import DeviceError, Feed, ModelSpec, Sampled
from llmos.drivers.torch_lm import TorchLM
from llmos.syscalls.content import user
from llmos.syscalls.options import GREEDY, Sampling

ROUNDING = 1e-4
WATCHED = Sampling(logprobs=20)
MakeLora = Callable[..., Path]
TEXTS = ("The first of the texts", "Another", "And a third one, which is longer than the others")


def open_tiny(path: Path, **changes: Any) -> TorchLM:
    sizes = {"context_tokens": 512, "sequences": 4, "batch_tokens": 256, "threads": 1}
    return TorchLM(ModelSpec("tiny", path, **{**sizes, **changes}))


@pytest.fixture
def tiny(tiny_model_path: Path) -> Iterator[TorchLM]:
    model = open_tiny(tiny_model_path)
    for sequence in range(4):
        model.add(sequence, sampling=WATCHED)
    yield model
    model.close()


@pytest.fixture(scope="module")
def reference(tiny_model_path: Path) -> Callable[[list[int]], torch.Tensor]:
    """Log-probabilities after a text, by transformers' own attention and cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)

    def logprobs(tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([tokens])).logits[0, -1].log_softmax(dim=0)

    return logprobs


def assert_close(sampled: Any, expected: torch.Tensor) -> None:
    for token, logprob in sampled.top:
        assert logprob == pytest.approx(float(expected[token]), abs=ROUNDING)
    assert float(expected[sampled.token]) == pytest.approx(float(expected.max()), abs=ROUNDING)


# --- arithmetic -----------------------------------------------------------------------------------


def test_a_packed_step_computes_what_each_text_alone_would(
    tiny: TorchLM, reference: Callable[[list[int]], torch.Tensor]
) -> None:
    texts = [tiny.tokenize(text) for text in TEXTS]
    # One goes on from a beginning, one is new, and one decodes a single token.
    tiny.step([Feed(0, texts[0][:9], False), Feed(2, texts[2][:-1], False)])
    feeds = [Feed(2, texts[2][-1:], True), Feed(0, texts[0][9:], True), Feed(1, texts[1], True)]
    sampled = {one.sequence: one for one in tiny.step(feeds)}
    for sequence, text in enumerate(texts):
        assert_close(sampled[sequence], reference(text))


def test_forks_compute_what_the_whole_texts_would(
    tiny: TorchLM, reference: Callable[[list[int]], torch.Tensor]
) -> None:
    shared, *ends = (tiny.tokenize(text) for text in TEXTS)
    tiny.step([Feed(0, shared, False)])
    for target in (1, 2):
        tiny.fork(0, target, len(shared))
    sampled = tiny.step([Feed(1, ends[0], True), Feed(2, ends[1], True), Feed(0, ends[0], True)])
    for one, end in zip(sampled, (ends[0], ends[1], ends[0]), strict=True):
        assert_close(one, reference(shared + end))


def test_a_long_text_fed_token_by_token_stays_right(
    tiny: TorchLM, reference: Callable[[list[int]], torch.Tensor]
) -> None:
    text = tiny.tokenize("0123456789 " * 30)[:300]  # over the end of a KV block
    sampled = [tiny.step([Feed(3, [token], True)]) for token in text]
    assert_close(sampled[-1][0], reference(text))
    assert_close(sampled[255][0], reference(text[:256]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_the_full_one(
    tiny_model_path: Path, dtype: str, reference: Callable[[list[int]], torch.Tensor]
) -> None:
    model = open_tiny(tiny_model_path, dtype=dtype)
    text = model.tokenize(TEXTS[2])
    model.add(0, sampling=WATCHED)
    model.step([Feed(0, text[:-3], False)])
    (sampled,) = model.step([Feed(0, text[-3:], True)])
    expected = reference(text)
    for token, logprob in sampled.top:
        assert logprob == pytest.approx(float(expected[token]), abs=0.02)
    assert model.info.kv_bytes_per_token == open_tiny(tiny_model_path).info.kv_bytes_per_token // 2
    assert model.info.weights_format == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_what_the_cpu_does(
    tiny_model_path: Path, reference: Callable[[list[int]], torch.Tensor]
) -> None:
    model = open_tiny(tiny_model_path, device="cuda", dtype="float32")
    text = model.tokenize(TEXTS[2])
    model.add(0, sampling=WATCHED)
    model.step([Feed(0, text[:5], False)])
    (sampled,) = model.step([Feed(0, text[5:], True)])
    expected = reference(text)
    for token, logprob in sampled.top:
        assert logprob == pytest.approx(float(expected[token]), abs=0.01)


# --- memory ---------------------------------------------------------------------------------------


def kv_bytes(model: TorchLM) -> int:
    return {one.what: one.bytes for one in model.allocations()}["kv_cache"]


def test_an_emptied_sequence_gives_its_memory_back(tiny: TorchLM) -> None:
    tiny.step([Feed(0, [65] * 100, False), Feed(1, [65], False)])
    both = kv_bytes(tiny)
    tiny.trim(0, 0)
    assert 0 < kv_bytes(tiny) < both
    tiny.trim(1, 0)
    assert kv_bytes(tiny) == 0


def test_memory_follows_the_tokens_and_not_the_window(tiny_model_path: Path) -> None:
    model = open_tiny(tiny_model_path, context_tokens=512)
    assert kv_bytes(model) == 0
    model.add(0, sampling=GREEDY)
    model.step([Feed(0, [65], False)])
    assert kv_bytes(model) == 256 * model.info.kv_bytes_per_token


def test_weights_are_counted_once_though_the_head_shares_them(tiny: TorchLM) -> None:
    held = {one.what: one.bytes for one in tiny.allocations()}
    assert held["weights"] == 4 * tiny.info.parameters


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [RuntimeError("broken"), torch.OutOfMemoryError("none left"), MemoryError()]
)
def test_a_failed_step_changes_no_sequence(
    tiny: TorchLM, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tiny.tokenize(TEXTS[0])
    (expected,) = tiny.step([Feed(0, text, True)])
    tiny.step([Feed(1, text[:5], False)])

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "silu", fail)  # a layer's KV is written by then
        with pytest.raises(DeviceError) as caught:
            tiny.step([Feed(1, text[::-1], True), Feed(2, text, True)])
    assert not caught.value.is_fatal
    assert caught.value.__cause__ is failure
    assert [tiny.length(sequence) for sequence in range(3)] == [len(text), 5, 0]
    (again,) = tiny.step([Feed(1, text[5:], True)])
    assert again.token == expected.token
    assert again.logprob == pytest.approx(expected.logprob, abs=ROUNDING)


def test_a_step_whose_result_is_not_finite_changes_no_sequence(tiny: TorchLM) -> None:
    tiny._model.model.norm.weight[3] = float("nan")
    with pytest.raises(DeviceError, match="not finite") as caught:
        tiny.step([Feed(0, [65, 66], True)])
    assert not caught.value.is_fatal
    assert tiny.length(0) == 0


def copy_of(folder: Path, into: Path, **changes: bytes) -> Path:
    """The model's folder with some files' contents replaced."""
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).write_bytes(changes.get(file.name, file.read_bytes()))
    return into


def test_damaged_files_are_refused_with_a_reason(tiny_model_path: Path, tmp_path: Path) -> None:
    weights = (tiny_model_path / "model.safetensors").read_bytes()
    damaged = {
        "cut weights": {"model.safetensors": weights[:-1000]},
        "no weights": {"model.safetensors": b""},
        "no settings": {"config.json": b"{}"},
        "cut tokenizer": {"tokenizer.json": b'{"version"'},
    }
    for name, changes in damaged.items():
        with pytest.raises(DeviceError) as caught:
            open_tiny(copy_of(tiny_model_path, tmp_path / name, **changes))
        assert caught.value.__cause__ is not None, name
    with pytest.raises(DeviceError, match="cannot read"):
        open_tiny(tmp_path / "nowhere.gguf")
    noise = tmp_path / "noise.gguf"
    noise.write_bytes(b"noise" * 100)
    with pytest.raises(DeviceError, match="no GGUF file"):
        open_tiny(noise)


def test_weights_that_are_not_numbers_are_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import load, save

    tensors = load((tiny_model_path / "model.safetensors").read_bytes())
    tensors["model.norm.weight"][0] = float("inf")
    weights = save(tensors, metadata={"format": "pt"})
    with pytest.raises(DeviceError, match="not finite"):
        open_tiny(copy_of(tiny_model_path, tmp_path / "inf", **{"model.safetensors": weights}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "tpu"}, "cpu and cuda"),
        ({"dtype": "int4"}, "dtype is auto"),
        ({"sequences": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tiny_model_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DeviceError, match=reason):
        open_tiny(tiny_model_path, **changes)


def test_an_architecture_with_other_attention_is_refused(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    import json

    settings = json.loads((tiny_model_path / "config.json").read_bytes())
    settings["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    changed = copy_of(
        tiny_model_path, tmp_path / "rope", **{"config.json": json.dumps(settings).encode()}
    )
    with pytest.raises(DeviceError, match="dynamic"):
        open_tiny(changed)


def test_a_state_of_another_number_format_is_refused(tiny: TorchLM, tiny_model_path: Path) -> None:
    tiny.step([Feed(0, [65] * 10, False)])
    other = open_tiny(tiny_model_path, dtype="bfloat16")
    with pytest.raises(DeviceError, match="another driver, model or memory layout"):
        other.restore(tiny.save(0), 0)
    assert other.length(0) == 0


# --- adapters -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(make_lora: MakeLora, tiny_model_path: Path) -> Path:
    return make_lora(tiny_model_path, "one")


def test_an_adapter_changes_its_own_sequences_and_no_others(tiny: TorchLM, lora: Path) -> None:
    text = tiny.tokenize(TEXTS[0])
    (before,) = tiny.step([Feed(0, text, True)])
    tiny.attach("tone.v2", lora)
    tiny.add(1, sampling=WATCHED, adapter="tone.v2")
    (changed,) = tiny.step([Feed(1, text, True)])
    (base,) = tiny.step([Feed(2, text, True)])
    assert base.top == before.top
    assert changed.top != before.top
    # The base's KV, and the adapter's, are as if the other had never run.
    (went_on,) = tiny.step([Feed(0, [65], True)])
    (beside,) = tiny.step([Feed(2, [65], True)])
    assert went_on.top == beside.top


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_an_adapter_computes_what_peft_does(
    tiny: TorchLM, lora: Path, tiny_model_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(lora))
    text = tiny.tokenize(TEXTS[2])
    tiny.attach("tone", lora)
    tiny.add(0, sampling=WATCHED, adapter="tone")
    tiny.step([Feed(0, text[:-2], False)])
    (sampled,) = tiny.step([Feed(0, text[-2:], True)])
    with torch.inference_mode():
        expected = adapted(torch.tensor([text])).logits[0, -1].log_softmax(dim=0)
    assert_close(sampled, expected)


def test_two_adapters_take_turns(
    tiny: TorchLM, lora: Path, make_lora: MakeLora, tiny_model_path: Path
) -> None:
    other = make_lora(tiny_model_path, "two", seed=2, r=2, target_modules=["o_proj"])
    text = tiny.tokenize(TEXTS[0])
    tiny.attach("one", lora)
    tiny.add(1, sampling=WATCHED, adapter="one")
    (alone,) = tiny.step([Feed(1, text, True)])
    tiny.attach("two", other)
    tiny.add(2, sampling=WATCHED, adapter="two")
    (second,) = tiny.step([Feed(2, text, True)])
    tiny.trim(1, 0)
    (first,) = tiny.step([Feed(1, text, True)])
    assert first.top == alone.top
    assert second.top != first.top
    sizes = {one.what: one.bytes for one in tiny.allocations()}
    assert sizes["adapter one"] > sizes["adapter two"] > 0
    assert sizes["weights"] == 4 * tiny.info.parameters


def test_a_step_mixes_adapters_and_none_and_gives_what_each_alone_would(
    tiny: TorchLM, lora: Path, make_lora: MakeLora, tiny_model_path: Path
) -> None:
    other = make_lora(tiny_model_path, "two", seed=2, r=2, target_modules=["o_proj", "k_proj"])
    tiny.attach("one", lora)
    tiny.attach("two", other)
    adapters = (None, "two", "one", "two")
    texts = [tiny.tokenize(text) for text in (*TEXTS, TEXTS[0])]
    alone: list[Any] = []
    for sequence, (text, adapter) in enumerate(zip(texts, adapters, strict=True)):
        tiny.add(sequence, sampling=WATCHED, adapter=adapter)
        alone += tiny.step([Feed(sequence, text, True)])
        tiny.trim(sequence, 0)
    tiny.step([Feed(sequence, text[:-1], sequence == 1) for sequence, text in enumerate(texts)])
    together = tiny.step([Feed(s, text[-1:], True) for s, text in enumerate(texts)])
    for one in together:
        expected = dict(alone[one.sequence].top)
        assert one.token == alone[one.sequence].token
        for token, logprob in one.top[:10]:
            assert logprob == pytest.approx(expected[token], abs=ROUNDING)


def test_adapters_that_lie_side_by_side_serve_steps_of_fewer_and_of_others(
    tiny: TorchLM, lora: Path, make_lora: MakeLora, tiny_model_path: Path
) -> None:
    tiny.attach("a", lora)
    for number, name in enumerate("bcde", start=2):
        ranks = {"seed": number, "r": number, "target_modules": ["o_proj", "k_proj"]}
        tiny.attach(name, make_lora(tiny_model_path, name, **ranks))
    text = tiny.tokenize(TEXTS[0])

    def step(adapters: str) -> list[Sampled]:
        for sequence, adapter in enumerate(adapters):
            tiny.trim(sequence, 0)
            tiny.add(sequence, sampling=WATCHED, adapter=adapter)
            tiny.step([Feed(sequence, text[:-1], False)])
        return tiny.step([Feed(sequence, text[-1:], True) for sequence in range(len(adapters))])

    alone = {name: step(name)[0] for name in "abcde"}
    for adapters in ("abcd", "bd", "ab", "ea", "aab"):
        for one in step(adapters):
            expected = alone[adapters[one.sequence]]
            assert one.token == expected.token
            assert one.logprob == pytest.approx(expected.logprob, abs=ROUNDING)
    tiny.trim(2, 0)
    tiny.step([])
    sizes = {one.what: one.bytes for one in tiny.allocations()}
    assert sizes["adapters side by side"] == sizes["adapter a"] + sizes["adapter b"]


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Qwen3", "Phi3", "Olmo2"])
def test_an_architecture_computes_what_transformers_does(
    kind: str, tiny_model_path: Path, tmp_path: Path, make_lora: MakeLora
) -> None:
    import transformers

    torch.manual_seed(3)
    settings = getattr(transformers, f"{kind}Config")(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=0,
        tie_word_embeddings=kind == "Qwen3",
    )
    reference = getattr(transformers, f"{kind}ForCausalLM")(settings).eval()
    for name, parameter in reference.named_parameters():
        if "bias" in name or "norm" in name:  # which begin as zeros and ones
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    folder = copy_of(tiny_model_path, tmp_path / kind)
    reference.save_pretrained(folder)
    model = open_tiny(folder)
    text = model.tokenize(TEXTS[2])
    model.attach("tone", make_lora(folder, kind, target_modules=["o_proj", "down_proj"]))
    model.add(0, sampling=WATCHED)
    model.add(1, sampling=WATCHED, adapter="tone")
    model.step([Feed(1, text[:-3], False), Feed(0, text[:-2], False)])
    adapted, plain = sorted(
        model.step([Feed(1, text[-3:], True), Feed(0, text[-2:], True)]),
        key=lambda one: -one.sequence,
    )
    with torch.inference_mode():
        assert_close(plain, reference(torch.tensor([text])).logits[0, -1].log_softmax(dim=0))
    assert adapted.top != plain.top


def test_a_wrong_guess_leaves_no_trace_and_a_right_one_saves_a_step(tiny: TorchLM) -> None:
    text = tiny.tokenize(TEXTS[0])
    feed, out = text, list[Any]()
    for _ in range(4):
        out += tiny.step([Feed(0, feed, True)])
        feed = [out[-1].token]
    first, second, third, fourth = (one.token for one in out)
    wrong = (third + 1) % 256
    guessed = tiny.step([Feed(1, text, True, draft=(first, second, wrong))])
    assert [one.token for one in guessed] == [first, second, third]
    assert tiny.length(1) == len(text) + 2
    (after,) = tiny.step([Feed(1, [third], True)])
    assert after.token == fourth
    assert after.logprob == pytest.approx(out[-1].logprob, abs=ROUNDING)


def test_a_detached_adapter_leaves_the_base_model(tiny: TorchLM, lora: Path) -> None:
    text = tiny.tokenize(TEXTS[0])
    (before,) = tiny.step([Feed(0, text, True)])
    tiny.attach("tone", lora)
    tiny.add(1, sampling=WATCHED, adapter="tone")
    tiny.step([Feed(1, text, True)])
    with pytest.raises(DeviceError, match="trim it first"):
        tiny.detach("tone")
    tiny.trim(1, 0)
    tiny.detach("tone")
    with pytest.raises(DeviceError, match="no adapter tone"):
        tiny.add(1, sampling=WATCHED, adapter="tone")
    tiny.trim(0, 0)
    (after,) = tiny.step([Feed(0, text, True)])
    assert after.top == before.top
    assert not [one for one in tiny.allocations() if one.what.startswith("adapter")]
    tiny.attach("tone", lora)


def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    tiny: TorchLM, lora: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    text = tiny.tokenize(TEXTS[0])
    (before,) = tiny.step([Feed(0, text, True)])
    foreign = copy_of(lora, tmp_path / "foreign")
    tensors = load_file(lora / "adapter_model.safetensors")
    first = next(name for name in tensors if "lora_A" in name)
    tensors[first] = torch.zeros(4, 48)
    save_file(tensors, foreign / "adapter_model.safetensors")
    cut = copy_of(lora, tmp_path / "cut", **{"adapter_model.safetensors": b"\0" * 20})
    for folder, reason in (
        (foreign, "another model"),
        (cut, "no readable peft adapter"),
        (tmp_path / "nowhere", "no readable peft adapter"),
    ):
        with pytest.raises(DeviceError, match=reason):
            tiny.attach("tone", folder)
    tiny.trim(0, 0)
    (after,) = tiny.step([Feed(0, text, True)])
    assert after.top == before.top
    tiny.attach("tone", lora)
    with pytest.raises(DeviceError, match="attached already"):
        tiny.attach("tone", lora)


# --- the real model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[TorchLM]:
    model = TorchLM(ModelSpec("smollm2", smollm2_path, context_tokens=512, sequences=4))
    yield model
    model.close()


@pytest.mark.model
def test_a_real_model_answers_from_its_gguf_file(smollm2: TorchLM) -> None:
    prompt = smollm2.render([user("What is the capital of France?")])
    smollm2.add(0, sampling=GREEDY, prompt=prompt)
    out: list[int] = []
    feed = prompt
    for _ in range(12):
        (sampled,) = smollm2.step([Feed(0, feed, True)])
        if sampled.is_end:
            break
        out.append(sampled.token)
        feed = [sampled.token]
    assert smollm2.detokenize(out) == b"The capital of France is Paris."


@pytest.mark.model
def test_opening_a_real_model_twice_converts_it_once(smollm2: TorchLM, smollm2_path: Path) -> None:
    from llmos.drivers.torch_weights import checkpoint

    folder = checkpoint(smollm2_path)
    before = (folder / "model.safetensors").stat()
    assert checkpoint(smollm2_path) == folder
    assert (folder / "model.safetensors").stat() == before
    assert folder.parent == smollm2_path.parent
    assert not list(folder.parent.glob(f".{smollm2_path.name}.*"))


@pytest.mark.model
def test_both_drivers_read_text_as_the_same_tokens(smollm2: TorchLM, smollm2_path: Path) -> None:
    from llmos.drivers.llama_cpp import LlamaCpp

    llama = LlamaCpp(ModelSpec("smollm2", smollm2_path, context_tokens=64, sequences=1))
    sources = sorted((Path(__file__).parents[2] / "drivers").glob("*.py"))
    texts = [
        "In  2024 there were 1,234 people;\n\n   3 of them\tleft.",
        "½ cup, ² and Ⅷ; naïve café ☕ 日本語 🦙 １２",
        "Don't you'll I'M  \r\n\r\n7 \u00a0 end   ",
        "<|im_start|>user\nhi<|im_end|>\n",
        *(source.read_text() for source in sources[:5]),
    ]
    for text in texts:
        for special in (False, True):
            assert smollm2.tokenize(text, special=special) == llama.tokenize(text, special=special)
    assert smollm2.info.end_tokens == llama.info.end_tokens
    talk = [user("Name three fruits."), user("And 12  more?")]
    assert smollm2.render(talk) == llama.render(talk)
    llama.close()
