"""A conversation with the model, fed line by line from outside the kernel.

Run: .venv/bin/python examples/chat.py (or sit down at it: .venv/bin/llmos run chat)
"""

import asyncio

import llmos

LINES = ["Tim has a red ball. What colour is his ball?", "Who has the ball?"]


async def main() -> None:
    async with llmos.boot() as kernel:
        pid = await kernel.os.spawn("chat", max_tokens=40, is_interactive=True)
        for line in LINES:
            await kernel.feed(pid, f"{line}\n".encode())
        kernel.close_input(pid)
        async for piece in kernel.output(pid):
            print(piece.decode(), end="", flush=True)
        print(f"{await kernel.os.result(pid)} answers")


asyncio.run(main())
