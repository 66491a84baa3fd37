"""Questions about the files of a folder, with citations. A second run finds them in memory.

Text, Markdown, HTML, PDF, docx, CSV and source code are read.
Run: .venv/bin/python examples/documents.py [FOLDER [QUESTION...]]
"""

import asyncio
import sys
from pathlib import Path

import llmos

DOCS = Path(__file__).parent.parent / "docs" / "decisions"
FOLDER = str(Path(sys.argv[1] if len(sys.argv) > 1 else DOCS).resolve())
QUESTIONS = sys.argv[2:] or ["What does STOP do to a process?", "How is a constraint enforced?"]


async def main() -> None:
    async with llmos.boot() as kernel:
        pid = await kernel.os.spawn("documents", FOLDER, *QUESTIONS)
        found = await kernel.os.result(pid)
    index = found["index"]
    print(f"{index['files']} files, {index['notes']} new notes, {len(index['skipped'])} skipped")
    for answer in found["answers"]:
        print(f"\n{answer['question']}\n{answer['answer']}")
        for number, source in enumerate(answer["sources"], 1):
            print(f"  [{number}] {Path(source['source']).name}, {source['place']}")


asyncio.run(main())
