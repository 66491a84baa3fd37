"""Review a text: a score and one remark."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from llmos.agents.forms import json_sentence
from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.agents.text import read_all_input
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject


class Review(BaseModel):
    """What the model fills in."""

    score: Literal[1, 2, 3, 4, 5]
    remark: Annotated[str, Field(pattern=json_sentence(least=10, most=160))]


async def critic(
    os: OS, text: str | None = None, *, angle: str = "clarity", model: str | None = None
) -> JsonObject:
    """Review a text, or standard input, from one angle.

    Returns `{"angle", "score", "remark"}`, with a score of 1 to 5.
    Raises: SyscallError("invalid") when there is no text.
    """
    if text is None:
        text = (await read_all_input(os)).text
    if not text.strip():
        raise SyscallError("invalid", "text: there is none to review", field="text")
    review = await os.generate_as(
        Review, prompt("critic").messages(text=text, angle=angle), model=model, max_tokens=100
    )
    await os.print(f"{angle}: {review.score}/5. {review.remark}")
    return {"angle": angle, **review.model_dump()}
