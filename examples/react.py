"""An agent that uses tools: one of the system's, and one written here.

A small model learns a new tool from a worked example. Run: .venv/bin/python examples/react.py
"""

import asyncio
import json

import llmos


def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


WORKED = {
    "task": "How many words are in: a red car?",
    "tool": "count_words",
    "arguments": {"text": "a red car"},
    "result": "3",
    "answer": "There are 3 words.",
}


async def main() -> None:
    async with llmos.boot() as kernel:
        kernel.tools.add(llmos.tool(count_words))
        for task in ("What is 123 times 456?", "How many words are in: the lamp is on?"):
            pid = await kernel.os.spawn(
                "react", task, tools=["calculator", "count_words"], worked=[WORKED], max_steps=3
            )
            solved = await kernel.os.result(pid)
            print(task)
            for step in solved["steps"]:
                print(f"  {step['tool']} {json.dumps(step['arguments'])} = {step['result']}")
            print(f"  {solved['answer']}")


asyncio.run(main())
