"""An agent that learns to call tools from its own successes, in one small round.

SmolLM2-135M talks about a task instead of calling a tool for it. Held to the form of a call and
tried several times it is right now and then; a version trained on those attempts is then asked in
its own words. Takes a few minutes. Run: .venv/bin/python examples/tool_agent.py
"""

import asyncio
import tempfile
from pathlib import Path

import llmos
from llmos.agents.tool_tasks import TOOLS

TASK = "A label reads 12 miles. How much is it in kilometres?"
PLAN = {
    "practice": "tool-practice",
    "name": "tool-agent",
    "rounds": 1,
    "tasks": 48,
    "eval_tasks": 24,
    "min_rows": 4,
    "settings": {"epochs": 3.0, "max_steps": 16},
}


async def main() -> None:
    # A home of its own: what is promoted there is not what your other agents speak with.
    home = Path(tempfile.mkdtemp(prefix="llmos-"))
    async with llmos.boot(home=home) as kernel:
        for tool in TOOLS:
            kernel.tools.add(tool)

        async def show(when: str) -> None:
            solved = await kernel.os.result(await kernel.os.spawn("tool-agent", TASK))
            print(f"{when}: {' '.join(solved['said'].split())[:90]}")

        await show("before")
        folder = home / "tool-agent"
        learned = await kernel.os.result(await kernel.os.spawn("learner", str(folder), **PLAN))
        await show("after")
        for side in ("before", "after"):
            rate = learned[side]
            shown = f"{rate['value']:.0%} ({rate['low']:.0%} to {rate['high']:.0%})"
            print(f"held-out tasks solved {side}: {shown}")
        print(f"report: {learned['report']}")


asyncio.run(main())
