"""The default model as `llmos tune --quick` would run it, against its file as shipped.

The formats are compared first; then the winner and the shipped file are measured in turns, each
opened anew. The ratio is of what a new token with four prompt tokens costs the device, where many
agents run at once (`drivers/tuning.py` says the mix). Nothing is kept.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.form import Floor, main
from llmos.drivers.llama_requantise import shipped
from llmos.drivers.tuning import Speed, cost_ms
from llmos.memory.model_store import ModelStore
from llmos.memory.tuned import Choice, Row
from llmos.tuning import Tuning, candidates
from llmos.tuning_bench import ModelBench, room_for

ROUNDS = 3


def measure() -> dict[str, Any]:
    path = ModelStore().path("smollm2")
    with ModelBench(path) as bench:
        tuning = Tuning(bench, _tell_nobody)
        best = tuning.choose_format(list(candidates(shipped(path), room_for(path))))
        sides: dict[str, list[Speed]] = {"tuned": [], "shipped": []}
        for _ in range(ROUNDS):
            sides["tuned"].append(bench.speed(best.choice))
            sides["shipped"].append(bench.speed(Choice()))
    costs = {side: statistics.median(map(cost_ms, speeds)) for side, speeds in sides.items()}
    return {
        "ratio": round(costs["shipped"] / costs["tuned"], 2),
        "weights": best.choice.weights,
        "perplexity_loss": best.loss or 0.0,
        **{f"{side}_ms_a_token": round(cost, 2) for side, cost in costs.items()},
        **{
            f"{side}_prefill_tokens_per_s": round(statistics.median(s.prefill for s in speeds), 1)
            for side, speeds in sides.items()
        },
        **{
            f"{side}_decode_x16_tokens_per_s": round(
                statistics.median(s.decode[16] for s in speeds), 1
            )
            for side, speeds in sides.items()
        },
    }


def _tell_nobody(doing: str, row: Row | None = None) -> None:
    """Progress that nobody watches."""


if __name__ == "__main__":
    # No better than shipped on some processors, and never worse but for the noise.
    main("tuned", measure, [Floor("ratio", ">=", 0.95), Floor("perplexity_loss", "<=", 0.01)])
