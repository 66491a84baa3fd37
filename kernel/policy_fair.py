"""Fair shares of a device among clients: the virtual token counter.

Every client has a counter of the service that it got, divided by its weight; the client with the
least goes first. A client that comes back is lifted to the least of those that wait, so that nobody
saves up service by staying away. A generation is charged what its client's generations usually cost
when it starts, and the difference as it shows: a client cannot take many sequences at once before
its counter tells. Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI'24
(virtual token counter, and its form with length prediction).

Bound: of two clients of equal weight that both have generations waiting all the time, neither gets
more than `2 * sequences * cost` of service over the other, `cost` being that of the dearest
generation, however long they go on and however many generations either sends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmos.kernel.policy import Arrivals, Entry, PolicyName, PolicySettings

FIRST_GUESS_COST = 512.0
# How far one generation moves the usual cost of its client's.
_LEARNING_RATE = 0.2
# Clients remembered; beyond that, those that are away and have had least are forgotten, which a
# lift to the least counter would have done to them in any case.
_MOST_CLIENTS = 10_000


@dataclass(slots=True)
class _Client:
    """What a client had; `service` and `promised` are cost divided by the weight."""

    service: float = 0.0
    promised: float = 0.0  # charged for what runs, and not yet served
    weight: float = 1.0
    waiting: int = 0  # generations that were never served
    live: int = 0
    usual_cost: float = FIRST_GUESS_COST

    @property
    def counter(self) -> float:
        return self.service + self.promised


@dataclass(slots=True)
class _Started:
    """A generation that was served: what it got, and what it was charged beyond that."""

    cost: float = 0.0
    prepaid: float = 0.0


class Fair:
    """The client with the least service for its weight first; within it, by program."""

    name: PolicyName = "fair"

    def __init__(self, settings: PolicySettings | None = None) -> None:
        self._settings = settings or PolicySettings()
        self._arrivals = Arrivals(self._settings.head_start_s)
        self._clients: dict[str, _Client] = {}
        self._started: dict[int, _Started] = {}
        self._last_started: str | None = None

    def counter(self, client: str) -> float:
        """What a client was charged for its weight, with what its running work is expected to."""
        known = self._clients.get(client)
        return known.counter if known else 0.0

    def enter(self, entry: Entry) -> None:
        self._arrivals.enter(entry)
        client = self._clients.get(entry.client)
        if client is None:
            self._forget_some()
            client = self._clients[entry.client] = _Client()
        client.weight = entry.weight
        if client.waiting == 0:
            client.service = max(client.service, self._least())
        client.waiting += 1
        client.live += 1

    def served(self, entry: Entry, *, prompt_tokens: int, new_tokens: int) -> None:
        settings, client = self._settings, self._clients[entry.client]
        started = self._started.get(entry.key)
        if started is None:
            started = self._started[entry.key] = _Started(prepaid=client.usual_cost)
            client.promised += started.prepaid / client.weight
            client.waiting -= 1
            self._last_started = entry.client
        cost = settings.prompt_cost * prompt_tokens + settings.new_cost * new_tokens
        started.cost += cost
        prepaid = min(started.prepaid, cost)
        started.prepaid -= prepaid
        client.promised -= prepaid / client.weight
        client.service += cost / client.weight

    def leave(self, entry: Entry) -> None:
        self._arrivals.leave(entry)
        client = self._clients[entry.client]
        client.live -= 1
        started = self._started.pop(entry.key, None)
        if started is None:
            client.waiting -= 1
            return
        client.promised -= started.prepaid / client.weight
        client.usual_cost += _LEARNING_RATE * (started.cost - client.usual_cost)

    def order(self, entries: Sequence[Entry]) -> list[Entry]:
        # Each generation that is yet to start counts for those of its client that follow it.
        ahead: Counter[str] = Counter()
        tags: dict[int, float] = {}
        ordered = sorted(entries, key=self._arrivals.place)
        for entry in ordered:
            client = self._clients.get(entry.client, _Client())
            tags[entry.key] = (
                client.counter + ahead[entry.client] * client.usual_cost / client.weight
            )
            ahead[entry.client] += entry.key not in self._started
        return sorted(ordered, key=lambda entry: tags[entry.key])

    def victim(self, waiting: Sequence[Entry], running: Sequence[Entry]) -> Entry | None:
        """One of a client that leads in service and would still hold its share without it.

        After the exchange the other one does not hold more than its share, so it cannot be turned
        back.
        """
        if not waiting:
            return None
        first = self.order(waiting)[0]
        held = Counter(entry.client for entry in running)
        share = (held[first.client] + 1) / first.weight
        least = self._service(first.client) + self._settings.takeover_cost
        candidates = [
            entry
            for entry in running
            if entry.client != first.client
            and (held[entry.client] - 1) / entry.weight >= share
            and self._service(entry.client) > least
        ]
        return max(
            candidates,
            key=lambda entry: (held[entry.client] / entry.weight, self._arrivals.place(entry)),
            default=None,
        )

    def _service(self, client: str) -> float:
        known = self._clients.get(client)
        return known.service if known else 0.0

    def _least(self) -> float:
        """The least service of the clients that wait; if none does, of who was served last.

        What is only promised does not count: it may not come to pass, a lift would.
        """
        waiting = [client.service for client in self._clients.values() if client.waiting]
        if waiting:
            return min(waiting)
        return self._service(self._last_started) if self._last_started is not None else 0.0

    def _forget_some(self) -> None:
        if len(self._clients) < _MOST_CLIENTS:
            return
        away = [name for name, client in self._clients.items() if not client.live]
        away.sort(key=lambda name: self._clients[name].service)
        for name in away[: len(away) // 2]:
            if name != self._last_started:
                del self._clients[name]
