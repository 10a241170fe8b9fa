"""A bus that wakes only those a message is for."""

import asyncio
from typing import Protocol, runtime_checkable

from loguru import logger
from pipecat.bus.bus import WorkerBus
from pipecat.bus.messages import BusMessage
from pipecat.bus.subscriber import BusSubscriber
from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs.bus.mailbox import Mailbox

#: Classes of Pipecat's whose own methods are known to pass over messages for others.
_PASS_OVER = (BaseWorker, PipelineWorker, BusSubscriber)


@runtime_checkable
class BusTap(Protocol):
    """A subscriber that says whether it wants to see messages for others.

    A worker class with an ``on_bus_message()`` of its own sees everything, since nobody else knows
    what it looks for. One that looks only at messages for itself says so::

        class Quiet(BaseWorker):
            sees_all_bus_messages = False

            async def on_bus_message(self, message):
                ...
    """

    sees_all_bus_messages: bool


class RoutedBus(WorkerBus):
    """A drop-in for Pipecat's in-process bus whose cost does not grow with the number of workers.

    Pipecat's :class:`~pipecat.bus.AsyncQueueBus` hands every message to every subscriber. Here a
    message with a target goes to the subscriber of that name, and to those that see everything: the
    runner, bridge processors, WebSocket proxies, any worker with an ``on_bus_message()`` of its
    own, and whoever says ``sees_all_bus_messages = True``. A message without a target goes to all.

    As on Pipecat's bus, messages of one sender reach a subscriber in order, system messages
    overtake the others, a subscriber that raises harms nobody and a slow one delays only itself. A
    slow handler of a system message delays the next system messages, and not the data behind it.

    Example::

        runner = WorkerRunner(bus=RoutedBus())
        await runner.add_workers(BaseWorker("host"), BaseWorker("researcher"))
    """

    def __init__(self) -> None:
        super().__init__()
        self._mailboxes: dict[str, Mailbox] = {}
        self._seeing_all: dict[str, Mailbox] = {}
        self._started = False

    async def start(self) -> None:
        """Begin to deliver, those messages first that have come already."""
        self._started = True
        for mailbox in list(self._mailboxes.values()):
            mailbox.start()
        await asyncio.sleep(0)

    async def stop(self) -> None:
        """Stop to deliver; what comes is kept until it starts again."""
        self._started = False
        for mailbox in list(self._mailboxes.values()):
            await self._cancel(mailbox)

    async def subscribe(self, subscriber: BusSubscriber) -> None:
        """Deliver to a subscriber, unless one of its name is known.

        Args:
            subscriber: The subscriber.
        """
        name = subscriber.name
        if name in self._mailboxes:
            return
        mailbox = self._mailboxes[name] = Mailbox(subscriber, self.create_task)
        if sees_all(subscriber):
            self._seeing_all[name] = mailbox
        if self._started:
            mailbox.start()

    async def unsubscribe(self, subscriber: BusSubscriber) -> None:
        """Deliver no more to a subscriber; what waits for it is dropped.

        Args:
            subscriber: The subscriber.
        """
        mailbox = self._mailboxes.pop(subscriber.name, None)
        if mailbox is not None:
            self._seeing_all.pop(subscriber.name, None)
            await self._cancel(mailbox)

    async def publish(self, message: BusMessage) -> None:
        """Deliver a message.

        Args:
            message: The message.
        """
        logger.trace("{}: sending {}", self, message)
        self.on_message_received(message)

    def on_message_received(self, message: BusMessage) -> None:
        """Put a message into the mailboxes it is for.

        Args:
            message: The message.
        """
        if not message.target:
            for mailbox in self._mailboxes.values():
                mailbox.put(message)
            return
        target = self._mailboxes.get(message.target)
        if target is not None:
            target.put(message)
        for mailbox in self._seeing_all.values():
            if mailbox is not target:
                mailbox.put(message)

    async def _cancel(self, mailbox: Mailbox) -> None:
        for task in mailbox.stop():
            await self.cancel_task(task)


def sees_all(subscriber: BusSubscriber) -> bool:
    """Tell whether a subscriber gets messages that are for others.

    Args:
        subscriber: The subscriber.

    Returns:
        What it says itself; otherwise False for a worker whose every ``on_bus_message()`` and
        ``accepts_bus_message()`` is known to pass over messages for others, True for all others.
    """
    if isinstance(subscriber, BusTap):
        return subscriber.sees_all_bus_messages
    methods = ("on_bus_message", "accepts_bus_message")
    own = vars(subscriber)
    return (
        not isinstance(subscriber, BaseWorker)
        or any(method in own for method in methods)
        or any(
            method in vars(kind) and kind not in _PASS_OVER and "_is_jobs_mixin" not in vars(kind)
            for kind in type(subscriber).__mro__
            for method in methods
        )
    )
