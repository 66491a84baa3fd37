"""A personal assistant that remembers across restarts: what one kernel heard, the next one knows.

Run: .venv/bin/python examples/assistant.py (or sit down at it: .venv/bin/llmos run assistant)
"""

import asyncio

import llmos

FIRST = ["My name is Ada and my dog is called Biscuit.", "It rained all day and I stayed inside."]
SECOND = ["What is my dog called?"]


async def session(lines: list[str]) -> None:
    async with llmos.boot() as kernel:
        pid = await kernel.os.spawn("assistant", user="ada", max_tokens=40, is_interactive=True)
        for line in lines:
            await kernel.feed(pid, f"{line}\n".encode())
        kernel.close_input(pid)
        async for piece in kernel.output(pid):
            print(piece.decode(), end="", flush=True)
        await kernel.os.result(pid)


asyncio.run(session(FIRST))
print("-- the kernel has ended; a new one starts --")
asyncio.run(session(SECOND))
