"""Releases with real weights: exports that agree, and full weights exchanged under a caller."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import llmos
from llmos.config import Config, ModelConfig
from llmos.drivers.contract import Feed, LanguageModel, ModelSpec
from llmos.drivers.opening import DriverName, open_language_model
from llmos.drivers.torch_weights import checkpoint
from llmos.kernel.kernel import Kernel
from llmos.syscalls.options import GREEDY, Sampling
from llmos.syscalls.results import ModelVersion

pytestmark = pytest.mark.model

TEXT = (
    "The harbour of the old town lies below the castle. Every morning the boats leave before "
    "sunrise, and in the evening their crews sell what they caught on the market. A kernel "
    "decides which of the programs runs next, and for how long."
)


@pytest.fixture(scope="module")
def adapter(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that changes what the model says, as peft writes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint(smollm2_path), dtype=torch.float32)
    adapted: Any = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    adapted.save_pretrained(folder)
    return folder


def config(tmp_path: Path) -> Config:
    sizes: dict[str, Any] = {"source": "smollm2", "context_tokens": 512, "sequences": 2}
    return Config(
        home=tmp_path / "home",
        models={
            "cpp": ModelConfig(driver="llama_cpp", weights="F16", **sizes),
        },
        default_model="cpp",
    )


def likeliest(
    driver: LanguageModel, tokens: Sequence[int], adapter: str | None = None
) -> list[int]:
    """The most likely token after each of the text's."""
    found: list[int] = []
    driver.add(0, sampling=Sampling(temperature=0), prompt=tokens, adapter=adapter)
    for token in tokens:
        (sampled,) = driver.step([Feed(0, [token], sample=True)])
        found.append(sampled.token)
    driver.trim(0, 0)
    return found


def agreement(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def opened(driver: DriverName, path: Path) -> LanguageModel:
    dtype = "float32" if driver == "torch" else "auto"  # a GGUF file has its own
    # One thread: two that wait for each other crawl when the machine has other work.
    spec = ModelSpec("m", path, context_tokens=256, sequences=1, threads=1, dtype=dtype)
    return open_language_model(driver, spec)


def add(kernel: Kernel, name: str, kind: str, path: Path) -> None:
    kernel.registry().add(
        ModelVersion.model_validate(
            {"name": name, "kind": kind, "base": "smollm2", "path": str(path)}
        )
    )


class Exports(NamedTuple):
    """The adapter merged with its base, in each form."""

    gguf: Path
    small: Path
    folder: Path


@pytest.fixture(scope="module")
def exports(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    home = tmp_path_factory.mktemp("exports")

    async def export() -> Exports:
        async with llmos.boot(config(home)) as kernel:
            add(kernel, "style", "adapter", adapter)
            gguf = await kernel.os.model_export("style", "gguf")
            small = await kernel.os.model_export("style", "gguf", quantize="Q8_0")
            folder = await kernel.os.model_export("style", path=str(home / "merged"))
            assert small.bytes < gguf.bytes
            return Exports(Path(gguf.path), Path(small.path), Path(folder.path))

    return asyncio.run(export())


def test_exports_say_what_the_adapter_says(
    smollm2_path: Path, adapter: Path, exports: Exports
) -> None:
    base = opened("torch", smollm2_path)
    tokens = base.tokenize(TEXT)
    plain = likeliest(base, tokens)
    base.attach("style", adapter)
    wanted = likeliest(base, tokens, "style")
    base.close()
    assert agreement(plain, wanted) < 0.9
    for driver, path, least in (
        ("torch", exports.folder, 0.95),
        ("llama_cpp", exports.gguf, 0.95),
        ("llama_cpp", exports.small, 0.8),
    ):
        exported = opened(driver, path)
        assert exported.tokenize(TEXT) == tokens
        assert agreement(likeliest(exported, tokens), wanted) >= least
        exported.close()


def test_full_weights_are_exchanged_under_a_running_call_of_llama_cpp(
    adapter: Path, exports: Exports, tmp_path: Path
) -> None:
    question = "Name a colour."

    async def scenario() -> None:
        async with llmos.boot(config(tmp_path)) as kernel:
            os = kernel.os

            async def said(adapter: str | None = None, tokens: int = 12) -> str:
                answer = await os.generate(
                    question, adapter=adapter, max_tokens=tokens, sampling=GREEDY
                )
                return answer.text

            add(kernel, "style", "adapter", adapter)
            before = await said()
            assert before != await said("style")
            add(kernel, "whole", "full", exports.folder)
            alone = await said(tokens=60)
            long = asyncio.create_task(said(tokens=60))
            while not kernel.inference._under_way:
                await asyncio.to_thread(lambda: None)
            await os.model_promote("whole")
            after = await said()
            assert after != before
            assert await long == alone
            await os.model_rollback("smollm2")
            assert await said() == before

    asyncio.run(scenario())
