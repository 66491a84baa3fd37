"""LoRA adapters on a torch model: attached, applied row by row, detached.

Owns the adapters' weights and which rows of a step each of them changes. The base weights are never
changed, so one step serves sequences with different adapters and with none: every product runs once
for all rows, and each adapter adds its own low-rank product to the rows of its sequences, which lie
together. In a step of few rows, where starting a product takes longer than computing it, the
adapters' matrices lie side by side: one product for all of them, and what is not a row's own is
struck out between its halves. Refuses to know sequences.

Sources: S-LoRA, Sheng et al. 2023 (arXiv 2311.03285); Punica, Chen et al. 2023 (arXiv 2310.18547).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers.adapter_folder import LoraAdapter, read_adapter
from llmos.drivers.contract import DeviceError

if TYPE_CHECKING:
    import torch

# Of a step that computes adapters side by side: with more, a product costs more than its start.
_FEW_ROWS = 64
# Adapters that lie side by side and are not in the step, for each that is.
_SPARE = 2


class Span(NamedTuple):
    """The rows of a step that one adapter changes: of all tokens, and of those asked for logits."""

    adapter: str
    rows: slice
    asked: slice


class _Change(NamedTuple):
    """What is added to a linear layer's output: `rows @ a @ b`."""

    a: torch.Tensor  # (inputs, rank)
    b: torch.Tensor  # (rank, outputs), scaled

    @property
    def bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


# Adapters that lie side by side, each with its first column and the one after its last.
_Columns = tuple[tuple[str, int, int], ...]


class _Stack(NamedTuple):
    """The changes of several adapters to one layer, side by side."""

    a: torch.Tensor  # (inputs, ranks)
    b: torch.Tensor  # (ranks, outputs)
    columns: _Columns  # among the ranks


class TorchAdapters:
    """The adapters of one model. One thread at a time.

    `hooks` lets the model's own modules apply them; without, who computes calls `add_to`.
    """

    def __init__(self, model: Any, *, hooks: bool) -> None:
        self._model = model
        self._hooks = hooks
        self._handles: dict[str, Any] = {}  # of the layers that some adapter changes
        self._attached: dict[str, Mapping[str, _Change]] = {}
        self._spans: Sequence[Span] = ()
        self._is_side_by_side = False
        self._tokens = 0
        self._stacked: frozenset[str] = frozenset()  # the adapters in `_stacks`
        self._stacks: dict[str, _Stack | None] = {}  # by layer, made when first needed
        self._own: dict[tuple[_Columns, bool], torch.Tensor] = {}  # of this step

    def __contains__(self, name: str) -> bool:
        return name in self._attached

    def sizes(self) -> dict[str, int]:
        """Bytes of each adapter."""
        return {
            name: sum(change.bytes for change in changes.values())
            for name, changes in self._attached.items()
        }

    @property
    def side_by_side_bytes(self) -> int:
        """Bytes of the copies that lie side by side."""
        stacks = [stack for stack in self._stacks.values() if stack is not None]
        return sum(stack.a.nbytes + stack.b.nbytes for stack in stacks)

    def attach(self, name: str, folder: Path) -> None:
        """Load a peft adapter folder, for the sequences that will name it.

        Raises: DeviceError when it cannot be read or is for another model; nothing has changed.
        """
        if name in self._attached:
            raise DeviceError(f"an adapter {name} is attached already")
        adapter = read_adapter(folder)
        self._check(name, adapter)
        self._attached[name] = self._changes(adapter)
        self._unstack()
        self._hook()

    def detach(self, name: str) -> None:
        """Forget an adapter. Raises: DeviceError when it is not attached."""
        if name not in self._attached:
            raise DeviceError(f"no adapter {name} is attached")
        del self._attached[name]
        self._unstack()
        self._hook()

    def use(self, spans: Sequence[Span], *, tokens: int) -> None:
        """Change these rows of the next step, which has `tokens` rows in all."""
        self._spans, self._tokens = spans, tokens
        self._own.clear()
        used = frozenset(span.adapter for span in spans)
        self._is_side_by_side = len(used) > 1 and tokens <= _FEW_ROWS
        if self._is_side_by_side:
            fits = used <= self._stacked and len(self._stacked) <= (1 + _SPARE) * len(used)
            if not fits:
                self._unstack()
                self._stacked = used

    def add_to(self, result: torch.Tensor, rows: torch.Tensor, path: str) -> None:
        """Add to a layer's result what the adapters change, `(rows, outputs)`, in place."""
        if self._is_side_by_side:
            self._add_at_once(result, rows, path)
            return
        for span in self._spans:
            change = self._attached[span.adapter].get(path)
            if change is None:
                continue
            # The output layer sees only the rows that are asked for.
            part = span.rows if len(rows) == self._tokens else span.asked
            result[part] += rows[part] @ change.a @ change.b

    def _add_at_once(self, result: torch.Tensor, rows: torch.Tensor, path: str) -> None:
        if path not in self._stacks:
            self._stacks[path] = self._stack(path)
        stack = self._stacks[path]
        if stack is not None:
            own = self._own_of(stack.columns, rows)
            result.addmm_((rows @ stack.a).mul_(own), stack.b)

    def _stack(self, path: str) -> _Stack | None:
        """The changes to a layer side by side; None where no adapter changes it."""
        import torch

        found = {
            name: change
            for name in sorted(self._stacked)
            if (change := self._attached[name].get(path)) is not None
        }
        if not found:
            return None
        columns: list[tuple[str, int, int]] = []
        start = 0
        for name, change in found.items():
            columns.append((name, start, start := start + change.a.shape[1]))
        return _Stack(
            torch.cat([change.a for change in found.values()], dim=1),
            torch.cat([change.b for change in found.values()]),
            tuple(columns),
        )

    def _own_of(self, columns: _Columns, rows: torch.Tensor) -> torch.Tensor:
        """One where a row's adapter has its columns, else zero, `(rows, ranks)`."""
        # The output layer sees only the rows that are asked for.
        is_asked = len(rows) != self._tokens
        known = self._own.get((columns, is_asked))
        if known is None:
            known = rows.new_zeros((len(rows), columns[-1][2]))
            places = {name: slice(start, stop) for name, start, stop in columns}
            for span in self._spans:
                if span.adapter in places:
                    known[span.asked if is_asked else span.rows, places[span.adapter]] = 1
            self._own[columns, is_asked] = known
        return known

    def _unstack(self) -> None:
        self._stacked = frozenset()
        self._stacks.clear()

    def _changes(self, adapter: LoraAdapter) -> dict[str, _Change]:
        scale = adapter.effective_alpha / adapter.rank
        changes: dict[str, _Change] = {}
        for path, (a, b) in adapter.pairs.items():
            weight = self._model.get_submodule(path).weight
            changes[path] = _Change(
                a.t().to(weight).contiguous(), (b.t().float() * scale).to(weight).contiguous()
            )
        return changes

    def _hook(self) -> None:
        """Have the modules that some adapter changes, and no others, call `add_to`."""
        if not self._hooks:
            return
        wanted = {path for changes in self._attached.values() for path in changes}
        for path in self._handles.keys() - wanted:
            self._handles.pop(path).remove()
        for path in wanted - self._handles.keys():
            module = self._model.get_submodule(path)
            self._handles[path] = module.register_forward_hook(self._hook_of(path))

    def _hook_of(self, path: str) -> Any:
        def changed(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            self.add_to(output.flatten(0, -2), inputs[0].flatten(0, -2), path)

        return changed

    def _check(self, name: str, adapter: LoraAdapter) -> None:
        """Raises: DeviceError unless each of the adapter's layers is in the model."""
        for path, (a, b) in adapter.pairs.items():
            weight = self._weight(path)
            if weight is None or tuple(weight.shape) != (b.shape[0], a.shape[1]):
                has = "no such layer" if weight is None else f"{tuple(weight.shape)} weights there"
                raise DeviceError(
                    f"the adapter {name} is for another model: it changes {path} with "
                    f"{(b.shape[0], a.shape[1])} weights, and this model has {has}"
                )

    def _weight(self, path: str) -> torch.Tensor | None:
        """The weights of a linear layer of the base model."""
        import torch

        try:
            layer = self._model.get_submodule(path)
        except AttributeError:
            return None
        return layer.weight if isinstance(layer, torch.nn.Linear) else None
