"""Answer a question from the files of a folder. A second run finds them indexed already.

Run: .venv/bin/python examples/rag.py [FOLDER [QUESTION]]
"""

import asyncio
import sys
from pathlib import Path

import llmos

DOCS = Path(__file__).parent.parent / "docs" / "decisions"
FOLDER = str(Path(sys.argv[1] if len(sys.argv) > 1 else DOCS).resolve())
QUESTION = sys.argv[2] if len(sys.argv) > 2 else "What does STOP do to a process?"


async def main() -> None:
    async with llmos.boot() as kernel:
        pid = await kernel.os.spawn("rag", FOLDER, QUESTION)
        found = await kernel.os.result(pid)
    print(QUESTION, found["answer"], sep="\n")
    for number, source in enumerate(found["sources"], 1):
        print(f"  [{number}] {source['source']}:{source['line']}")


asyncio.run(main())
