"""How nearly torch and llama.cpp agree, position by position, on the same weights.

Windows of real text (the licence and the project's decisions) are fed to both drivers through the
contract, 16 sequences at a time: a beginning at once, then token by token, as generation does.
After each token both say what they hold most likely. torch computes in single precision with the
shipped file's weights de-quantised; llama.cpp once with the shipped Q4_1 file, for which it rounds
activations to 8 bits, and once with the same weights in half precision.

A gap is the difference of the log-probability (nats) that the two give torch's most likely token.
The margin of a disagreement is how much likelier torch holds its token than its second choice: a
small one is a near tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.form import Floor, main
from llmos.drivers.contract import Feed, LanguageModel, ModelSpec, Sampled
from llmos.drivers.llama_requantise import requantised
from llmos.drivers.opening import DriverName, open_language_model
from llmos.memory.model_store import ModelStore
from llmos.syscalls.options import Sampling

ROOT = Path(__file__).parent.parent
SEQUENCES = 16
CONTEXT = 64  # tokens before the first position that counts
POSITIONS = 48
WATCHED = Sampling(logprobs=20)


class Agreement(NamedTuple):
    """Of two drivers over all positions."""

    share: float
    max_gap: float
    mean_gap: float
    max_margin: float  # among the disagreements


def texts() -> list[str]:
    """A text of known wording, and one that the model has not read. Neither changes much, so that
    runs years apart compare.
    """
    decisions = sorted((ROOT / "docs" / "decisions").glob("000[1-6]-*.md"))
    return [(ROOT / "LICENSE").read_text(), "\n".join(page.read_text() for page in decisions)]


def windows(model: LanguageModel) -> list[list[int]]:
    """As many windows of tokens as there are sequences, spread over the texts."""
    length = CONTEXT + POSITIONS
    found: list[list[int]] = []
    for text in texts():
        tokens = model.tokenize(text)
        count = SEQUENCES // len(texts())
        stride = (len(tokens) - length) // count
        if stride < length:
            raise SystemExit(f"a text of {len(tokens)} tokens is too short to compare on")
        found += [tokens[at * stride : at * stride + length] for at in range(count)]
    return found


def watched(model: LanguageModel, rows: Sequence[Sequence[int]]) -> list[Sampled]:
    """What the model says at each position of each row."""
    for sequence in range(SEQUENCES):
        model.add(sequence, sampling=WATCHED)
    for sequence, row in enumerate(rows):
        model.step([Feed(sequence, row[:CONTEXT], False)])
    said: list[Sampled] = []
    for position in range(CONTEXT, CONTEXT + POSITIONS):
        feeds = [Feed(sequence, [row[position]], True) for sequence, row in enumerate(rows)]
        said += sorted(model.step(feeds), key=lambda one: one.sequence)
    return said


def agreement(reference: Sequence[Sampled], other: Sequence[Sampled]) -> Agreement:
    gaps = [gap(one, two) for one, two in zip(reference, other, strict=True)]
    margins = [
        one.top[0][1] - one.top[1][1]
        for one, two in zip(reference, other, strict=True)
        if one.token != two.token
    ]
    return Agreement(
        share=1 - len(margins) / len(reference),
        max_gap=max(gaps),
        mean_gap=mean(gaps),
        max_margin=max(margins, default=0.0),
    )


def gap(one: Sampled, other: Sampled) -> float:
    """At least this far apart are the two on the token that `one` holds most likely."""
    known = dict(other.top)
    assert one.logprob is not None
    return abs(one.logprob - known.get(one.token, min(known.values())))


def said_by(
    driver: DriverName, path: Path, rows: Sequence[Sequence[int]] | None
) -> tuple[list[Sampled], Sequence[Sequence[int]]]:
    """What a driver says of the rows, which it makes itself when there are none yet."""
    spec = ModelSpec(
        "smollm2",
        path,
        context_tokens=CONTEXT + POSITIONS,
        sequences=SEQUENCES,
        batch_tokens=max(CONTEXT, SEQUENCES),
    )
    model = open_language_model(driver, spec)
    try:
        rows = rows or windows(model)
        return watched(model, rows), rows
    finally:
        model.close()


def measure() -> Mapping[str, Any]:
    path = ModelStore().path("smollm2")
    reference, rows = said_by("torch", path, None)
    shipped, _ = said_by("llama_cpp", path, rows)
    half, _ = said_by("llama_cpp", requantised(path, "F16"), rows)
    as_shipped, as_half = agreement(reference, shipped), agreement(reference, half)
    return {
        "top1_agreement": round(as_shipped.share, 4),
        "top1_agreement_f16": round(as_half.share, 4),
        "max_logprob_gap": round(as_shipped.max_gap, 4),
        "max_logprob_gap_f16": round(as_half.max_gap, 4),
        "mean_logprob_gap": round(as_shipped.mean_gap, 4),
        "mean_logprob_gap_f16": round(as_half.mean_gap, 4),
        "max_disagreement_margin": round(as_shipped.max_margin, 4),
        "max_disagreement_margin_f16": round(as_half.max_margin, 4),
        "positions": len(reference),
    }


if __name__ == "__main__":
    main(
        "parity",
        measure,
        [Floor("top1_agreement", ">=", 0.95), Floor("top1_agreement_f16", ">=", 0.99)],
    )
