"""Mailboxes and topics.

A mailbox is bounded: when it is full the sender waits or is refused, as it chose. Topics deliver
into the subscribers' mailboxes; one that is full loses the message and the publisher is told how
many did. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from llmos.kernel.process import Process, ProcessTable
from llmos.kernel.waits import Waits
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Mail, Sent


@dataclass(slots=True, eq=False)
class Receiver:
    """A `Receive` that waits for a message it can take."""

    future: asyncio.Future[Mail]
    sender: int | None
    topic: str | None

    def takes(self, mail: Mail) -> bool:
        return (self.sender is None or self.sender == mail.sender) and (
            self.topic is None or self.topic == mail.topic
        )


class Mailboxes:
    def __init__(self, table: ProcessTable, waits: Waits, *, capacity: int) -> None:
        self._table = table
        self._waits = waits
        self._capacity = capacity
        self._topics: dict[str, dict[int, Process]] = {}
        # receivers that wait for one sender only, by that sender
        self._awaiting: dict[int, set[Receiver]] = {}

    async def send(self, process: Process, call: calls.Send) -> Sent:
        """Deliver a message; waits for room or refuses with `mailbox_full`."""
        receiver = self._living(call.to)
        mail = Mail(sender=process.pid, body=call.body)
        while not self._deliver(receiver, mail):
            if call.on_full == "refuse":
                raise SyscallError(
                    "mailbox_full",
                    f"the mailbox of process {receiver.pid} holds {self._capacity} messages; "
                    "retry later or send with on_full='wait'",
                    is_retryable=True,
                    to=receiver.pid,
                    limit=self._capacity,
                )
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            senders = receiver.senders = receiver.senders or deque()
            senders.append(future)
            try:
                await self._waits.block(
                    process,
                    future,
                    state="waiting_ipc",
                    on=f"room in the mailbox of {receiver.pid}",
                    target=receiver.pid,
                )
            finally:
                if future in senders:  # else it was let in
                    senders.remove(future)
            receiver = self._living(call.to)
        return Sent(receivers=1)

    async def receive(self, process: Process, call: calls.Receive) -> Mail:
        """Take the oldest message that fits, or wait for one."""
        receiver = Receiver(asyncio.get_running_loop().create_future(), call.sender, call.topic)
        if process.mailbox:
            for index, mail in enumerate(process.mailbox):
                if receiver.takes(mail):
                    del process.mailbox[index]
                    self._admit_sender(process)
                    return mail
        if call.sender is not None:
            self._living(call.sender)
        if process.receivers is None:
            process.receivers = []
        process.receivers.append(receiver)
        if call.sender is not None:
            self._awaiting.setdefault(call.sender, set()).add(receiver)
        # A mailbox full of other mail has no room for the message that is waited for here, and a
        # sender that was let in may have ended before it came: all senders look again.
        self._admit_senders(process)
        try:
            return await self._waits.block(
                process,
                receiver.future,
                state="waiting_ipc",
                on="mail" if call.sender is None else f"mail from {call.sender}",
                target=call.sender,
                timeout_s=call.timeout_s,
            )
        except BaseException:
            self._give_back(process, receiver)
            raise
        finally:
            process.receivers.remove(receiver)
            if call.sender is not None and call.sender in self._awaiting:
                self._awaiting[call.sender].discard(receiver)
                if not self._awaiting[call.sender]:
                    del self._awaiting[call.sender]

    def publish(self, process: Process, call: calls.Publish) -> Sent:
        """Deliver to all subscribers that have room."""
        mail = Mail(sender=process.pid, body=call.body, topic=call.topic)
        subscribers = list(self._topics.get(call.topic, {}).values())
        delivered = sum(self._deliver(subscriber, mail) for subscriber in subscribers)
        return Sent(receivers=delivered, dropped=len(subscribers) - delivered)

    def subscribe(self, process: Process, call: calls.Subscribe) -> None:
        """Start or stop a subscription."""
        if process.topics is None:
            process.topics = set()
        if call.is_on:
            process.topics.add(call.topic)
            self._topics.setdefault(call.topic, {})[process.pid] = process
        else:
            process.topics.discard(call.topic)
            self._unsubscribe(call.topic, process)

    def close(self, process: Process) -> None:
        """The process has ended: drop its mail, and fail those who wait for it."""
        for topic in process.topics or ():
            self._unsubscribe(topic, process)
        process.mailbox = None
        for future in process.senders or ():
            if not future.done():
                future.set_result(None)  # they look again and find the receiver gone
        process.senders = None
        for receiver in self._awaiting.pop(process.pid, ()):
            if not receiver.future.done():
                receiver.future.set_exception(_gone(process.pid))

    def _hand_over(self, receiver: Process, mail: Mail) -> bool:
        for waiting in receiver.receivers or ():
            if not waiting.future.done() and waiting.takes(mail):
                waiting.future.set_result(mail)
                return True
        return False

    def _deliver(self, receiver: Process, mail: Mail) -> bool:
        if self._hand_over(receiver, mail):
            return True
        if receiver.mailbox is None:
            receiver.mailbox = deque()
        if len(receiver.mailbox) >= self._capacity:
            return False
        receiver.mailbox.append(mail)
        return True

    def _give_back(self, process: Process, receiver: Receiver) -> None:
        """Keep a message that had been delivered when its `Receive` was cancelled."""
        future = receiver.future
        is_taken = future.done() and not future.cancelled() and future.exception() is None
        if is_taken and not process.is_over and not self._hand_over(process, future.result()):
            if process.mailbox is None:
                process.mailbox = deque()
            process.mailbox.appendleft(future.result())

    def _admit_senders(self, process: Process) -> None:
        for future in process.senders or ():
            if not future.done():
                future.set_result(None)

    def _admit_sender(self, process: Process) -> None:
        while process.senders:
            future = process.senders.popleft()
            if not future.done():
                future.set_result(None)
                return

    def _living(self, pid: int) -> Process:
        process = self._table.get(pid)
        if process.is_over:
            raise _gone(pid)
        return process

    def _unsubscribe(self, topic: str, process: Process) -> None:
        subscribers = self._topics.get(topic)
        if subscribers is not None:
            subscribers.pop(process.pid, None)
            if not subscribers:
                del self._topics[topic]


def _gone(pid: int) -> SyscallError:
    return SyscallError(
        "not_found", f"process {pid} has ended and takes part in no IPC", what="process", name=pid
    )
