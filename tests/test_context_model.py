"""Contexts on the real model: after paging and recall it says what computing anew would say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import llmos
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.syscalls.content import Message, system
from llmos.syscalls.options import Sampling
from llmos.syscalls.results import ContextInfo, Generated

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("smollm2_path", "minilm_path")]

MODEL = ModelConfig(
    source="smollm2", driver="llama_cpp", weights="shipped", context_tokens=512, sequences=4
)
RULES = system("You are a helpful assistant. Answer in one short sentence.")
LINES = [
    "My sister Ines keeps a parrot called Mango.",
    "It rained all morning, so I stayed inside and read an old book about lighthouses.",
    "The tram was late again and I stood in the cold for twenty minutes.",
    "I am trying to bake bread, but it always comes out as hard as a stone.",
    "The neighbours are having their roof done and it is very loud.",
    "I bought a lamp for my bicycle and it does not fit on my bicycle.",
    "There was a good concert in the church, and it was free.",
    "I have to fill in my tax forms and I keep putting it off.",
]
QUESTION = "What is the name of the parrot that my sister keeps?"
SAMPLING = Sampling(temperature=0, logprobs=5)
# llama.cpp computes other chunks of the same tokens a little differently: see test_kv_model.py.
NEAR_TIE = 1.0


async def talk(os: OS, context: int) -> tuple[ContextInfo, Generated]:
    for line in (*LINES, *reversed(LINES[1:])):
        await os.generate(line, context=context, max_tokens=12)
    answer = await os.generate(QUESTION, context=context, max_tokens=12, sampling=SAMPLING)
    return await os.context_stat(context), answer


def require_alike(reused: Generated, computed: Generated) -> None:
    """Require the same tokens, up to where a near tie may fall either way."""
    assert reused.logprobs is not None
    assert computed.logprobs is not None
    for one, other in zip(reused.logprobs, computed.logprobs, strict=False):
        likely = {choice.token_id: choice.logprob for choice in (other, *other.top)}
        assert one.token_id in likely, "the reused KV makes an unlikely token the best"
        assert max(likely.values()) - likely[one.token_id] < NEAR_TIE
        if one.token_id != other.token_id:
            return


@pytest.mark.parametrize(("policy", "budget"), [("default", 256), ("summary", 420)])
def test_after_edits_the_model_says_what_computing_the_window_anew_says(
    tmp_path: Path, policy: str, budget: int
) -> None:
    async def scenario() -> None:
        models = {"smollm2": MODEL}
        window: list[Message] = []
        async with llmos.boot(home=tmp_path / "one", models=models) as kernel:
            context = await kernel.os.context_open([RULES], budget_tokens=budget, policy=policy)
            info, reused = await talk(kernel.os, context)
            window = kernel.contexts.get(kernel.init, context).window()[:-1]
        assert info.segments[1].state in ("paged_out", "summarised")
        if policy == "default":
            assert "Mango" in window[-1].text
            assert window[-1].text.endswith(QUESTION)
            assert reused.usage.cached_tokens > 0
            # The answers before were decoded, and the last question alone is prefilled.
            fresh = reused.usage.prompt_tokens - reused.usage.cached_tokens
            assert fresh < reused.usage.prompt_tokens / 2
        async with llmos.boot(home=tmp_path / "two", models=models) as kernel:
            computed = await kernel.os.generate(window, max_tokens=12, sampling=SAMPLING)
        assert computed.usage.cached_tokens == 0
        require_alike(reused, computed)

    asyncio.run(scenario())
