"""Answer a question from the files of a folder: index, retrieve, quote, cite."""

from __future__ import annotations

from llmos.agents.grounding import quote, source_of
from llmos.agents.handle import OS
from llmos.agents.indexing import indexer, require_indexed
from llmos.syscalls.values import JsonObject


async def rag(
    os: OS,
    folder: str,
    question: str,
    *,
    namespace: str | None = None,
    k: int = 6,
    model: str | None = None,
) -> JsonObject:
    """Answer with a sentence of the sources, chosen by the model, and say where it stands.

    Returns `{"question", "answer", "sources", "index"}`; the answer ends with the number of the
    source it stands in, counted from 1, and is None when no sentence was found.
    """
    indexed = await indexer(os, folder, namespace)
    require_indexed(indexed)
    hits = await os.retrieve(question, k=k, namespaces=[indexed["namespace"]])
    found = await quote(os, question, hits, model=model)
    answer = None
    if found is not None:
        answer = f"{found.text} [{1 + [hit.id for hit in hits].index(found.hit.id)}]"
    await os.print(answer or "No sentence of the sources fits the question.")
    for number, hit in enumerate(hits, 1):
        await os.print(f"  [{number}] {hit.source}:{hit.position}")
    return {
        "question": question,
        "answer": answer,
        "sources": [source_of(hit) for hit in hits],
        "index": indexed,
    }
