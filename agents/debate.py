"""A debate: two debaters that are forks of one context, and a judge.

The debaters inherit the computed state of what they share (rules, examples, the claim) and differ
from then on. They exchange arguments by mail, and the judge's verdict is one of the two sides.
"""

from __future__ import annotations

import json
from typing import Literal

from llmos.agents.forms import json_sentence, sentence
from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.syscalls.content import assistant
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import JsonSchemaConstraint, RegexConstraint, Sampling
from llmos.syscalls.values import JsonObject

Side = Literal["for", "against"]
SIDES: tuple[Side, Side] = ("for", "against")

# The first words put a debater on its side, whatever the model thinks of the claim.
_STANCE: dict[Side, str] = {"for": "I agree because", "against": "I disagree because"}
_ARGUMENT = sentence(least=15, most=160, start=" [a-z]")
_ARGUMENT_TOKENS, _VERDICT_TOKENS = 60, 100
_SAMPLING = Sampling(repetition_penalty=1.1, penalty_window_tokens=96)


async def debate(os: OS, claim: str, *, rounds: int = 2, model: str | None = None) -> JsonObject:
    """Let two sides argue about a claim and a judge decide.

    Returns `{"claim", "arguments", "winner", "reason"}`; `arguments` are `{"side", "text"}` in the
    order in which they were made.
    Raises: SyscallError("failed") when the verdict was cut by its length.
    """
    if rounds < 1:
        raise SyscallError("invalid", "rounds: give at least 1", field="rounds")
    form = prompt("debate")
    # The claim is acknowledged as in the example, so that a fork's first turn is its side.
    ready = assistant(form.shots[0].assistant)
    context = await os.context_open([*form.messages(claim=claim), ready], model=model)
    pids = {
        side: await os.fork(
            debater, side, contexts=[context], rounds=rounds, parent=os.pid, model=model
        )
        for side in SIDES
    }
    await os.context_close(context)
    await os.send(pids["for"], pids["against"])
    await os.send(pids["against"], pids["for"])
    said = dict(zip(SIDES, await os.results(list(pids.values())), strict=True))
    arguments: list[JsonObject] = [
        {"side": side, "text": said[side][turn]} for turn in range(rounds) for side in SIDES
    ]
    for argument in arguments:
        await os.print(f"{argument['side']}: {argument['text']}")
    verdict = await _judge(os, claim, arguments, model)
    await os.print(f"winner: {verdict['winner']}. {verdict['reason']}")
    return {"claim": claim, "arguments": arguments, **verdict}


async def debater(
    os: OS,
    side: Side,
    *,
    contexts: list[int],
    rounds: int,
    parent: int,
    model: str | None = None,
) -> list[str]:
    """Argue one side against the process whose pid the parent sends; returns the arguments."""
    (context,) = contexts
    peer = int((await os.receive(sender=parent)).body)
    made: list[str] = []
    heard: str | None = None
    for _ in range(rounds):
        if side == "against":
            heard = str((await os.receive(sender=peer)).body)
        said = "" if heard is None else f"The other side said: {heard} "
        generated = await os.generate(
            [prompt("debate_turn").turn(said=said, side=side)],
            context=context,
            model=model,
            sampling=_SAMPLING,
            prefix=_STANCE[side],
            constraint=RegexConstraint(pattern=_ARGUMENT),
            max_tokens=_ARGUMENT_TOKENS,
        )
        made.append(generated.text)
        await os.send(peer, generated.text)
        if side == "for":
            heard = str((await os.receive(sender=peer)).body)
    return made


async def _judge(os: OS, claim: str, arguments: list[JsonObject], model: str | None) -> JsonObject:
    schema: JsonObject = {
        "type": "object",
        "properties": {
            "winner": {"enum": list(SIDES)},
            "reason": {"type": "string", "pattern": json_sentence(least=15, most=160)},
        },
        "required": ["winner", "reason"],
        "additionalProperties": False,
    }
    generated = await os.generate(
        prompt("judge").messages(
            claim=claim,
            arguments="\n".join(f"{one['side'].title()}: {one['text']}" for one in arguments),
        ),
        model=model,
        constraint=JsonSchemaConstraint(json_schema=schema),
        max_tokens=_VERDICT_TOKENS,
    )
    try:
        return json.loads(generated.text)
    except ValueError as problem:
        raise SyscallError(
            "failed",
            f"the verdict did not end within {_VERDICT_TOKENS} tokens",
            text=generated.text,
        ) from problem
