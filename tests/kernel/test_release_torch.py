"""Releases on the torch driver with a tiny model: weights are exchanged under a running call."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import llmos
from llmos.config import Config, ModelConfig
from llmos.kernel.kernel import Kernel
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import GREEDY
from llmos.syscalls.results import ModelVersion


def config(home: Path, model: Path) -> Config:
    chat = ModelConfig(
        source=f"file:{model}",
        driver="torch",
        dtype="float32",
        context_tokens=256,
        sequences=2,
        threads=1,
        base="tiny",
    )
    return Config(home=home, models={"chat": chat}, default_model="chat")


def adapter(folder: Path, model: Path, **options: Any) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    changed: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", **options))
    for name, weight in changed.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.5)
    changed.save_pretrained(folder)
    return folder


def add(kernel: Kernel, name: str, kind: str, path: Path) -> None:
    values = {"name": name, "kind": kind, "base": "tiny", "path": str(path)}
    kernel.registry().add(ModelVersion.model_validate(values))


async def said(kernel: Kernel, tokens: int = 12, **options: Any) -> tuple[int, ...]:
    answer = await kernel.os.generate("hi", max_tokens=tokens, sampling=GREEDY, **options)
    return answer.token_ids


def test_full_weights_are_exchanged_under_a_running_call(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    async def scenario() -> None:
        async with llmos.boot(config(tmp_path / "home", tiny_model_path)) as kernel:
            add(kernel, "style", "adapter", adapter(tmp_path / "style", tiny_model_path))
            before, styled = await said(kernel), await said(kernel, adapter="style")
            assert before != styled
            merged = await kernel.os.model_export("style", path=str(tmp_path / "merged"))
            add(kernel, "whole", "full", Path(merged.path))
            alone = await said(kernel, 150)
            long = asyncio.create_task(said(kernel, 150))
            while not kernel.inference._under_way:
                await asyncio.to_thread(lambda: None)
            await kernel.os.model_promote("whole")
            assert await said(kernel) == styled
            assert await long == alone
            with pytest.raises(SyscallError, match="serves tiny"):
                await kernel.os.model_delete("whole")
            await kernel.os.model_rollback("tiny")
            assert await said(kernel) == before

        async with llmos.boot(config(tmp_path / "home", tiny_model_path)) as kernel:
            await kernel.os.model_promote("whole")
            assert await said(kernel) == styled

    asyncio.run(scenario())


def test_an_adapter_of_another_kind_is_refused_with_the_way_round_it(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    async def scenario() -> None:
        async with llmos.boot(config(tmp_path / "home", tiny_model_path)) as kernel:
            dora = adapter(tmp_path / "dora", tiny_model_path, use_dora=True)
            add(kernel, "dora", "adapter", dora)
            before = await said(kernel)
            with pytest.raises(SyscallError, match="exported, it is merged"):
                await kernel.os.model_promote("dora")
            assert await said(kernel) == before
            merged = await kernel.os.model_export("dora")
            add(kernel, "whole", "full", Path(merged.path))
            await kernel.os.model_promote("whole")
            assert await said(kernel) != before

    asyncio.run(scenario())
