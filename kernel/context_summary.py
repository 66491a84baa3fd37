"""Recursive summaries: what leaves a window is folded into the summary of what left before it.

Source: Wang et al., "Recursively Summarizing Enables Long-Term Dialogue Memory in Large Language
Models", 2023 (arXiv 2308.15022).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from llmos.kernel.process import Process
from llmos.memory.context import Context
from llmos.memory.context_policy import SUMMARY_TOKENS
from llmos.memory.segments import Segment
from llmos.memory.statements import packed
from llmos.syscalls import calls
from llmos.syscalls.content import user
from llmos.syscalls.options import Sampling
from llmos.syscalls.results import Generated

Generate = Callable[[Process, calls.Generate], Awaitable[Generated]]

_HEADING_TOKENS = 32
_CHARS_AT_ONCE = 3_000  # of dialogue; with the summary before it, it fits small windows
_SAMPLING = Sampling(repetition_penalty=1.05, penalty_window_tokens=48)
_PROMPT = """{earlier}Conversation:
{said}

Write down in a few short sentences what was said. Keep every name, number and fact."""
_EARLIER = "What was said before:\n{summary}\n\n"


async def summarise(
    generate: Generate, process: Process, context: Context, left: Sequence[Segment]
) -> None:
    """Put a summary of segments that left, and of the summary before, into the window.

    The tokens are charged to the process. Raises: SyscallError when the model cannot.
    """
    summary = ""
    said = list[str]()
    for segment in left:
        if segment.own_kind == "summary" and segment.is_derived:
            summary = segment.message.text.partition("\n")[2]
        else:
            said += [f"{segment.message.role}: {one}" for one in packed(segment.message.text)]
    for part in _grouped(said):
        earlier = _EARLIER.format(summary=summary) if summary else ""
        generated = await generate(
            process,
            calls.Generate(
                messages=(user(_PROMPT.format(earlier=earlier, said=part)),),
                model=context.model,
                sampling=_SAMPLING,
                max_tokens=SUMMARY_TOKENS - _HEADING_TOKENS,
            ),
        )
        summary = generated.text.strip()
    if summary:
        context.summarise(summary)


def _grouped(said: Sequence[str]) -> list[str]:
    """Lines joined to parts of at most `_CHARS_AT_ONCE`."""
    parts = list[str]()
    for line in said:
        if parts and len(parts[-1]) + len(line) < _CHARS_AT_ONCE:
            parts[-1] = f"{parts[-1]}\n{line}"
        else:
            parts.append(line)
    return parts
