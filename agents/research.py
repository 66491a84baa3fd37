"""Research a question over many sources: plan, work in parallel, write with checked citations.

The planner splits the question into smaller ones; each is a worker's node in a task graph, and the
writer's node comes after all of them. Workers quote; the writer's sentences are kept only where
what they cite bears them out, and where none is left the quotes themselves are the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from llmos.agents.forms import clause
from llmos.agents.grounding import checked, nearest_sentences, quote, source_of
from llmos.agents.handle import OS
from llmos.agents.indexing import indexer, require_indexed
from llmos.agents.prompts import prompt
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import JsonSchemaConstraint, RegexConstraint
from llmos.syscalls.results import GraphOutcome
from llmos.syscalls.values import JsonObject, JsonValue

MAX_WORKERS = 8
# Each small question begins with another word: a weak model would write the same one again.
_OPENINGS = ("What", "How", "Why", "Which", "When", "Where", "Who")
_BRACKETS = r"\[\]"
_WRITER = "writer"
_PLAN_HITS, _PLAN_SENTENCES = 6, 2
_PLAN_TOKENS_EACH, _WRITE_TOKENS = 40, 160


async def research(
    os: OS,
    question: str,
    *,
    folder: str | None = None,
    namespace: str | None = None,
    workers: int = 4,
    model: str | None = None,
) -> JsonObject:
    """Answer a question from a folder (indexed first) or from a memory namespace.

    One worker takes the question itself, the others a smaller one each.
    Returns `{"question", "answer", "is_quoted", "sources", "plan", "findings", "dropped",
    "graph"}`: `[n]` in the answer is the source with `"n": n`; `is_quoted` tells that the answer
    consists of quotes; `dropped` lists what the check took out of the writer's draft, and why.
    Raises: SyscallError("invalid") without a folder or namespace; ("not_found") when there is
    nothing to index.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise SyscallError("invalid", f"workers: give 1 to {MAX_WORKERS}", field="workers")
    if folder is not None:
        indexed = await indexer(os, folder, namespace)
        require_indexed(indexed)
        namespace = indexed["namespace"]
    if namespace is None:
        raise SyscallError("invalid", "folder: give it, or a namespace", field="folder")
    planned = await plan(os, question, namespace=namespace, count=workers - 1, model=model)
    asked = [question, *planned]
    await os.print("plan:", *(f"\n  {one}" for one in asked))
    names = [f"worker-{number}" for number in range(1, len(asked) + 1)]
    nodes = [
        os.node(
            name,
            research_worker,
            one,
            namespace=namespace,
            model=model,
            retries=1,
            on_failure="tolerate",
        )
        for name, one in zip(names, asked, strict=True)
    ]
    nodes.append(os.node(_WRITER, research_writer, question, model=model, after=names))
    outcome = GraphOutcome.model_validate(await os.result(await os.spawn_graph(nodes)))
    writer = outcome.nodes[_WRITER]
    if writer.status != "ok":
        reason = writer.error.message if writer.error else writer.status
        raise SyscallError("failed", f"the writer of the research failed: {reason}", node=_WRITER)
    written: JsonObject = writer.value
    if written["answer"]:
        await os.print(written["answer"])
    return {
        "question": question,
        **written,
        "plan": asked,
        "graph": {
            "critical_path": list(outcome.critical_path),
            "seconds": outcome.seconds,
            "failed": [name for name in names if outcome.nodes[name].status != "ok"],
        },
    }


async def plan(
    os: OS, question: str, *, namespace: str, count: int, model: str | None = None
) -> list[str]:
    """Up to `count` smaller questions about what the namespace holds; repetitions are left out."""
    if count == 0:
        return []
    hits = await os.retrieve(question, k=_PLAN_HITS, namespaces=[namespace])
    known = await nearest_sentences(os, question, hits, count=_PLAN_SENTENCES)
    generated = await os.generate(
        prompt("plan").messages(text=" ".join(known) or "Nothing is known.", question=question),
        model=model,
        constraint=JsonSchemaConstraint(json_schema=_plan_schema(count)),
        max_tokens=_PLAN_TOKENS_EACH * count,
    )
    try:
        questions: list[str] = json.loads(generated.text)["questions"]
    except ValueError:  # cut by its length: the whole question is left to work on
        return []
    fresh = {one.casefold(): one for one in questions if one.casefold() != question.casefold()}
    return list(fresh.values())


async def research_worker(
    os: OS, question: str, *, namespace: str, k: int = 6, model: str | None = None
) -> JsonObject:
    """Find the sentence that answers one question. Returns `{"question", "quote", "source"}`."""
    hits = await os.retrieve(question, k=k, namespaces=[namespace])
    found = await quote(os, question, hits, model=model)
    if found is None:
        return {"question": question, "quote": None, "source": None}
    return {"question": question, "quote": found.text, "source": source_of(found.hit)}


async def research_writer(
    os: OS, question: str, *, inputs: Mapping[str, JsonValue], model: str | None = None
) -> JsonObject:
    """Write an answer from the workers' findings, with citations that hold."""
    findings = [finding for finding in inputs.values() if finding and finding["quote"]]
    sources = _numbered(findings)
    if not sources:
        return {
            "answer": None,
            "is_quoted": False,
            "sources": [],
            "findings": findings,
            "dropped": ["no worker found a sentence that fits its question"],
        }
    facts = {source["n"]: source["quote"] for source in sources}
    generated = await os.generate(
        prompt("write").messages(
            facts="\n".join(f"[{number}] {fact}" for number, fact in facts.items()),
            question=question,
        ),
        model=model,
        constraint=RegexConstraint(pattern=_cited_sentences(len(facts))),
        max_tokens=_WRITE_TOKENS,
    )
    kept = checked(generated.text, facts)
    quoted = " ".join(f"{fact.rstrip('.')} [{number}]." for number, fact in facts.items())
    return {
        "answer": kept.text or quoted,
        "is_quoted": not kept.text,
        "sources": sources,
        "findings": findings,
        "dropped": list(kept.dropped),
    }


def _numbered(findings: Sequence[JsonObject]) -> list[JsonObject]:
    """One source for each sentence that was quoted, numbered from 1."""
    quotes: dict[str, JsonObject] = {}
    for finding in findings:
        quotes.setdefault(finding["quote"], finding["source"])
    return [
        {"n": number, "quote": text, **source}
        for number, (text, source) in enumerate(quotes.items(), 1)
    ]


def _plan_schema(count: int) -> JsonObject:
    items = [
        {"type": "string", "pattern": rf'^{opening} [^?"\\\n]{{8,80}}\?$'}
        for opening in _OPENINGS[:count]
    ]
    return {
        "type": "object",
        "properties": {
            "questions": {
                "type": "array",
                "prefixItems": items,
                "items": False,
                "minItems": count,
                "maxItems": count,
            }
        },
        "required": ["questions"],
        "additionalProperties": False,
    }


def _cited_sentences(sources: int) -> str:
    """One to three sentences that each end in the number of a source."""
    number = "|".join(str(n) for n in range(1, sources + 1))
    sentence = rf"{clause(least=20, most=180, without=_BRACKETS)} \[({number})\]\."
    return rf"{sentence}( {sentence}){{0,2}}"
