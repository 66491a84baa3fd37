"""The objective `instruct`: the last message of a conversation, said by the assistant.

Owns which tokens of a conversation are targets: those of the last message, with the token that ends
its turn. Whatever is cut or left out is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmos.drivers.rows.kinds import ChatRow
from llmos.drivers.tool_text import write_answer
from llmos.drivers.training.decoder import Decoder, kind_of, open_decoder, save_decoder
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.methods import RATES
from llmos.drivers.training.next_token import NextToken
from llmos.drivers.training.objectives import Rows
from llmos.drivers.training.rendering import Chat, TokenizerChat
from llmos.drivers.training.task import Built, Encoded, Item, Task
from llmos.syscalls.content import Message
from llmos.syscalls.results import ToolSpec


class InstructTask(NextToken):
    """Trains a decoder to answer. Satisfies `Task`; a payload is the prompt's number of tokens."""

    def __init__(self, decoder: Decoder, *, max_length_tokens: int) -> None:
        super().__init__(decoder)
        self._chat = TokenizerChat(decoder.tokenizer)
        self._max_length_tokens = max_length_tokens

    def encode(self, rows: Sequence[ChatRow], /) -> Encoded:
        """Render rows and cut each to its first tokens (see `encode_rows`)."""
        return encode_rows(rows, self._chat, max_length_tokens=self._max_length_tokens)


def build(job: TrainJob, device: str, rows: Rows) -> Built:
    """A decoder that learns to answer. Raises: DeviceError, SyscallError."""
    decoder = open_decoder(job, device)
    task = InstructTask(decoder, max_length_tokens=job.max_length_tokens)
    return built(decoder, task, job)


def built(decoder: Decoder, task: Task, job: TrainJob) -> Built:
    """What the worker trains, for a task on a decoder."""

    def save(folder: Path) -> None:
        save_decoder(decoder, job.method, folder)

    return Built(
        model=decoder.model,
        task=task,
        save=save,
        rate=RATES[job.method],
        is_packed=decoder.is_packed,
        kind=kind_of(job.method),
    )


def encode_rows(rows: Sequence[ChatRow], chat: Chat, *, max_length_tokens: int) -> Encoded:
    """Render rows and cut each to its first `max_length_tokens`.

    A row cut inside its answer is kept and named in `truncated`; one whose answer is cut off
    entirely is left out and named in `skipped`.
    """
    kept: list[Item] = []
    truncated: list[str] = []
    skipped: list[str] = []
    for row in rows:
        answer = write_answer(row.messages[-1])
        item = encode_row(row.messages[:-1], answer, row.origin, chat, tools=row.tools)
        if item.payload >= max_length_tokens:
            skipped.append(row.origin)
            continue
        if len(item.tokens) > max_length_tokens:
            truncated.append(row.origin)
            item = item._replace(tokens=item.tokens[:max_length_tokens])
        kept.append(item)
    return Encoded(tuple(kept), tuple(truncated), tuple(skipped))


def encode_row(
    prompt: Sequence[Message],
    answer: str,
    origin: str,
    chat: Chat,
    *,
    tools: Sequence[ToolSpec] = (),
) -> Item:
    """The tokens of a row, the answer's apart from the prompt's as when the model generates it."""
    given = chat.render(prompt, tools=tools)
    return Item((*given, *chat.tokenize(answer), chat.end_token), len(given), origin)
