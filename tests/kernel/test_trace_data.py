"""Traces as training data: consent, outcomes, rows."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.rows.kinds import ChatRow, PreferRow
from llmos.drivers.rows.reading import read_rows
from llmos.drivers.rows.redaction import redact
from llmos.drivers.scripted import Scripted
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import ModelSetting
from llmos.memory.episodes import FILE, EpisodeStore
from llmos.syscalls import calls
from llmos.syscalls.content import user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.rights import ALL_CAPABILITIES, Capabilities

CALL = '<tool_call>[{"name": "add", "arguments": {"a": 2, "b": 2}}]</tool_call>'
SCRIPT = {
    "What is 2+2?": "4",
    "Who are you?": "Ann, ann@example.org.",
    "Use the tool.": CALL,
    "Be long.": "much too long an answer",
}
ADD = ToolSpec(name="add", description="Add.", parameters={"type": "object"})
MODELS = {"m": ModelSetting("m", "m", "scripted", lambda: Scripted(script=SCRIPT))}


async def ask(os: OS, text: str, **options: Any) -> str:
    return (await os.generate(text, **options)).text


def home_file(kernel: Kernel, path: str, pid: int = 1) -> Path:
    return kernel.files.home(kernel.table.get(pid)) / path


async def refusal(work: Any) -> SyscallError:
    with pytest.raises(SyscallError) as refused:
        await work
    return refused.value


def test_nothing_is_kept_without_consent(boot_kernel: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            await kernel.os.generate("What is 2+2?")
            assert not (tmp_path / FILE).exists()
            assert (await refusal(kernel.os.trace_data())).code == "denied"
            assert (await refusal(kernel.os.outcome(1, reward=1.0))).code == "not_found"

    asyncio.run(scenario())


def test_judged_episodes_become_rows_that_the_readers_take(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            consent = await os.trace_consent()
            assert consent.is_granted and consent.by == "init"
            right = await os.spawn(ask, "What is 2+2?")
            wrong = await os.spawn(ask, "Who are you?")
            await os.results([right, wrong])
            (first,) = await os.outcome(right, verdict="pass", note="checked")
            await os.outcome(wrong, verdict="fail")
            made = await os.trace_data([consent.namespace])
            assert (made.rows, made.episodes, made.models) == (1, 1, ("m",))
            path = home_file(kernel, made.path)
            (row,) = read_rows(path, "instruct", group_field="group")
            assert isinstance(row, ChatRow)
            assert [message.text for message in row.messages] == ["What is 2+2?", "4"]
            assert row.group is not None and ":ask:" in row.group
            line = json.loads(path.read_text())
            assert (line["episode"], line["score"]) == (first, 1.0)

    asyncio.run(scenario())


def test_tools_and_tool_requests_survive_the_way_to_a_row(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()
            generated = await os.call(
                calls.Generate(messages=(user("Use the tool."),), tool_specs=(ADD,))
            )
            made = await os.trace_data(min_reward=None)
            (row,) = read_rows(home_file(kernel, made.path), "instruct")
            assert isinstance(row, ChatRow)
            assert row.tools == (ADD,)
            assert row.messages[-1] == generated.message
            assert row.messages[-1].tool_requests[0].arguments == {"a": 2, "b": 2}

    asyncio.run(scenario())


def test_personal_data_is_replaced_and_counted_unless_told_otherwise(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()
            await os.generate("Who are you?")
            made = await os.trace_data(min_reward=None)
            text = home_file(kernel, made.path).read_text()
            assert made.redacted == {"email": 1}
            assert "[email]" in text and "ann@" not in text
            made = await os.trace_data(min_reward=None, redact=False)
            assert "ann@example.org" in home_file(kernel, made.path).read_text()

    asyncio.run(scenario())


def test_a_better_and_a_worse_answer_to_one_prompt_become_a_preference(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()
            pids = [await os.spawn(ask, "Be long.", prefix=word) for word in ("Yes, ", "No, ", "")]
            await os.results(pids)
            for pid, reward in zip(pids, (0.5, 2.0, -1.0), strict=True):
                await os.outcome(pid, reward=reward)
            made = await os.trace_data(objective="prefer", min_reward=1.0)
            assert made.rows == 1 and made.left_out == {"unpaired": 1}
            (row,) = read_rows(home_file(kernel, made.path), "prefer")
            assert isinstance(row, PreferRow)
            assert row.messages == (user("Be long."),)
            assert row.chosen.startswith("No, ") and not row.rejected.startswith("No, ")
            none = await refusal(os.trace_data(objective="prefer", min_reward=3.0))
            assert none.code == "not_found" and "unpaired 3" in none.message

    asyncio.run(scenario())


def test_cut_answers_and_repetitions_are_left_out_and_counted(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()
            await os.generate("Be long.", max_tokens=4)
            for _ in range(3):
                await os.generate("What is 2+2?")
            made = await os.trace_data(min_reward=None)
            assert made.rows == 1 and made.left_out == {"cut": 1, "duplicate": 2}

    asyncio.run(scenario())


def test_a_withdrawal_deletes_what_was_kept_and_what_was_about_to_be(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()
            await os.generate("What is 2+2?")
            await os.trace_data(min_reward=None)
            await os.generate("Who are you?")  # not written yet
            withdrawn = await os.trace_consent(is_granted=False)
            assert withdrawn.deleted_episodes == 1
            await os.generate("What is 2+2?")
            assert (await refusal(os.trace_data(min_reward=None))).code == "denied"
            await os.trace_consent()
            assert (await refusal(os.trace_data(min_reward=None))).code == "not_found"

    asyncio.run(scenario())


def test_a_withdrawal_from_outside_holds_for_a_kernel_that_runs(
    boot_kernel: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            namespace = (await os.trace_consent()).namespace
            beside = EpisodeStore(tmp_path)
            beside.consent(namespace, is_granted=False, by="operator", at=0.0)
            await os.generate("What is 2+2?")
            assert (await refusal(os.trace_data(min_reward=None))).code == "denied"
            assert beside.counts() == {}
            beside.close()

    asyncio.run(scenario())


def test_a_client_is_asked_in_its_own_name_and_not_by_who_serves_it(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()  # init's own: does not speak for clients
            await os.trace_consent("ann")
            for client in ("ann", "bob"):
                await os.result(await os.spawn(ask, "What is 2+2?", client=client))
            made = await os.trace_data(["ann"], min_reward=None)
            assert made.rows == 1
            assert (await refusal(os.trace_data(["bob"], min_reward=None))).code == "denied"
            assert (await refusal(os.trace_data(min_reward=None))).code == "not_found"

    asyncio.run(scenario())


def test_the_nearest_word_decides_for_a_process_without_a_client(boot_kernel: Any) -> None:
    async def shy(os: OS) -> str:
        await os.trace_consent(is_granted=False)
        return await ask(os, "Who are you?")

    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()
            await os.results([await os.spawn(shy), await os.spawn(ask, "What is 2+2?")])
            made = await os.trace_data(min_reward=None)
            assert made.rows == 1
            assert "Who are you?" not in home_file(kernel, made.path).read_text()

    asyncio.run(scenario())


def test_a_process_judges_its_descendants_and_not_itself(boot_kernel: Any) -> None:
    async def vain(os: OS, text: str) -> str:
        await ask(os, text)
        me = max(process.pid for process in await os.ps())
        return (await refusal(os.outcome(me, reward=9.0))).code

    async def verifier(os: OS) -> list[Any]:
        child = await os.spawn(vain, "What is 2+2?")
        said = await os.result(child)
        return [said, len(await os.outcome(child, thumb="up"))]

    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()
            parent = await os.spawn(verifier)
            assert await os.result(parent) == ["denied", 1]
            assert (await os.trace_data()).rows == 1

    asyncio.run(scenario())


def test_a_stranger_needs_the_rights_to_judge_and_to_take(boot_kernel: Any) -> None:
    async def stranger(os: OS, pid: int, namespace: str) -> list[str]:
        tried = [
            os.outcome(pid, reward=1.0),
            os.trace_data([namespace]),
            os.trace_consent(namespace, is_granted=False),
        ]
        return [(await refusal(one)).fields["capability"] for one in tried]

    async def judge(os: OS, pid: int, namespace: str) -> int:
        await os.outcome(pid, reward=1.0)
        return (await os.trace_data([namespace])).rows

    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            namespace = (await os.trace_consent()).namespace
            asked = await os.spawn(ask, "What is 2+2?")
            await os.result(asked)
            pid = await os.spawn(stranger, asked, namespace, capabilities=Capabilities())
            read = f"read:{namespace}"
            assert await os.result(pid) == [read, "learn", f"write:{namespace}"]
            reader = Capabilities(learn=True, read=frozenset({namespace}))
            pid = await os.spawn(judge, asked, namespace, capabilities=reader)
            assert await os.result(pid) == 1

    asyncio.run(scenario())


def test_an_outcome_reaches_the_whole_tree_of_a_process(boot_kernel: Any) -> None:
    async def team(os: OS) -> None:
        await ask(os, "What is 2+2?")
        await os.result(await os.spawn(ask, "Use the tool."))

    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()
            pid = await os.spawn(team)
            await os.result(pid)
            assert len(await os.outcome(pid, reward=1.0)) == 2
            assert (await os.trace_data()).rows == 2

    asyncio.run(scenario())


def test_a_later_judgement_adds_to_what_was_said(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()
            await os.generate("What is 2+2?")
            (episode,) = await os.outcome(1, thumb="down")
            assert (await refusal(os.trace_data())).code == "not_found"
            await os.outcome(episode=episode, verdict="pass")  # a verifier outweighs a thumb
            assert (await os.trace_data()).rows == 1
            await os.outcome(episode=episode, reward=0.2)  # and a reward outweighs both
            assert (await refusal(os.trace_data())).code == "not_found"

    asyncio.run(scenario())


def test_episodes_and_consent_outlive_the_kernel(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            await kernel.os.trace_consent("ann")
            await kernel.os.result(await kernel.os.spawn(ask, "What is 2+2?", client="ann"))
        async with boot_kernel(models=MODELS) as kernel:
            await kernel.os.result(await kernel.os.spawn(ask, "Who are you?", client="ann"))
            assert (await kernel.os.trace_data(["ann"], min_reward=None)).rows == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "fields", [{}, {"pid": 1}, {"pid": 1, "episode": 1, "reward": 1.0}, {"reward": 1.0}]
)
def test_an_outcome_is_about_something_and_says_something(
    boot_kernel: Any, fields: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            assert (await refusal(kernel.os.outcome(**fields))).code == "invalid"

    asyncio.run(scenario())


def test_a_disk_that_refuses_makes_episodes_wait(
    boot_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            await os.trace_consent()

            def full(*_: Any) -> int:
                raise SyscallError("storage", "the disk is full")

            with monkeypatch.context() as broken:
                broken.setattr(EpisodeStore, "add", full)
                assert (await os.generate("What is 2+2?")).text == "4"
                assert (await refusal(os.trace_data(min_reward=None))).code == "storage"
            assert (await os.trace_data(min_reward=None)).rows == 1

    asyncio.run(scenario())


def test_rows_go_where_the_caller_may_write_and_nowhere_else(boot_kernel: Any) -> None:
    async def learner(os: OS, namespace: str) -> str:
        error = await refusal(os.trace_data([namespace], min_reward=None, path="/tmp/rows.jsonl"))
        return error.code

    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            os: OS = kernel.os
            namespace = (await os.trace_consent()).namespace
            await os.generate("What is 2+2?")
            rights = ALL_CAPABILITIES.model_copy(update={"folders_write": frozenset[str]()})
            pid = await os.spawn(learner, namespace, capabilities=rights)
            assert await os.result(pid) == "denied"

    asyncio.run(scenario())


def test_the_programs_of_the_page_run(boot_kernel: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "learning-data.md").read_text()
    names: dict[str, Any] = {"__name__": "page"}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    found = redact("CASE-12345 of ann@example.org", names["WithCaseNumbers"]())
    assert found.text == "[case] of [email]"

    async def scenario() -> None:
        async with boot_kernel(models=MODELS) as kernel:
            questions = {"What is 2+2?": "4", "Who are you?": "Bob"}
            pid = await kernel.os.spawn(names["practise"], questions)
            assert await kernel.os.result(pid) == "1 rows in traces.jsonl"

    asyncio.run(scenario())
