"""Best of n: several answers from one computed prompt, and the one that stands out.

The writers are forks: each starts from the parent's computed state and pays only for the tokens
that it adds. The answer that most writers gave wins (self-consistency, Wang et al. 2022); among
equals the one that the model finds likeliest for its length.
"""

from __future__ import annotations

from collections import Counter
from statistics import fmean

from llmos.agents.forms import sentence
from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import RegexConstraint, Sampling
from llmos.syscalls.values import JsonObject

MOST_ANSWERS = 64
_ANSWER = sentence(least=5, most=160)
_ANSWER_TOKENS = 60


async def best_of_n(
    os: OS, question: str, *, n: int = 4, temperature: float = 0.7, model: str | None = None
) -> JsonObject:
    """Answer a question `n` times and keep the best.

    Returns `{"question", "answer", "candidates"}`; the candidates are `{"text", "votes",
    "logprob"}`, best first, with the mean log-probability of a token.
    Raises: SyscallError("invalid") for an `n` out of range.
    """
    if not 1 <= n <= MOST_ANSWERS:
        raise SyscallError("invalid", f"n: give 1 to {MOST_ANSWERS}", field="n")
    context = await os.context_open(prompt("best_of_n").messages(question=question), model=model)
    pids = [
        await os.fork(
            best_of_n_writer,
            contexts=[context],
            seed=seed,
            temperature=temperature,
            model=model,
        )
        for seed in range(n)
    ]
    await os.context_close(context)
    written = await os.results(pids)
    candidates = ranked([(one["text"], one["logprob"]) for one in written])
    for candidate in candidates:
        await os.print(f"{candidate['votes']} x {candidate['text']}")
    return {"question": question, "answer": candidates[0]["text"], "candidates": candidates}


async def best_of_n_writer(
    os: OS, *, contexts: list[int], seed: int, temperature: float, model: str | None = None
) -> JsonObject:
    """Write one answer; returns `{"text", "logprob"}`."""
    (context,) = contexts
    generated = await os.generate(
        context=context,
        model=model,
        sampling=Sampling(temperature=temperature, seed=seed, logprobs=0),
        constraint=RegexConstraint(pattern=_ANSWER),
        max_tokens=_ANSWER_TOKENS,
    )
    logprobs = [token.logprob for token in generated.logprobs or ()]
    return {"text": generated.text.strip(), "logprob": fmean(logprobs) if logprobs else 0.0}


def ranked(written: list[tuple[str, float]]) -> list[JsonObject]:
    """The different texts of (text, mean log-probability) pairs, best first.

    Texts that differ in case and spaces only are the same; the likeliest spelling stands.
    """
    votes = Counter(_plain(text) for text, _ in written)
    likeliest: dict[str, tuple[str, float]] = {}
    for text, logprob in sorted(written, key=lambda one: one[1], reverse=True):
        likeliest.setdefault(_plain(text), (text, logprob))
    best = sorted(likeliest.items(), key=lambda item: (votes[item[0]], item[1][1]), reverse=True)
    return [
        {"text": text, "votes": votes[plain], "logprob": round(logprob, 4)}
        for plain, (text, logprob) in best
    ]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
