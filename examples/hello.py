"""Three agents at once on one model. Run: .venv/bin/python examples/hello.py"""

import asyncio

import llmos


async def guide(os: llmos.OS, country: str) -> str:
    rules = llmos.system("Answer in one short sentence.")
    question = llmos.user(f"What is the capital of {country}?")
    return (await os.generate([rules, question], max_tokens=30)).text


async def main() -> None:
    async with llmos.boot() as kernel:
        pids = [await kernel.os.spawn(guide, name) for name in ("France", "Egypt", "Japan")]
        print(*await kernel.os.results(pids), sep="\n")


asyncio.run(main())
