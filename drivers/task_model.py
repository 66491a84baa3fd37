"""A trained task model that answers: classes of texts, labels of words.

Owns the weights of one task folder, in float32, and computes in batches of like lengths. Texts over
the limit lose their end, as in training; a sentence over the limit is read in windows, so that
every word gets a label. Refuses to know who asks, and queues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers import encoder_net
from llmos.drivers.bio_labels import OUTSIDE, BioDecoder
from llmos.drivers.contract import Allocation, DeviceError
from llmos.drivers.encoder_text import EncoderText, ReadWords
from llmos.drivers.length_batches import BATCH_TOKENS, START_TOKENS, length_batches
from llmos.drivers.sentence_folder import read_sentence_folder
from llmos.drivers.task_folder import ADAPTER, ADAPTERS, BODY, TaskFolder, TaskHead, read_task
from llmos.drivers.torch_errors import torch_errors

if TYPE_CHECKING:
    import torch


class Route(NamedTuple):
    """Which head a text is for, and its probabilities in the order of that head's labels."""

    head: int
    probabilities: list[float]


class TaskModel:
    """An open task model. Calls are made one at a time; threads are torch's own.

    `base_folder` is the folder of the encoder that the model was trained from; a model with a whole
    body of its own needs none. Raises: DeviceError when a folder is missing, damaged or of an
    objective that has no labels.
    """

    def __init__(self, folder: Path, base_folder: Path | None, device: str = "cpu") -> None:
        self._task: TaskFolder = read_task(folder)
        if self._task.objective == "embed":
            raise DeviceError(f"{folder.name} makes vectors, not labels: open it as an embedder")
        self._device = device
        self._batch_tokens = BATCH_TOKENS[device.partition(":")[0]]
        encoder = _encoder_folder(self._task, base_folder)
        self._text = EncoderText(encoder, max_length_tokens=self._task.max_length_tokens)
        body = _load_body(self._task, encoder, device)
        self._network: Any = encoder_net.new_network(body, self._task.heads)
        self._router = encoder_net.load_heads(self._network, folder)
        self._network.eval().requires_grad_(False)

    @property
    def objective(self) -> str:
        return self._task.objective

    @property
    def heads(self) -> tuple[TaskHead, ...]:
        """One head unless tasks were mixed or learnt one after another."""
        return self._task.heads

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a single head, in the order of its outputs; of several, each label once."""
        return self._task.labels

    @property
    def max_length_tokens(self) -> int:
        """Longest text that is read whole, with the tokens that begin and end it."""
        return self._task.max_length_tokens

    @property
    def batch_tokens(self) -> int:
        """About the tokens of one forward pass."""
        return self._batch_tokens

    def count(self, text: str | Sequence[str]) -> int:
        """Tokens that are read of a text or of a sentence's words; any thread."""
        if isinstance(text, str):
            (read,) = self._text.texts([text])
            return len(read.tokens)
        return sum(len(window.tokens) for window in self._text.sentence(text))

    def classes(self, task: str | None = None) -> tuple[str, ...]:
        """The labels of the probabilities that `classify` gives; any thread."""
        if task is None and self._router is not None:
            return self.labels
        return self._task.heads[self._head(task, "classify")].labels

    def classify(self, texts: Sequence[str], *, task: str | None = None) -> list[list[float]]:
        """Probabilities of each text's classes.

        They are in the order of the labels of the task named, else of the only one. A model of
        several tasks with a router gives them in the order of `labels`, those of the head that the
        router chose and 0 for others. Raises: DeviceError for a task that it has not.
        """
        self._must_be_open()
        if task is None and self._router is not None:
            return [self._spread(route) for route in self.route(texts)]
        head = self._head(task, "classify")
        return self._classify(texts, head)

    def tag(
        self, sentences: Sequence[Sequence[str]], *, task: str | None = None
    ) -> list[list[tuple[str, float]]]:
        """For each word of each sentence its label and the label's probability.

        The labels of a sentence are the most probable ones that are legal BIO. Raises: DeviceError
        for a task that it has not.
        """
        import numpy as np

        self._must_be_open()
        head = self._head(task, "tag")
        labels = self._task.heads[head].labels
        decoder = BioDecoder(labels)
        found: list[list[tuple[str, float]]] = []
        for words, scores in zip(sentences, self.word_scores(sentences, head), strict=True):
            said = [(OUTSIDE, 1.0)] * len(words)  # of a word that the tokenizer reads as nothing
            known = [number for number, row in enumerate(scores) if row is not None]
            rows = np.array([scores[number] for number in known])
            for number, place, row in zip(known, decoder.decode(rows), rows, strict=True):
                said[number] = (labels[place], float(np.exp(row[place])))
            found.append(said)
        return found

    def word_scores(
        self, sentences: Sequence[Sequence[str]], head: int
    ) -> list[list[list[float] | None]]:
        """Log probabilities of each word's labels; None for a word of no tokens."""
        windows: list[tuple[int, ReadWords]] = [
            (number, window)
            for number, words in enumerate(sentences)
            for window in self._text.sentence(words)
        ]
        found: list[list[list[float] | None]] = [[None] * len(words) for words in sentences]
        for batch in self._batches([len(window.tokens) for _, window in windows]):
            chosen = [windows[place] for place in batch]
            rows = self._word_rows([window for _, window in chosen], head)
            for (number, window), scores in zip(chosen, rows, strict=True):
                for word, score in zip(window.words, scores, strict=True):
                    found[number][word] = score
        return found

    def route(self, texts: Sequence[str]) -> list[Route]:
        """Each text's head as the router chooses it, and what that head says.

        Raises: DeviceError when the model has no router.
        """
        if self._router is None:
            raise DeviceError(f"{self._task.folder.name} has no router")
        chosen: list[int] = [0] * len(texts)
        with self._plain_body():
            for places, vectors in self._vectors(texts):
                for place, head in zip(places, self._router.choose(vectors), strict=True):
                    chosen[place] = head
        found: list[Route] = [Route(0, [])] * len(texts)
        for head in sorted(set(chosen)):
            places = [place for place, one in enumerate(chosen) if one == head]
            rows = self._classify([texts[place] for place in places], head)
            for place, row in zip(places, rows, strict=True):
                found[place] = Route(head, row)
        return found

    def allocations(self) -> list[Allocation]:
        if self._network is None:
            return []
        return [Allocation("weights", sum(one.nbytes for one in self._network.parameters()))]

    def close(self) -> None:
        self._network = None

    # --- the passes -------------------------------------------------------------------------------

    def _classify(self, texts: Sequence[str], head: int) -> list[list[float]]:
        import torch

        self._use(head)
        found: list[list[float]] = [[] for _ in texts]
        for places, vectors in self._vectors(texts):
            with torch.inference_mode():
                chances = encoder_net.outputs(self._network, head, vectors).softmax(dim=1)
            self._must_be_finite(chances)
            for place, row in zip(places, chances.tolist(), strict=True):
                found[place] = row
        return found

    def _vectors(self, texts: Sequence[str]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Places of texts and their vectors `(places, width)`, batch by batch."""
        import torch

        read = self._text.texts(texts)
        for batch in self._batches([len(one.tokens) for one in read]):
            with torch_errors(self._device, "classify"), torch.inference_mode():
                ids, mask = self._padded([read[place].tokens for place in batch])
                states = encoder_net.token_states(self._network, ids, mask)
                vectors = encoder_net.text_vectors(states, mask)
            yield batch, vectors

    def _word_rows(self, windows: Sequence[ReadWords], head: int) -> list[list[list[float]]]:
        """Log probabilities `(words, labels)` of each window."""
        import torch

        self._use(head)
        with torch_errors(self._device, "tag"), torch.inference_mode():
            ids, mask = self._padded([window.tokens for window in windows])
            cases, _ = self._padded([window.cases for window in windows])
            states = encoder_net.token_states(self._network, ids, mask, head=head, cases=cases)
            scores = encoder_net.outputs(self._network, head, states).log_softmax(dim=2).cpu()
        self._must_be_finite(scores)
        return [scores[row, list(window.places)].tolist() for row, window in enumerate(windows)]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        start = START_TOKENS if self._device == "cpu" else None
        return length_batches(lengths, batch_tokens=self._batch_tokens, start_tokens=start)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder_net.padded(rows, padding=self._text.padding, device=self._device)

    def _use(self, head: int) -> None:
        """Take a head's own adapter, where each has one."""
        if self._task.layout == ADAPTERS:
            self._network["body"].set_adapter(str(head))

    def _plain_body(self) -> Any:
        """The body without adapters, as a context: what the router reads."""
        return self._network["body"].disable_adapter()

    def _spread(self, route: Route) -> list[float]:
        by_label = dict(zip(self._task.heads[route.head].labels, route.probabilities, strict=True))
        return [by_label.get(label, 0.0) for label in self.labels]

    def _head(self, task: str | None, objective: str) -> int:
        place = self._task.head(task)
        found = self._task.heads[place]
        if found.objective != objective:
            raise DeviceError(
                f"{self._task.folder.name} was trained to {found.objective}, not to {objective}"
            )
        return place

    def _must_be_open(self) -> None:
        if self._network is None:
            raise DeviceError(f"{self._task.folder.name} is closed", is_fatal=True)

    def _must_be_finite(self, values: torch.Tensor) -> None:
        if not values.isfinite().all():
            raise DeviceError(
                f"{self._task.folder.name} gives what is no number; its files are damaged"
            )


def _encoder_folder(task: TaskFolder, base_folder: Path | None) -> Path:
    if task.layout == BODY:
        return task.folder / BODY
    if base_folder is None:
        raise DeviceError(
            f"{task.folder.name} is an adapter on {task.base}, whose folder is not given"
        )
    return read_sentence_folder(base_folder).encoder


def _load_body(task: TaskFolder, encoder: Path, device: str) -> Any:
    body = encoder_net.load_body(encoder, device=device)
    if task.layout == ADAPTER:
        return encoder_net.load_adapter(body, task.folder / ADAPTER)
    if task.layout == ADAPTERS:
        for place in range(len(task.heads)):
            body = encoder_net.load_adapter(
                body, task.folder / ADAPTERS / str(place), name=str(place)
            )
    return body
