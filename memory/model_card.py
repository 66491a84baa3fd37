"""Model cards: what a stored model is, read from its own files.

Owns the card's form and the reading of GGUF headers, `config.json` and safetensors headers. Refuses
to know where a model came from and where it is kept; never loads weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from llmos.drivers.gguf_header import DamagedFile, read_gguf_header
from llmos.syscalls.values import Value

CARD_NAME = "card.json"
_CHUNK_BYTES = 1 << 20


class CardFile(Value):
    """One file of a model; `path` is relative to the model's folder."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str


class Facts(Value):
    """What a model's own files say about it.

    `file` is the one file to open (GGUF), or None when the folder is opened (safetensors).
    `context_tokens` is the longest input that the model was made for.
    """

    kind: Literal["model", "embedding"]
    format: Literal["gguf", "safetensors"]
    file: str | None
    architecture: str
    parameters: int
    licence: str | None = None
    context_tokens: int | None = None
    chat_template: str | None = None


class Card(Facts):
    """What a stored model is and where it came from.

    `sha256` is of the file, or of the `sha256sum` listing of the folder's files in byte order.
    `revision` is the commit of a hub repository; `pulled_at` is seconds since the epoch.
    """

    name: str
    source: str
    sha256: str
    bytes: int
    files: tuple[CardFile, ...]
    revision: str | None = None
    pulled_at: float


def read_facts(folder: Path) -> Facts:
    """What the model in a folder is. Raises: DamagedFile; OSError."""
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return _gguf_facts(ggufs[0])
    if ggufs:
        names = ", ".join(path.name for path in ggufs)
        raise DamagedFile(f"several GGUF files where one is wanted: {names}")
    weights = sorted(folder.glob("*.safetensors"))
    if weights and (folder / "config.json").exists():
        return _safetensors_facts(folder, weights)
    raise DamagedFile("no model: neither a .gguf file nor config.json with .safetensors files")


def files_below(folder: Path) -> list[str]:
    """The paths of a model's files but its card, in byte order."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != CARD_NAME)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def hash_files(
    folder: Path, paths: Sequence[str], on_bytes: Callable[[int], None]
) -> tuple[CardFile, ...]:
    """Sizes and sha256 of some files of a folder; tells the bytes of each chunk read."""
    return tuple(_hash_file(folder, path, on_bytes) for path in paths)


def digest_of(files: Iterable[CardFile]) -> str:
    """One sha256 for a model: its file's own, or that of the listing of several."""
    files = tuple(files)
    if len(files) == 1:
        return files[0].sha256
    listing = "".join(f"{file.sha256}  {file.path}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _hash_file(folder: Path, path: str, on_bytes: Callable[[int], None]) -> CardFile:
    digest, size = hashlib.sha256(), 0
    with (folder / path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            on_bytes(len(chunk))
    return CardFile(path=path, bytes=size, sha256=digest.hexdigest())


def _gguf_facts(path: Path) -> Facts:
    header = read_gguf_header(path)
    said = header.metadata
    architecture = str(said.get("general.architecture", "unknown"))
    # Encoders of the BERT family pool; a decoder made into an embedding model says so too.
    is_embedding = "bert" in architecture or f"{architecture}.pooling_type" in said
    return Facts(
        kind="embedding" if is_embedding else "model",
        format="gguf",
        file=path.name,
        architecture=architecture,
        parameters=header.parameters,
        licence=said.get("general.license"),
        context_tokens=said.get(f"{architecture}.context_length"),
        chat_template=said.get("tokenizer.chat_template"),
    )


def _safetensors_facts(folder: Path, weights: list[Path]) -> Facts:
    config = _read_json(folder / "config.json")
    is_embedding = (folder / "modules.json").exists()  # sentence-transformers' own mark
    return Facts(
        kind="embedding" if is_embedding else "model",
        format="safetensors",
        file=None,
        architecture=str(config.get("model_type", "unknown")),
        parameters=sum(_safetensors_parameters(path) for path in weights),
        licence=_readme_licence(folder),
        context_tokens=_context_tokens(folder, config),
        chat_template=_chat_template(folder),
    )


def _context_tokens(folder: Path, config: dict[str, Any]) -> int | None:
    # A sentence-transformers model is trained on shorter texts than its encoder could take.
    trained = folder / "sentence_bert_config.json"
    if trained.exists():
        limit = _read_json(trained).get("max_seq_length")
        if limit is not None:
            return int(limit)
    return config.get("max_position_embeddings")


def _chat_template(folder: Path) -> str | None:
    own_file = folder / "chat_template.jinja"
    if own_file.exists():
        return own_file.read_text()
    settings = folder / "tokenizer_config.json"
    template = _read_json(settings).get("chat_template") if settings.exists() else None
    return template if isinstance(template, str) else None


def _readme_licence(folder: Path) -> str | None:
    readme = folder / "README.md"
    if not readme.exists():
        return None
    head = readme.read_text(errors="replace").split("\n---", 1)[0]
    found = re.search(r"^license:\s*(\S+)", head, re.MULTILINE)
    return found[1] if found else None


def _safetensors_parameters(path: Path) -> int:
    """Source: the safetensors format: a length, a JSON header with shapes and offsets, the data."""
    has = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else has
        if length > has - 8:
            raise DamagedFile(f"{path.name} is no safetensors file, or cut short")
        header = _parse_json(file.read(length), path.name)
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    needed = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    if has < needed:
        raise DamagedFile(f"{path.name} is cut short: {has:,} bytes of {needed:,}")
    return sum(math.prod(entry["shape"]) for entry in tensors)


def _read_json(path: Path) -> dict[str, Any]:
    return _parse_json(path.read_bytes(), path.name)


def _parse_json(text: bytes, name: str) -> dict[str, Any]:
    try:
        parsed: Any = json.loads(text)
    except ValueError as problem:
        raise DamagedFile(f"{name} holds no valid JSON: {problem}") from problem
    if not isinstance(parsed, dict):
        raise DamagedFile(f"{name} holds no JSON object")
    return parsed  # pyright: ignore[reportUnknownVariableType]
