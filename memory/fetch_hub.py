"""A model from a Hugging Face repository.

Interrupted files continue where they were: their parts are kept under `downloads` until
`Fetched.discard`. `HF_ENDPOINT`, `HF_TOKEN` and the other settings of huggingface_hub apply.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from llmos.memory.fetched import Fetched, Progress, not_available
from llmos.memory.model_source import HubSource
from llmos.syscalls.errors import SyscallError

# What the drivers read; a repository often holds the same weights in other formats too.
_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja", "README.md")


def fetch_hub(source: HubSource, target: Path, downloads: Path, progress: Progress) -> Fetched:
    """Fill `target` with the named file, or with all files that a driver reads.

    Raises: SyscallError("not_available"), ("invalid"); OSError.
    """
    from huggingface_hub import HfApi, hf_hub_download

    progress("asking the hub", 0, None)
    kept = downloads / f"hf-{source.repo.replace('/', '--')}"
    with _hub_errors(source):
        info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        chosen = _choose_files(sizes, source)
        total, done = sum(sizes[name] for name in chosen), 0
        for name in chosen:
            hf_hub_download(
                source.repo,
                name,
                revision=info.sha,
                local_dir=kept,
                tqdm_class=_bar_class(progress, done, total),
            )
            done += sizes[name]
            progress("downloading", done, total)
    for name in chosen:
        to = target / (PurePosixPath(name).name if source.file else name)
        to.parent.mkdir(parents=True, exist_ok=True)
        (kept / name).rename(to)
    card: Any = info.card_data
    licence = card.get("license") if card is not None else None
    return Fetched(download=kept, licence=licence, revision=info.sha)


def _choose_files(sizes: dict[str, int], source: HubSource) -> list[str]:
    if source.file is not None:
        if source.file in sizes:
            return [source.file]
        raise SyscallError(
            "invalid", f"{source.repo} holds no file {source.file}", field="source", has=list(sizes)
        )
    names = [name for name in sizes if name.endswith(_SUFFIXES)]
    if any(name.endswith(".safetensors") for name in names):
        return names
    ggufs = [name for name in sizes if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    raise SyscallError(
        "invalid",
        f"{source.repo} holds no safetensors and {len(ggufs)} GGUF files; name one: "
        f"hf:{source.repo}/FILE with FILE one of {', '.join(ggufs) or '(none)'}",
        field="source",
    )


def _bar_class(progress: Progress, before: int, total: int) -> Any:
    """A tqdm that draws nothing and tells `progress` instead."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # pyright: ignore[reportUntypedBaseClass, reportMissingTypeArgument]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._so_far = int(kwargs.get("initial") or 0)
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self._so_far += int(n or 0)
            progress("downloading", before + self._so_far, total)
            return super().update(n)

    return Bar


@contextmanager
def _hub_errors(source: HubSource) -> Generator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as problem:
        remedy = "accept its terms on its page, then `hf auth login`"
        raise not_available(source, f"the repository asks for an account; {remedy}") from problem
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as problem:
        raise not_available(source, "the hub knows no such repository or revision") from problem
    except (
        # The hub's HTTP library has another name in each of its major versions.
        errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        errors.EntryNotFoundError,
        errors.XetDownloadError,
        errors.HFValidationError,
        ConnectionError,
        TimeoutError,
    ) as problem:
        raise not_available(source, f"{type(problem).__name__}: {problem}") from problem
