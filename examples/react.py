"""An agent that uses tools: one of the system's, and one written here.

Run: .venv/bin/python examples/react.py
"""

import asyncio
import json

import llmos


def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


async def main() -> None:
    async with llmos.boot() as kernel:
        kernel.tools.add(llmos.tool(count_words))
        for task, tools in (
            ("What is 123 times 456?", ["calculator", "read_file"]),
            ("How many words are in: the lamp is red?", ["count_words"]),
        ):
            pid = await kernel.os.spawn("react", task, tools=tools, max_steps=3)
            solved = await kernel.os.result(pid)
            print(task)
            for step in solved["steps"]:
                print(f"  {step['tool']} {json.dumps(step['arguments'])} = {step['result']}")
            print(f"  {solved['answer']}")


asyncio.run(main())
