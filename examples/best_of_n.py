"""Several answers to one question from one computed prompt, and the best of them.

Run: .venv/bin/python examples/best_of_n.py [QUESTION]
"""

import asyncio
import sys

import llmos


async def main(question: str = "Why do leaves fall in autumn?") -> None:
    async with llmos.boot() as kernel:
        os = kernel.os
        found = await os.result(await os.spawn("best-of-n", question, n=6))
        for candidate in found["candidates"]:
            print(f"{candidate['votes']} x {candidate['text']} ({candidate['logprob']:.2f})")
        print(f"best: {found['answer']}")
        writers = (await os.stat()).programs["best-of-n-writer"]
        print(f"the forks shared {writers.tokens_cached} of {writers.tokens_in} tokens in")


asyncio.run(main(*sys.argv[1:]))
