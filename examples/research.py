"""A question becomes a plan, the plan a task graph, its findings an answer with checked citations.

Run: .venv/bin/python examples/research.py [FOLDER [QUESTION]]
"""

import asyncio
import sys
from pathlib import Path

import llmos

DOCS = Path(__file__).parent.parent / "docs" / "decisions"
FOLDER = str(Path(sys.argv[1] if len(sys.argv) > 1 else DOCS).resolve())
QUESTION = sys.argv[2] if len(sys.argv) > 2 else "How do signals stop a process that generates?"


async def main() -> None:
    async with llmos.boot() as kernel:
        pid = await kernel.os.spawn("research", QUESTION, folder=FOLDER)
        found = await kernel.os.result(pid)
    print("plan:", *found["plan"], sep="\n  ")
    print("answer:", found["answer"])
    for source in found["sources"]:
        print(f"  [{source['n']}] {source['source']}, {source['place']}")
    for reason in found["dropped"]:
        print("dropped:", reason)
    print("critical path:", " -> ".join(found["graph"]["critical_path"]))


asyncio.run(main())
