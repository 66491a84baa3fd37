"""Paging through the long-term store: what leaves a context's window is remembered, and comes back.

What leaves is kept sentence by sentence (`memory/statements.py` says why). Notes of a context that
has no namespace of its own bear a mark, and are recalled by it alone: a process's other notes never
turn up unasked. A context with a named namespace recalls from all of that.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

from llmos.kernel.process import Process
from llmos.memory.context import Context, Recollection
from llmos.memory.context_state import Pages
from llmos.memory.segments import Segment
from llmos.memory.statements import asked, statements
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Hit, Hits, Remembered
from llmos.syscalls.values import JsonObject

QUERY_CHARS = 1_000
CANDIDATES = 12
LEAST_COSINE = 0.3  # less is no nearer to a question than any text is


class Shelf(Protocol):
    """What is asked of the long-term store (`library.py`)."""

    async def remember_in(
        self, namespace: str, notes: Sequence[calls.Note], *, owner: str | None = None
    ) -> Remembered: ...

    async def retrieve(self, process: Process, call: calls.Retrieve) -> Hits: ...


class ContextPages:
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def keep(self, process: Process, context: Context, segments: Sequence[Segment]) -> None:
        """Remember segments that were paged out, and put the notes' ids on the context's record."""
        state = context.state
        namespace = state.namespace or process.namespace
        if not state.is_page_open:
            state.pages = (*state.pages, Pages(namespace, secrets.token_hex(8)))
            state.is_page_open = True
        mark = state.pages[-1].mark
        notes = list[calls.Note]()
        owners = list[int]()
        for segment in segments:
            for statement in statements(segment.message.text):
                notes.append(
                    calls.Note(
                        text=statement,
                        metadata={
                            "role": segment.message.role,
                            "context": context.context,
                            "pages": mark,
                        },
                        source=f"context:{mark}",
                        position=segment.index,
                    )
                )
                owners.append(segment.index)
        if not notes:
            return
        owner = process.client or None
        ids = (await self._shelf.remember_in(namespace, notes, owner=owner)).ids
        for index in dict.fromkeys(owners):
            context.kept(
                index, [id for id, owner in zip(ids, owners, strict=True) if owner == index]
            )

    async def recall(self, process: Process, context: Context, *, room_tokens: int) -> None:
        """Show what fits the newest message, if that is a question and there is room."""
        newest, state = context.newest, context.state
        if newest is None or newest.message.role != "user" or room_tokens <= 0:
            return
        query = asked(newest.message.text, most_chars=QUERY_CHARS)
        if not query or not (state.pages or state.namespace):
            return
        hits = await self._search(process, context, query)
        shown = context.shown_notes()
        found = [_recollection(hit) for hit in hits if hit.id not in shown]
        context.recall(found, room_tokens=room_tokens)

    async def _search(self, process: Process, context: Context, query: str) -> list[Hit]:
        state = context.state
        where: JsonObject = {}
        if state.namespace is not None:
            namespaces = [state.namespace]
        else:
            marks = [page.mark for page in state.pages]
            namespaces = list(dict.fromkeys(page.namespace for page in state.pages))
            where = {"pages": marks[0] if len(marks) == 1 else {"$in": marks}}
        call = calls.Retrieve(query=query, k=CANDIDATES, where=where, namespaces=tuple(namespaces))
        try:
            hits = (await self._shelf.retrieve(process, call)).hits
        except SyscallError as problem:
            if not str(problem.fields.get("field")).startswith("where"):
                raise
            return []  # all pages have been forgotten, and no note bears a mark any more
        return [hit for hit in hits if hit.parts.get("cosine", 0.0) >= LEAST_COSINE]


def _recollection(hit: Hit) -> Recollection:
    role = hit.metadata.get("role")
    text = " ".join(hit.text.split())
    said = f"{role}: {text}" if role in ("user", "assistant") else text
    return Recollection(hit.id, said, (hit.created_at, hit.id))
