"""The soak in short: many programs, chaos and a failing device, and the books are right after it.

`python -m benchmarks.soak` is the long form, with 500 agents on the real model. It is a process of
its own here too, whose size is then its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_chaos_loses_no_wakeup_leaks_no_kv_and_leaves_no_call_unanswered() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--driver", "scripted", "--json"]
    sizes = ["--agents", "100", "--seconds", "8", "--fault-rate", "0.01"]
    done = subprocess.run([*command, *sizes], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    nothing = ("lost_wakeups", "unanswered", "leaked_sequences", "leaked_kv_tokens")
    assert {name: found[name] for name in nothing} == dict.fromkeys(nothing, 0)
    assert found["usable_sequences"] == 16
    # How much a run of seconds grows depends on the machine; that it is told does not.
    assert found["resident_bytes"] > 0
    assert found["grown_share"] > -1.0
    # That something happened at all: each kind of chaos, and each kind of end.
    kinds = ["chaos_kill", "chaos_term", "chaos_stop", "chaos_fault", "refused_device"]
    ends = ["answered", "ended_with_process", "programs_ok", "streams_left"]
    assert all(found[kind] for kind in [*kinds, *ends])
    assert "panic" not in done.stderr
