"""KV that cannot be cut, on llama.cpp: a Mamba with random weights says what recomputing would."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmos
from llmos.config import ModelConfig
from llmos.drivers.contract import Feed, LanguageModel, ModelSpec
from llmos.drivers.opening import open_language_model
from llmos.drivers.utf8 import TextStream
from llmos.kernel.generation import Generation, Order
from llmos.kernel.pace import Pace
from llmos.kernel.policies import Entry
from llmos.kernel.residency import Residency
from llmos.memory.tiers import Tiers
from llmos.syscalls.content import system, user
from llmos.syscalls.options import Sampling

pytestmark = pytest.mark.model

WIDTH, INNER, CONVOLVED, STATE, RANK, LAYERS = 64, 128, 4, 16, 4, 2
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# A vocabulary of the letters that the tests use, in the form of byte-level BPE.
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?! \n"
PIECES = [
    *LETTERS.replace(" ", "\u0120").replace("\n", "\u010a"),
    "\u0120t",
    "<|start|>",
    "<|end|>",
]


def write_mamba(path: Path) -> Path:
    """A Mamba of 0.1 million random weights."""
    import gguf

    random = np.random.default_rng(0)

    def drawn(*shape: int, scale: float = 0.3) -> Any:
        return random.normal(0, scale, shape).astype(np.float32)

    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)  # as in the files of real ones: there is no attention
    writer.add_block_count(LAYERS)
    writer.add_ssm_conv_kernel(CONVOLVED)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(PIECES)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([*[normal] * (len(PIECES) - 2), control, control])
    writer.add_token_merges(["\u0120 t"])
    writer.add_eos_token_id(len(PIECES) - 1)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", drawn(len(PIECES), WIDTH, scale=1.0))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output.weight", drawn(len(PIECES), WIDTH, scale=1.0))
    for layer in range(LAYERS):
        tensors = {
            "attn_norm.weight": np.ones(WIDTH, np.float32),
            "ssm_in.weight": drawn(2 * INNER, WIDTH),
            "ssm_conv1d.weight": drawn(INNER, CONVOLVED),
            "ssm_conv1d.bias": drawn(INNER),
            "ssm_x.weight": drawn(RANK + 2 * STATE, INNER),
            "ssm_dt.weight": drawn(INNER, RANK),
            "ssm_dt.bias": drawn(INNER) - 2,
            "ssm_a": -np.exp(drawn(INNER, STATE)),
            "ssm_d": np.ones(INNER, np.float32),
            "ssm_out.weight": drawn(WIDTH, INNER),
        }
        for name, tensor in tensors.items():
            writer.add_tensor(f"blk.{layer}.{name}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def mamba_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mamba(tmp_path_factory.mktemp("models") / "mamba.gguf")


@pytest.fixture(params=["streams", "unified"])
def driver(request: Any, mamba_path: Path) -> Iterator[LanguageModel]:
    spec = ModelSpec(
        "mamba", mamba_path, context_tokens=400, sequences=2, threads=1, kv_layout=request.param
    )
    opened = open_language_model("llama_cpp", spec)
    yield opened
    opened.close()


class Bench:
    """Greedy runs on a driver with a residency. Computing is said to be dear."""

    def __init__(self, driver: LanguageModel) -> None:
        for sequence in range(driver.info.sequences):
            driver.trim(sequence, 0)
        self.driver = driver
        self.residency = Residency(
            driver,
            attach=lambda name: None,
            pace=Pace({1: 1.0, 512: 512.0}),
            tiers=Tiers(host_bytes=10**9),
        )
        self.key = 0

    def ask(self, prompt: list[int]) -> Generation:
        """A generation that has its place."""
        self.key += 1
        generation = Generation(
            order=Order(prompt=prompt, sampling=Sampling(temperature=0), max_tokens=8),
            entry=Entry(key=self.key, pid=1, nice=0, arrived_s=0, queued_s=0),
            pieces=None,
            done=None,  # type: ignore[arg-type]
            text=TextStream(()),
        )
        assert self.residency.place(generation)
        return generation

    def feed(self, generation: Generation, steps: int) -> None:
        sequence = generation.sequence
        assert sequence is not None
        for _ in range(steps):
            tokens = generation.known(generation.fed, generation.length)
            (sampled,) = self.driver.step([Feed(sequence, tokens, sample=True)])
            self.residency.record(sequence, tokens)
            generation.fed += len(tokens)
            generation.output.append(sampled.token)

    def run(self, prompt: list[int]) -> tuple[int, list[int]]:
        """How many tokens were reused, and what was sampled."""
        generation = self.ask(prompt)
        reused = generation.fed
        self.feed(generation, 6)
        self.residency.let_go(generation, keep=True)
        return reused, generation.output


def alone(driver: LanguageModel, prompt: list[int]) -> list[int]:
    return Bench(driver).run(prompt)[1]


def test_conversations_go_on_from_whole_states_and_from_nothing_less(driver: LanguageModel) -> None:
    rules = driver.tokenize("Be patient. " * 5)
    turns: list[list[list[int]]] = []  # of each conversation, what it sends
    reused: list[int] = []
    said: list[list[int]] = []
    bench = Bench(driver)
    talks = [rules + driver.tokenize(word * 4) for word in ("amber ", "river ", "stone ")]
    for _ in range(3):
        turns.append([list(talk) for talk in talks])
        for talk in talks:
            tokens, answer = bench.run(talk)
            reused.append(tokens)
            said.append(answer)
            talk += [*answer, *driver.tokenize("And then?")]
    sent = [talk for turn in turns for talk in turn]
    held = [len(sent[at]) + 5 for at in range(6)]  # the last token sampled is not fed
    assert reused == [0, 0, 0, *held]
    assert said == [alone(driver, prompt) for prompt in sent]


def test_what_gives_way_and_what_is_forked_while_it_runs_go_on_as_they_would_alone(
    driver: LanguageModel,
) -> None:
    prompt = driver.tokenize("amber " * 8)
    bench = Bench(driver)
    running = bench.ask(prompt)
    bench.feed(running, 2)
    branch = [*running.known(0, running.fed), *driver.tokenize("But why?")]
    reused, said = bench.run(branch)
    assert reused == running.fed
    bench.feed(running, 2)
    bench.residency.swap_out(running)
    bench.run(driver.tokenize("river " * 8))
    assert bench.residency.place(running)
    assert running.fed == len(prompt) + 3
    bench.feed(running, 2)
    assert (said, running.output) == (alone(driver, branch), alone(driver, prompt))


def test_agents_with_the_same_rules_are_all_answered(mamba_path: Path, tmp_path: Path) -> None:
    model = ModelConfig(
        source=f"file:{mamba_path}",
        driver="llama_cpp",
        weights="shipped",
        context_tokens=400,
        sequences=2,
    )
    rules = system("Answer in one short and plain sentence. " * 3)

    async def answers(home: Path, words: list[str]) -> list[str]:
        async with llmos.boot(home=home, models={"mamba": model}) as kernel:
            asked = [
                kernel.os.generate(
                    [rules, user(word)], max_tokens=8, sampling=Sampling(temperature=0)
                )
                for word in words
            ]
            return [generated.text for generated in await asyncio.gather(*asked)]

    words = ["amber", "river", "stone", "lantern"]
    together = asyncio.run(answers(tmp_path / "together", words * 2))
    each = [asyncio.run(answers(tmp_path / word, [word]))[0] for word in words]
    assert together == each * 2
