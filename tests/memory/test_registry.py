from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.memory.registry import Registry
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ModelVersion


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


def adapter(name: str, base: str = "small", **more: object) -> ModelVersion:
    return ModelVersion.model_validate({"name": name, "kind": "adapter", "base": base, **more})


def test_a_version_comes_back_as_it_was_added(registry: Registry) -> None:
    version = adapter(
        "a",
        parent="z",
        metrics={"loss": 1.5},
        card={"rank": 8},
        created_at=3.0,
        slot="small",
        licence="apache-2.0",
        data_hashes={"train": "ab"},
        is_pinned=True,
    )
    assert registry.add(version) == version
    assert registry.get("a") == version
    assert registry.list() == [version]


def test_a_version_without_a_time_gets_one(registry: Registry) -> None:
    assert registry.add(adapter("a")).created_at > 1e9


def test_a_name_is_taken_once(registry: Registry) -> None:
    registry.add(adapter("a", metrics={"loss": 1.0}))
    with pytest.raises(SyscallError, match="already") as refused:
        registry.add(adapter("a", metrics={"loss": 2.0}))
    assert refused.value.code == "invalid"
    assert registry.get("a").metrics == {"loss": 1.0}


def test_an_adapter_must_name_its_base(registry: Registry) -> None:
    with pytest.raises(SyscallError) as refused:
        registry.add(ModelVersion(name="a", kind="adapter"))
    assert refused.value.fields["field"] == "base"


def test_an_unknown_version_is_refused_with_the_known_ones(registry: Registry) -> None:
    registry.add(adapter("a"))
    with pytest.raises(SyscallError) as refused:
        registry.get("b")
    assert refused.value.code == "unknown_model"
    assert refused.value.fields == {"name": "b", "known": ["a"]}


def test_rollback_goes_back_one_promotion_at_a_time(registry: Registry) -> None:
    for name in ("a", "b"):
        registry.add(adapter(name))
        assert registry.promote(name).is_promoted
    assert registry.promoted("small") == "b"
    assert [v.is_promoted for v in registry.rollback("small")] == [True, False]
    assert registry.promoted("small") == "a"
    registry.rollback("small")
    assert registry.promoted("small") is None
    with pytest.raises(SyscallError) as refused:
        registry.rollback("small")
    assert refused.value.code == "not_found"


def test_promoting_twice_is_undone_by_one_rollback(registry: Registry) -> None:
    registry.add(adapter("a"))
    registry.promote("a")
    registry.promote("a")
    registry.rollback("small")
    assert registry.promoted("small") is None


def test_promotions_of_one_base_do_not_touch_another(registry: Registry) -> None:
    registry.add(adapter("a"))
    registry.add(adapter("b", base="large"))
    registry.promote("a")
    registry.promote("b")
    registry.rollback("large")
    assert registry.promoted("small") == "a"
    assert registry.promoted("large") is None


def test_what_has_no_base_cannot_be_promoted(registry: Registry) -> None:
    registry.add(ModelVersion(name="small", kind="model"))
    with pytest.raises(SyscallError) as refused:
        registry.promote("small")
    assert refused.value.code == "invalid"


def test_a_version_that_serves_its_base_cannot_be_removed(registry: Registry) -> None:
    registry.add(adapter("a"))
    registry.promote("a")
    with pytest.raises(SyscallError) as refused:
        registry.remove("a")
    assert refused.value.code == "busy"


def test_a_rollback_never_brings_back_what_was_removed(registry: Registry) -> None:
    for name in ("a", "b"):
        registry.add(adapter(name))
        registry.promote(name)
    registry.remove("a")
    registry.rollback("small")
    assert registry.promoted("small") is None


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    first = Registry(tmp_path)
    first.add(adapter("a"))
    first.promote("a")
    first.close()
    second = Registry(tmp_path)
    assert second.promoted("small") == "a"
    assert second.get("a").is_promoted
    second.close()


_KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from llmos.memory.registry import Registry
from llmos.syscalls.results import ModelVersion

registry = Registry(Path(sys.argv[1]))
for number in range(5):
    registry.add(ModelVersion(name=f"v{number}", kind="adapter", base="small"))
    registry.promote(f"v{number}")
with registry._transaction() as database:
    database.execute("DELETE FROM versions")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_loses_nothing_acknowledged_and_leaves_nothing_half_done(
    tmp_path: Path,
) -> None:
    writer = subprocess.run([sys.executable, "-c", _KILLED_WRITER, str(tmp_path)])
    assert writer.returncode == -signal.SIGKILL
    registry = Registry(tmp_path)
    assert [version.name for version in registry.list()] == [f"v{n}" for n in range(5)]
    assert registry.promoted("small") == "v4"
    registry.close()


def test_threads_that_add_at_once_lose_nothing(registry: Registry) -> None:
    def add(start: int) -> None:
        for number in range(start, start + 20):
            registry.add(adapter(f"v{number}"))

    threads = [threading.Thread(target=add, args=(start,)) for start in (0, 20, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.list()) == 60


def test_a_database_that_stays_locked_is_busy_and_retryable(
    registry: Registry, tmp_path: Path
) -> None:
    registry._database.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(tmp_path / "registry.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SyscallError) as refused:
        registry.add(adapter("a"))
    assert refused.value.code == "busy"
    assert refused.value.is_retryable
    other.close()
    registry.add(adapter("a"))


def test_a_full_database_refuses_and_then_goes_on(registry: Registry) -> None:
    pages = registry._database.execute("PRAGMA page_count").fetchone()[0]
    registry._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(SyscallError) as refused:
        registry.add(adapter("a", card={"text": "x" * 100_000}))
    assert refused.value.code == "storage"
    assert registry.list() == []
    registry._database.execute(f"PRAGMA max_page_count = {pages + 100}")
    registry.add(adapter("a"))


def test_a_damaged_database_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(SyscallError) as refused:
        Registry(tmp_path)
    assert refused.value.code == "storage"
