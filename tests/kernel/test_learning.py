"""Training as the kernel's calls: whose rows may be read, and who pays for the tokens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.kernel.accounts import Account
from llmos.kernel.learning import TrainedTokens
from llmos.kernel.settings import ModelSetting
from llmos.syscalls.calls import Example
from llmos.syscalls.content import assistant, user
from llmos.syscalls.errors import ErrorValue, SyscallError
from llmos.syscalls.learning_results import ModelVersion
from llmos.syscalls.rights import Capabilities, Quota

PARITY = tuple(
    Example(messages=(user(str(n)), assistant("even" if n % 2 == 0 else "odd"))) for n in range(12)
)


def test_rows_that_a_version_was_trained_on_are_replayed_by_those_who_may_read_them(
    boot_kernel: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a", "label": "b"}) + "\n")

    async def trainer(os: OS) -> None:
        replay = {"share": 0.5, "versions": ("old",)}
        pid = await os.finetune(PARITY, "new", replay=replay)
        await os.result(pid)

    async def tried(kernel: Any, rights: Capabilities) -> ErrorValue:
        exited = await kernel.os.wait(await kernel.os.spawn(trainer, capabilities=rights))
        return exited.error

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            kernel.registry().add(
                ModelVersion(
                    name="old", kind="task", base="tiny", card={"data": {"path": str(rows)}}
                )
            )
            denied = await tried(kernel, Capabilities(learn=True))
            assert denied.code == "denied"
            assert denied.message.startswith(str(rows))
            granted = Capabilities(learn=True, folders_read=frozenset({str(folder)}))
            # May it be read, the job begins, and finds that there is nothing here to train.
            assert (await tried(kernel, granted)).code != "denied"

    asyncio.run(scenario())


def progress(tokens: int) -> dict[str, Any]:
    return {"event": "progress", "tokens": tokens}


def test_each_step_is_paid_for_also_one_that_is_taken_again() -> None:
    account = Account(2, Quota(tokens_in=100), None)
    tokens = TrainedTokens(account)
    for event in (
        {"event": "start"},
        {"event": "resumed", "tokens": 1000},  # paid for by the process that got so far
        progress(1010),
        progress(1030),
        {"event": "restarted"},
        {"event": "start"},
        {"event": "resumed", "tokens": 1010},
        progress(1030),
        progress(1080),
    ):
        tokens.take(event)
    assert account.tokens_in == 100
    with pytest.raises(SyscallError) as refused:
        tokens.take(progress(1081))
    assert (refused.value.code, refused.value.fields["needed"]) == ("quota_exceeded", 1)


def test_the_step_that_spends_the_last_token_is_charged_as_far_as_it_goes() -> None:
    account = Account(2, Quota(tokens_in=100), None)
    tokens = TrainedTokens(account)
    tokens.require_some()
    tokens.take(progress(60))
    with pytest.raises(SyscallError) as refused:
        tokens.take(progress(120))
    assert (account.tokens_in, account.held["tokens_in"]) == (100, 100)
    assert refused.value.fields["needed"] == 20
    with pytest.raises(SyscallError, match="1 more needed"):
        tokens.require_some()


def test_a_spent_quota_ends_a_job_and_keeps_its_best_version(
    boot_kernel: Any, tmp_path: Path, tiny_model_path: Path
) -> None:
    async def trainer(os: OS, epochs: float) -> Any:
        settings = {"epochs": epochs, "eval_share": 0.25, "learning_rate": 1e-2}
        return await os.result(await os.finetune(PARITY, "parity", **settings))

    async def scenario() -> None:
        model = ModelSetting("tiny", "tiny", "torch", weights=lambda: tiny_model_path)
        async with boot_kernel(models={"tiny": model}) as kernel:
            pid = await kernel.os.spawn(trainer, 1000.0, quota=Quota(tokens_in=300))
            error = (await kernel.os.wait(pid)).error
            assert (error.code, error.fields["quota"]) == ("quota_exceeded", "tokens_in")
            stat = await kernel.os.stat()
            assert stat.programs["finetune"].tokens_in == 300
            assert kernel.registry().list() == []

    asyncio.run(scenario())
    assert (tmp_path / "jobs" / "parity" / "version" / "adapter_config.json").exists()
    assert list((tmp_path / "jobs" / "parity" / "checkpoints").iterdir())
