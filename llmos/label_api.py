"""The wire types of `/v1/classify` and `/v1/tag`, which OpenAI's API has no form for.

They are as close to its `/v1/embeddings` as labels let them be: `input` is one text or several, the
answer has one entry of `data` for each, in order. Refuses to know the kernel.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from llmos.openai_api import Wire
from llmos.syscalls import learning as calls
from llmos.syscalls.learning_results import Classified, Entity, Tagged
from llmos.syscalls.values import JsonObject


def _form(value: object) -> str:
    return "text" if isinstance(value, str) else "list"


Words = Annotated[list[str], Field(min_length=1)]
Sentence = Annotated[
    Annotated[str, Tag("text")] | Annotated[Words, Tag("list")], Discriminator(_form)
]


class ClassifyRequest(Wire):
    """The body of POST /v1/classify."""

    model: str = Field(min_length=1)
    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[str], Field(min_length=1), Tag("list")],
        Discriminator(_form),
    ]
    task: str | None = None
    top_k: int | None = Field(default=None, ge=1)

    def call(self) -> calls.Classify:
        texts = (self.input,) if isinstance(self.input, str) else tuple(self.input)
        return calls.Classify(texts=texts, model=self.model, task=self.task, top_k=self.top_k)


class TagRequest(Wire):
    """The body of POST /v1/tag. A text of `input` may be a list of words."""

    model: str = Field(min_length=1)
    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[Sentence], Field(min_length=1), Tag("list")],
        Discriminator(_form),
    ]
    task: str | None = None

    def call(self) -> calls.Tag:
        given = [self.input] if isinstance(self.input, str) else self.input
        texts = tuple(one if isinstance(one, str) else tuple(one) for one in given)
        return calls.Tag(texts=texts, model=self.model, task=self.task)


def classified(result: Classified) -> JsonObject:
    """The answer of /v1/classify."""
    return {
        "object": "list",
        "model": result.model,
        "data": [
            {
                "object": "classification",
                "index": index,
                "label": labels[0].label,
                "labels": [{"label": one.label, "probability": one.probability} for one in labels],
            }
            for index, labels in enumerate(result.labels)
        ],
        "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
    }


def tagged(result: Tagged) -> JsonObject:
    """The answer of /v1/tag."""
    return {
        "object": "list",
        "model": result.model,
        "data": [
            {
                "object": "entities",
                "index": index,
                "text": one.text,
                "entities": [_entity(entity) for entity in one.entities],
                "words": list(one.words),
                "tags": list(one.tags),
                "scores": list(one.scores),
            }
            for index, one in enumerate(result.texts)
        ],
        "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
    }


def _entity(entity: Entity) -> JsonObject:
    return {
        "text": entity.text,
        "label": entity.label,
        "start": entity.start,
        "end": entity.end,
        "score": entity.score,
    }
