"""The HTML report and its timeline picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from llmos.report import Report, render, write_report
from llmos.sharing import Sharing
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Accounting, DeviceInfo, KernelInfo, LedgerEntry
from llmos.syscalls.values import JsonObject
from llmos.timeline import read_trace
from llmos.timeline_picture import draw


def span(
    name: str, category: str, pid: int, start_s: float, end_s: float, tid: int = 0, **args: Any
) -> JsonObject:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": start_s * 1e6,
        "dur": (end_s - start_s) * 1e6,
        "pid": pid,
        "tid": tid,
        "args": args,
    }


def name(pid: int, tid: int, text: str) -> JsonObject:
    return {"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": text}}


TRACE: JsonObject = {
    "traceEvents": [
        name(0, 9, "smollm2"),
        span("Wait", "syscall", 1, 10, 15),
        span("step", "device", 0, 10.5, 11.0, 9, prefill=100, decode=0),
        span("step", "device", 0, 11.0, 12.0, 9, prefill=0, decode=4),
        {"name": "spawn", "cat": "process", "ph": "i", "ts": 10.4e6, "pid": 2, "tid": 0,
         "args": {"program": "worker"}},
        span("Generate", "syscall", 2, 10.5, 12.0),
        span("Send", "syscall", 2, 12.0, 12.1),
        span("worker", "process", 2, 10.4, 12.5, status="error"),
        span("queued", "generation", 3, 10.5, 10.6),
        span("prefill", "generation", 3, 10.6, 11.0),
        span("decode", "generation", 3, 11.0, 12.0),
        span("Generate", "syscall", 3, 10.5, 12.0),
        span("writer", "process", 3, 10.45, 12.0, status="ok"),
    ]
}  # fmt: skip


def info() -> KernelInfo:
    used = Accounting(syscalls=3, tokens_in=400, tokens_cached=300, tokens_out=20, prefill_s=0.5)
    return KernelInfo(
        uptime_s=5,
        processes={"running": 1},
        policy="priority",
        devices=(
            DeviceInfo(
                name="smollm2",
                driver="llama_cpp",
                model="smollm2",
                state="ready",
                steps=2,
                prefill_tokens_per_s=200.0,
            ),
        ),
        ledger=(LedgerEntry(owner="smollm2", what="weights", bytes=98 << 20),),
        resident_bytes=300 << 20,
        programs={"worker": used, "<writer>": used},
    )


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "title": "a run",
        "subtitle": "on a machine",
        "info": info(),
        "trace": TRACE,
        "seconds": 2.5,
        "question": "Is <b> safe?",
        "answer": "Yes & no",
        "sources": ("docs/<a>.md",),
    }
    return Report(**{**fields, **changes})


def test_a_trace_becomes_lanes_named_by_their_programs() -> None:
    timeline = read_trace(TRACE)
    assert [(lane.pid, lane.name, lane.is_ok) for lane in timeline.lanes] == [
        (2, "worker", False),
        (3, "writer", True),
    ]
    assert timeline.most_at_once == 2
    assert timeline.end_s == pytest.approx(2.1)
    assert [step.amounts for step in timeline.devices["smollm2"]] == [
        {"prefill": 100, "decode": 0},
        {"prefill": 0, "decode": 4},
    ]


def test_a_generation_is_shown_by_its_phases_where_they_are_known() -> None:
    worker, writer = read_trace(TRACE).lanes
    assert [span.kind for span in worker.spans] == ["generate"]
    assert [span.kind for span in writer.spans] == ["queued", "prefill", "decode"]


def test_the_picture_is_well_formed_and_small_however_many_spans_there_are() -> None:
    many = [
        span("Generate", "syscall", 2, 10 + n / 1e4, 10 + n / 1e4 + 1e-5) for n in range(20_000)
    ]
    picture = draw(read_trace({"traceEvents": [*TRACE["traceEvents"], *many]}))
    ET.fromstring(picture)
    assert len(picture) < 150_000
    assert "times in" in picture


def test_an_empty_trace_gives_an_empty_picture() -> None:
    assert read_trace({"traceEvents": []}).lanes == []
    ET.fromstring(draw(read_trace({"traceEvents": []})))


def test_many_processes_are_counted_rather_than_drawn() -> None:
    trace = {"traceEvents": [span("p", "process", pid, 0, 1) for pid in range(2, 1002)]}
    assert "and 880 more processes" in draw(read_trace(trace))


def test_the_page_shows_answer_figures_tables_and_needs_no_network() -> None:
    page = render(report())
    assert "Yes &amp; no" in page
    assert "Is &lt;b&gt; safe?" in page
    assert "docs/&lt;a&gt;.md" in page
    assert "&lt;writer&gt;" in page
    assert "75%" in page
    assert "98.0 MiB" in page
    assert not re.search(r"<(script|link|img|iframe)|src=|@import|url\(", page)
    assert "$" not in page


def test_a_run_without_an_answer_has_no_answer_section() -> None:
    assert "<h2>Answer</h2>" not in render(report(answer=None))


def test_the_savings_are_by_the_measured_rate() -> None:
    sharing = Sharing.of(info())
    assert (sharing.prompt_tokens, sharing.cached_tokens) == (800, 600)
    assert sharing.saved_s == pytest.approx(3.0)
    assert "600 of 800 prompt tokens (75%)" in sharing.sentence()
    assert "3.0 s of prefill saved" in sharing.sentence()


def test_without_a_rate_no_seconds_are_claimed() -> None:
    bare = info().model_copy(update={"devices": (), "programs": {}})
    sharing = Sharing.of(bare)
    assert (sharing.share, sharing.saved_s) == (0.0, None)
    assert "measured" not in sharing.sentence()


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="cannot be written"):
        write_report(report(), tmp_path / "missing" / "report.html")
