"""Two debaters that are forks of one context, a judge, and a critic of the winner.

Run: .venv/bin/python examples/debate.py [CLAIM]
"""

import asyncio
import sys

import llmos


async def main(claim: str = "Small models are useful.") -> None:
    async with llmos.boot() as kernel:
        os = kernel.os
        debated = await os.result(await os.spawn("debate", claim, rounds=1))
        for argument in debated["arguments"]:
            print(f"{argument['side']:>7}: {argument['text']}")
        print(f" winner: {debated['winner']}. {debated['reason']}")
        best = next(a["text"] for a in debated["arguments"] if a["side"] == debated["winner"])
        review = await os.result(await os.spawn("critic", best, angle="clarity"))
        print(f" critic: {review['score']}/5. {review['remark']}")
        debaters = (await os.stat()).programs["debater"]
        print(f"the forks shared {debaters.tokens_cached} of {debaters.tokens_in} tokens in")


asyncio.run(main(*sys.argv[1:]))
