"""Programs joined by pipes, as in the shell: echo ... | upper | grep LAMP | wc

Run: .venv/bin/python examples/pipes.py
"""

import asyncio

import llmos

TEXT = "the lamp is red\nthe ship is blue\na lamp turns"


async def main() -> None:
    async with llmos.boot() as kernel:
        os = kernel.os
        said = await os.spawn("echo", TEXT)
        loud = await os.spawn("upper", stdin_from=said)
        found = await os.spawn("grep", "LAMP", stdin_from=loud)
        counted = await os.spawn("wc", stdin_from=found)
        print(await os.result(counted))


asyncio.run(main())
