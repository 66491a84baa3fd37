"""Messages: what is said to a model and what it says back.

A message's content is a list of parts (text, image, audio, file reference). Text is served now;
a part that no configured driver can read is refused by the kernel with `not_available`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmos.syscalls.values import JsonObject, Value

Role = Literal["system", "user", "assistant", "tool"]


class TextPart(Value):
    type: Literal["text"] = "text"
    text: str


class ImagePart(Value):
    type: Literal["image"] = "image"
    data: bytes
    media_type: str = "image/png"


class AudioPart(Value):
    type: Literal["audio"] = "audio"
    data: bytes
    media_type: str = "audio/wav"


class FilePart(Value):
    """A reference to a file in the process's home or in a shared folder."""

    type: Literal["file"] = "file"
    path: str


Part = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]


class ToolRequest(Value):
    """A tool call that a model asked for; `arguments` is the JSON object as it was parsed."""

    id: str
    name: str
    arguments: JsonObject


class Message(Value):
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...] = ()
    tool_requests: tuple[ToolRequest, ...] = ()
    tool_request_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


def system(text: str) -> Message:
    """A system message of one text part."""
    return Message(role="system", parts=(TextPart(text=text),))


def user(text: str) -> Message:
    """A user message of one text part."""
    return Message(role="user", parts=(TextPart(text=text),))


def assistant(text: str) -> Message:
    """An assistant message of one text part."""
    return Message(role="assistant", parts=(TextPart(text=text),))


def tool_result(request: ToolRequest, text: str) -> Message:
    """The answer to a tool request."""
    return Message(
        role="tool", parts=(TextPart(text=text),), tool_request_id=request.id, name=request.name
    )
