"""Sum up a file: its chunks by children, at the same time, then their sentences.

Run: .venv/bin/python examples/summarise.py [FILE]
"""

import asyncio
import sys
from pathlib import Path

import llmos

DEFAULT = Path(__file__).parent.parent / "docs" / "memory.md"
FILE = str(Path(sys.argv[1] if len(sys.argv) > 1 else DEFAULT).resolve())


async def main() -> None:
    async with llmos.boot() as kernel:
        pid = await kernel.os.spawn("summarise", FILE, words=40)
        summed = await kernel.os.result(pid)
        used = (await kernel.os.stat()).programs["summarise-chunk"]
    print(summed["summary"])
    print(
        f"{summed['chunks']} chunks; {used.tokens_cached} of {used.tokens_in} tokens in were shared"
    )


asyncio.run(main())
