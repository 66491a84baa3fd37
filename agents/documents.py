"""Questions about the files of a folder, answered with sentences of them and where these stand."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.agents.grounding import quote, shown_source, source_of
from llmos.agents.handle import OS
from llmos.agents.indexing import indexer, require_indexed
from llmos.agents.text import read_lines
from llmos.syscalls.results import Hit
from llmos.syscalls.values import JsonObject


async def documents(
    os: OS,
    folder: str,
    *questions: str,
    namespace: str | None = None,
    k: int = 6,
    model: str | None = None,
) -> JsonObject:
    """Index a folder, then answer questions; without any, one from each line of standard input.

    Returns `{"answers", "index"}`, for each question `{"question", "answer", "sources"}`. An answer
    is a sentence of the files, chosen by the model, with the number of its source counted from 1;
    None when no sentence was found.
    """
    indexed = await indexer(os, folder, namespace)
    require_indexed(indexed)
    answers: list[JsonObject] = []

    async def ask(question: str) -> None:
        answer = await _answer(os, question, indexed["namespace"], k, model)
        await _show(os, answer, folder)
        answers.append(answer)

    for question in questions:
        await ask(question)
    if not questions:
        async for line in read_lines(os):
            if line.strip():
                await ask(line.strip())
    return {"answers": answers, "index": indexed}


async def _answer(os: OS, question: str, namespace: str, k: int, model: str | None) -> JsonObject:
    hits = await os.retrieve(question, k=k, namespaces=[namespace])
    found = await quote(os, question, hits, model=model)
    answer = None if found is None else f"{found.text} [{_number(found.hit, hits)}]"
    return {"question": question, "answer": answer, "sources": [source_of(hit) for hit in hits]}


def _number(hit: Hit, hits: Sequence[Hit]) -> int:
    return 1 + [one.id for one in hits].index(hit.id)


async def _show(os: OS, answer: JsonObject, folder: str) -> None:
    await os.print(answer["answer"] or "No sentence of the files fits the question.")
    for number, source in enumerate(answer["sources"], 1):
        await os.print(f"  [{number}] {shown_source(source, folder)}")
