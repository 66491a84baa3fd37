"""Which figures of a benchmark are drawn side by side: for each, panels of bars, ours first.

The keys are those of the reports. What was not measured in a run is left out of its picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Bars(NamedTuple):
    """Sides side by side: `sides` names the report's key of each, ours first."""

    title: str
    unit: str
    sides: Mapping[str, str]


_RATE = "new tokens per second"

PANELS: Mapping[str, Sequence[Bars]] = {
    "batching": [
        Bars(
            "16 agents at once",
            _RATE,
            {"llmos": "kernel_tokens_per_s", "llama_cpp.Llama": "llama_tokens_per_s"},
        )
    ],
    "throughput": [
        Bars(
            "16 independent agents",
            _RATE,
            {
                "llmos": "kernel_tokens_per_s",
                "bare loop": "raw_tokens_per_s",
                "llama-server": "server_tokens_per_s",
                "one by one": "serial_tokens_per_s",
            },
        )
    ],
    "torch_batching": [
        Bars(
            "16 prompts of mixed lengths",
            _RATE,
            {
                "torch driver": "driver_tokens_per_s",
                "generate_batch": "generate_batch_tokens_per_s",
                "padded generate": "padded_tokens_per_s",
                "one by one": "sequential_tokens_per_s",
            },
        )
    ],
    "interactive": [
        Bars(
            "to the first token",
            "ms, p95",
            {
                "beside 16 agents": "ttft_ms",
                "alone": "ttft_alone_ms",
                "fifo": "fifo_ttft_ms",
            },
        ),
        Bars(
            "between tokens",
            "ms, p95",
            {
                "beside 16 agents": "inter_token_ms",
                "alone": "inter_token_alone_ms",
                "fifo": "fifo_inter_token_ms",
            },
        ),
    ],
    "shared_prefix": [
        Bars(
            "agents with one long system prompt",
            "seconds",
            {"shared": "shared_s", "each computes its own": "unshared_s"},
        )
    ],
    "fork": [
        Bars(
            "the first token after 2,000 tokens",
            "ms",
            {
                "a fork": "child_ms",
                "computed again": "recompute_ms",
            },
        )
    ],
    "return_from_tool": [
        Bars(
            "agents back from their tools",
            "seconds",
            {"KV kept": "kept_s", "computed again": "recomputed_s"},
        ),
        Bars(
            "tokens computed again",
            "times what is best possible",
            {"returns learned": "gap_to_optimum", "last use": "lru_gap"},
        ),
    ],
    "programs": [
        Bars("a program, on average", "seconds", {"las": "las_mean_s", "fifo": "fifo_mean_s"}),
        Bars("the 95th percentile", "seconds", {"las": "las_p95_s", "fifo": "fifo_p95_s"}),
    ],
    "fairness": [
        Bars(
            "a client that sends less",
            "share of the service",
            {"fair": "fair_light_share", "fifo": "fifo_light_share"},
        ),
        Bars(
            "one that sends ten times as much",
            "share of the service",
            {"fair": "fair_heavy_share", "fifo": "fifo_heavy_share"},
        ),
    ],
    "speculative": [
        Bars(
            "copy-heavy tasks",
            _RATE,
            {"guessing": "copy_tokens_per_s", "without": "copy_tokens_per_s_without"},
        ),
        Bars(
            "ordinary tasks",
            _RATE,
            {"guessing": "other_tokens_per_s", "without": "other_tokens_per_s_without"},
        ),
    ],
    "constrained": [
        Bars(
            "agents at once",
            _RATE,
            {"nested schema": "constrained_tokens_per_s", "free text": "free_tokens_per_s"},
        ),
        Bars(
            "steps of the device",
            "for 100 tokens",
            {
                "nested schema": "constrained_steps_per_100_tokens",
                "free text": "free_steps_per_100_tokens",
            },
        ),
    ],
}
