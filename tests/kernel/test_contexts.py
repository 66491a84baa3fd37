"""What the kernel does around a window: paging, recall, summaries, saved contexts, core memory."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import Allocation, EmbeddingInfo
from llmos.drivers.scripted import Scripted
from llmos.kernel.settings import EmbeddingSetting, ModelSetting
from llmos.syscalls import calls
from llmos.syscalls.content import system, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ContextInfo, ToolSpec
from llmos.syscalls.rights import Capabilities

DIMENSIONS = 256
FACT = "My dog is called Biscuit and he is nine."
CHATTER = "The weather was rather grey today, with some wind from the north and no sun at all. "


class WordCounts:
    """An embedding whose dimensions are hashed words: texts with common words are near."""

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo("words", "cpu", DIMENSIONS, max_tokens=10_000, parameters=0)

    def count(self, text: str) -> int:
        return len(text.split())

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [_vector(text) for text in texts]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


def _vector(text: str) -> list[float]:
    vector = [1e-3] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        vector[hashlib.sha256(word.encode()).digest()[0]] += 1.0
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]


class Said:
    """A scripted model that keeps what it was asked last and answers briefly."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: str) -> str:
        self.asked.append(text)
        return "They spoke of Biscuit." if "Write down" in text else "I see."

    @property
    def settings(self) -> dict[str, Any]:
        def opened() -> Scripted:
            return Scripted(script=self)

        return {
            "models": {"scripted": ModelSetting("scripted", "scripted", "scripted", opened)},
            "embedding": EmbeddingSetting("words", DIMENSIONS, WordCounts),
        }


async def talk(os: OS, context: int, turns: int = 8) -> None:
    """Tell the fact, then chatter until it has left the window."""
    await os.generate(FACT, context=context, max_tokens=8)
    for turn in range(turns):
        await os.generate(f"Turn {turn}. {CHATTER}", context=context, max_tokens=8)


def kinds(info: ContextInfo) -> list[str]:
    return [segment.kind for segment in info.segments if segment.state == "in_window"]


def test_what_was_paged_out_comes_back_right_before_the_question_that_it_fits(
    boot_kernel: Any,
) -> None:
    said = Said()

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            await os.remember("My dog is called Rex, in another conversation.")
            context = await os.context_open([system("Be brief.")], budget_tokens=900)
            await talk(os, context)
            info = await os.context_stat(context)
            assert info.segments[1].state == "paged_out"
            assert info.segments[1].notes
            assert info.segments[1].reason is not None
            before = kernel.contexts.get(kernel.init, context).window()
            await os.generate("What is my dog called?", context=context, max_tokens=8)
            assert FACT in said.asked[-1]
            assert "Rex" not in said.asked[-1], "only what left this context comes back unasked"
            assert said.asked[-1].endswith("What is my dog called?")
            window = kernel.contexts.get(kernel.init, context).window()
            assert window[: len(before)] == before, "the prefix stays"
            info = await os.context_stat(context)
            *_, recalled, question, _ = info.segments
            assert (recalled.kind, question.preview) == ("recalled", "What is my dog called?")
            assert info.segments[1].notes[0] in recalled.notes
            assert any(action.startswith("recalled for segment") for action in info.actions)

    asyncio.run(scenario())


@pytest.mark.parametrize("options", [{"policy": "window"}, {"recall_tokens": 0}])
def test_nothing_comes_back_where_the_policy_or_the_program_does_not_want_it(
    boot_kernel: Any, options: dict[str, Any]
) -> None:
    said = Said()

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            context = await os.context_open([], budget_tokens=900, **options)
            await talk(os, context)
            await os.generate("What is my dog called?", context=context, max_tokens=8)
            assert said.asked[-1] == "What is my dog called?"

    asyncio.run(scenario())


def test_the_summary_policy_folds_what_leaves_into_one_summary(boot_kernel: Any) -> None:
    said = Said()

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            context = await os.context_open(
                [system("Be brief.")], budget_tokens=1000, policy="summary"
            )
            await talk(os, context, turns=16)
            info = await os.context_stat(context)
            assert kinds(info)[:2] == ["system", "summary"]
            assert kinds(info).count("summary") == 1
            assert info.segments[1].state == "summarised"
            asked = [text for text in said.asked if "Write down" in text]
            assert FACT in asked[0]
            assert "They spoke of Biscuit." in asked[-1], "the summary before is folded in"
            spent = next(one for one in await os.ps() if one.pid == os.pid).accounting
            assert spent.tokens_out > 0

    asyncio.run(scenario())


def test_what_is_paged_out_can_be_summed_up_too(boot_kernel: Any) -> None:
    said = Said()

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            context = await os.context_open([], budget_tokens=1200, has_summary=True)
            await talk(os, context, turns=16)
            await os.generate("What is my dog called?", context=context, max_tokens=8)
            assert FACT in said.asked[-1]
            info = await os.context_stat(context)
            assert kinds(info)[0] == "summary"
            assert kinds(info).count("summary") == 1
            folded = [s for s in info.segments if s.kind == "summary" and s.state == "summarised"]
            assert folded
            assert not any(s.notes for s in folded), "a summary is folded in, not remembered"

    asyncio.run(scenario())


def test_a_fork_recalls_what_left_before_it_and_not_what_the_other_side_said_later(
    boot_kernel: Any,
) -> None:
    said = Said()

    async def ask(os: OS, contexts: list[int]) -> None:
        await os.receive()
        await os.generate("What is my dog called?", context=contexts[0], max_tokens=8)

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            context = await os.context_open([], budget_tokens=900)
            await talk(os, context)
            child = await os.fork(
                ask, contexts=[context], capabilities=Capabilities(models=frozenset({"*"}))
            )
            await os.generate("My dog is called Rex since today.", context=context, max_tokens=8)
            await talk(os, context)
            await os.send(child, "now")
            await os.result(child)
            assert FACT in said.asked[-1]
            assert "Rex" not in said.asked[-1]
            await os.generate("What is my dog called?", context=context, max_tokens=8)
            assert FACT in said.asked[-1]
            assert "Rex" in said.asked[-1], "the parent has both"

    asyncio.run(scenario())


@pytest.mark.parametrize("may_read", [True, False])
def test_a_fork_keeps_its_namespace_only_where_the_child_holds_it(
    boot_kernel: Any, may_read: bool
) -> None:
    said = Said()

    async def ask(os: OS, contexts: list[int]) -> None:
        await os.generate("What is my dog called?", context=contexts[0], max_tokens=8)

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            await os.remember(FACT, namespace="anna")
            context = await os.context_open([user("hello")], namespace="anna")
            held = frozenset({"anna"} if may_read else set[str]())
            rights = Capabilities(models=frozenset({"*"}), read=held, write=held)
            await os.result(await os.fork(ask, contexts=[context], capabilities=rights))
            assert (FACT in said.asked[-1]) == may_read

    asyncio.run(scenario())


def test_what_was_forgotten_does_not_come_back_and_is_no_error(boot_kernel: Any) -> None:
    said = Said()

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            context = await os.context_open([], budget_tokens=900)
            await talk(os, context)
            assert await os.forget(where={"role": "user"}) > 0
            await os.generate("What is my dog called?", context=context, max_tokens=8)
            assert FACT not in said.asked[-1]
            await os.forget(everything=True)
            await os.generate("What is my dog called?", context=context, max_tokens=8)
            assert said.asked[-1] == "What is my dog called?"

    asyncio.run(scenario())


def test_a_saved_context_goes_on_after_a_restart(boot_kernel: Any) -> None:
    said = Said()

    async def first() -> ContextInfo:
        async with boot_kernel(**said.settings) as kernel:
            context = await kernel.os.context_open(
                [system("Be brief.")], budget_tokens=900, namespace="anna"
            )
            await talk(kernel.os, context)
            saved = await kernel.os.context_save(context, "talk", namespace="anna")
            assert saved.bytes > 0
            return await kernel.os.context_stat(context)

    async def second(before: ContextInfo) -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            context = await os.context_restore("talk", namespace="anna")
            after = await os.context_stat(context)
            assert after.segments == before.segments
            assert after.used_tokens == before.used_tokens
            await os.generate("What is my dog called?", context=context, max_tokens=8)
            assert FACT in said.asked[-1]
            with pytest.raises(SyscallError, match="saved are talk") as refusal:
                await os.context_restore("other", namespace="anna")
            assert refusal.value.code == "not_found"

    asyncio.run(second(asyncio.run(first())))


def test_to_forget_a_namespace_is_to_forget_its_saved_contexts_and_core(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(**Said().settings) as kernel:
            os: OS = kernel.os
            context = await os.context_open([user("a")])
            for namespace in ("anna", "bob"):
                await os.context_save(context, "talk", namespace=namespace)
                await os.core_memory(append="text", namespace=namespace)
            await os.forget(where={"kind": "letter"}, namespace="bob")
            await os.forget(everything=True, namespace="anna")
            with pytest.raises(SyscallError, match="saved are none"):
                await os.context_restore("talk", namespace="anna")
            assert await os.core_memory(namespace="anna") == ""
            await os.context_restore("talk", namespace="bob")
            assert await os.core_memory(namespace="bob") == "text"

    asyncio.run(scenario())


def test_a_damaged_save_is_refused_and_left(boot_kernel: Any, tmp_path: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(**Said().settings) as kernel:
            context = await kernel.os.context_open([user("a")])
            await kernel.os.context_save(context, "talk", namespace="../n")
            (file,) = (tmp_path / "contexts").rglob("talk.json")
            assert file.parent.parent == tmp_path / "contexts"
            file.write_bytes(file.read_bytes()[:-20])
            damaged = file.read_bytes()
            with pytest.raises(SyscallError, match=r"talk\.json") as refusal:
                await kernel.os.context_restore("talk", namespace="../n")
            assert refusal.value.code == "storage"
            assert file.read_bytes() == damaged

    asyncio.run(scenario())


def test_two_contexts_are_compared_by_what_they_show(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(**Said().settings) as kernel:
            os: OS = kernel.os
            left = await os.context_open([system("Be brief."), user("one")])
            right = await os.context_fork(left)
            await os.context_append(right, "two")
            difference = await os.context_diff(left, right)
            assert difference.shared_segments == 2
            assert difference.shared_tokens > len("Be brief.one")
            assert difference.only_left == ()
            assert [segment.preview for segment in difference.only_right] == ["two"]

    asyncio.run(scenario())


def test_core_memory_is_always_shown_and_an_edit_waits_until_the_prefix_is_lost(
    boot_kernel: Any,
) -> None:
    said = Said()

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            await os.core_memory(append="The user is Anna.", namespace="anna")
            context = await os.context_open(
                [system("Be brief.")], budget_tokens=900, namespace="anna", has_core=True
            )

            def rules() -> str:
                return kernel.contexts.get(kernel.init, context).window()[0].text

            assert rules().startswith("Be brief.")
            assert rules().endswith("The user is Anna.")
            await os.core_memory(replace="Anna", by="Anne", namespace="anna")
            assert rules().endswith("The user is Anna.")
            await talk(os, context)
            assert rules().endswith("The user is Anne.")
            await os.core_memory(append="She is tall.", namespace="anna", is_urgent=True)
            assert rules().endswith("The user is Anne.\nShe is tall.")
            with pytest.raises(SyscallError, match="stands 0 times"):
                await os.core_memory(replace="Berta", by="", namespace="anna")
            with pytest.raises(SyscallError, match="may have"):
                await os.core_memory(append="x" * 3000, namespace="anna")
            assert "She is tall." in await os.core_memory(namespace="anna")

    asyncio.run(scenario())


def test_what_names_a_namespace_needs_its_capability(boot_kernel: Any) -> None:
    async def child(os: OS) -> list[str]:
        codes = list[str]()
        own = await os.context_open([user("a")])
        for attempt in (
            lambda: os.context_open([], namespace="anna"),
            lambda: os.core_memory(namespace="anna"),
            lambda: os.context_save(own, "talk", namespace="anna"),
            lambda: os.context_restore("talk", namespace="anna"),
            lambda: os.context_restore("inner", namespace="shared"),
        ):
            try:
                await attempt()
            except SyscallError as problem:
                codes.append(problem.code)
        return codes

    async def scenario() -> None:
        async with boot_kernel(**Said().settings) as kernel:
            os: OS = kernel.os
            inner = await os.context_open([user("a")], namespace="anna")
            await os.context_save(inner, "inner", namespace="shared")
            rights = Capabilities(models=frozenset({"*"}), read=frozenset({"shared"}))
            pid = await os.spawn(child, capabilities=rights)
            assert await os.result(pid) == ["denied"] * 5

    asyncio.run(scenario())


def test_a_generation_that_fails_takes_back_its_turn_and_what_was_recalled(
    boot_kernel: Any,
) -> None:
    said = Said()

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            context = await os.context_open([], budget_tokens=900)
            await talk(os, context)
            before = await os.context_stat(context)
            with pytest.raises(SyscallError):
                await os.generate("What is my dog called?", context=context, adapter="none")
            assert await os.context_stat(context) == before

    asyncio.run(scenario())


def test_room_is_kept_for_the_tools_that_are_offered(boot_kernel: Any) -> None:
    said = Said()
    spec = ToolSpec(name="look", description="Look at it. " * 40, parameters={"type": "object"})

    async def scenario() -> None:
        async with boot_kernel(**said.settings) as kernel:
            os: OS = kernel.os
            context = await os.context_open([])  # the model's whole window
            for turn in range(60):
                call = calls.Generate(
                    messages=(user(f"Turn {turn}. {CHATTER}"),),
                    context=context,
                    tool_specs=(spec,),
                    max_tokens=8,
                )
                await os.call(call)
            assert "paged_out" in {s.state for s in (await os.context_stat(context)).segments}

    asyncio.run(scenario())
