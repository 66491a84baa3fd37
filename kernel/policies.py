"""All scheduling policies by name; `policy.py` says what one is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from llmos.kernel.policy import Entry, Policy, PolicyName, PolicySettings
from llmos.kernel.policy_attained import LeastAttained
from llmos.kernel.policy_fair import Fair
from llmos.kernel.policy_ranked import CriticalPath, Deadline, Fifo, Priority, RoundRobin
from llmos.syscalls.errors import ConfigError

__all__ = ["POLICIES", "Entry", "Policy", "PolicyName", "PolicySettings", "make_policy"]

POLICIES: Mapping[PolicyName, Callable[[PolicySettings], Policy]] = {
    "fifo": Fifo,
    "round_robin": RoundRobin,
    "priority": Priority,
    "fair": Fair,
    "las": LeastAttained,
    "deadline": Deadline,
    "critical_path": CriticalPath,
}
assert set(POLICIES) == set(get_args(PolicyName))


def make_policy(name: str, settings: PolicySettings | None = None) -> Policy:
    """A policy by name. Raises: ConfigError naming the known ones."""
    for known, make in POLICIES.items():
        if name == known:
            return make(settings or PolicySettings())
    raise ConfigError("policy", f"there is no policy {name!r}; choose one of {', '.join(POLICIES)}")
