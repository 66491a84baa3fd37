"""Think in steps: grow several, judge each in a fork of its branch, go on from the best.

Run: .venv/bin/python examples/tree_of_thought.py [QUESTION]
"""

import asyncio
import sys

import llmos


async def main(question: str = "How can a town save water in summer?") -> None:
    async with llmos.boot() as kernel:
        os = kernel.os
        found = await os.result(await os.spawn("tree-of-thought", question, breadth=3, depth=2))
        for number, level in enumerate(found["levels"], 1):
            for branch in level:
                print(f"{number}. {branch['score']}/5 {branch['step']}")
        print(f"answer: {found['answer']}")
        thinker = (await os.stat()).programs["tree-of-thought"]
        print(f"the branches shared {thinker.tokens_cached} of {thinker.tokens_in} tokens in")


asyncio.run(main(*sys.argv[1:]))
