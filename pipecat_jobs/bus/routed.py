"""A bus that wakes only those a message is for."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Protocol, runtime_checkable

from loguru import logger
from pipecat.bus.bus import WorkerBus
from pipecat.bus.messages import (
    BusAddWorkerMessage,
    BusCancelMessage,
    BusEndMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusMessage,
    BusWorkerReadyMessage,
    BusWorkerRegistryMessage,
)
from pipecat.bus.subscriber import BusSubscriber
from pipecat.pipeline.job_context import JobStatus
from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs._pipecat import has_event_handlers
from pipecat_jobs._protocol.messages import is_job_message
from pipecat_jobs._protocol.tasks import deferred, log_raised
from pipecat_jobs._protocol.text import describe
from pipecat_jobs.bus._mailbox import Mailbox
from pipecat_jobs.outcomes import ErrorDetails

#: What Pipecat's workers pass over even when it is sent to everybody: it is for runners, bridges
#: and event handlers. Every worker that starts has two of these sent.
_NOT_FOR_WORKERS = (
    BusAddWorkerMessage,
    BusCancelMessage,
    BusEndMessage,
    BusWorkerReadyMessage,
    BusWorkerRegistryMessage,
)

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


@runtime_checkable
class BusTaker(Protocol):
    """A subscriber that handles some messages without waiting, and so without a task.

    What it has handled does not reach its ``on_bus_message()``. It is asked only when no earlier
    message waits for it, and never from within its own handling of another.
    """

    def take_bus_message(self, message: BusMessage) -> bool:
        """Handle a message at once.

        Args:
            message: A message for this subscriber.

        Returns:
            Whether it has been handled; otherwise ``on_bus_message()`` gets it.
        """
        ...


class RoutedBus(WorkerBus):
    """A drop-in for Pipecat's in-process bus whose cost does not grow with the number of workers.

    Pipecat's :class:`~pipecat.bus.AsyncQueueBus` hands every message to every subscriber. Here a
    message with a target goes to the subscriber of that name, and to those that see everything: the
    runner (but for messages about jobs, which it passes over), bridge processors, WebSocket
    proxies, any worker with an ``on_bus_message()`` of its own, and whoever says
    ``sees_all_bus_messages = True``. A message without a target goes to all that may want it.

    A worker of this package handles a job message in the very call that sends it, since that never
    waits: handlers and hooks run in tasks of their own. That is what makes a job cheap.

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
        #: Those of them that also look at job messages for others.
        self._seeing_jobs: dict[str, Mailbox] = {}
        #: Workers that look at messages the way Pipecat's do.
        self._workers: dict[str, BaseWorker] = {}
        self._started = asyncio.Event()

    def create_task(
        self,
        coroutine: Coroutine[Any, Any, Any],
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        """Start a task of the bus; it begins after this call, also under an eager task factory.

        Args:
            coroutine: What the task runs.
            name: What to call it.
            context: The context it runs in.

        Returns:
            The task.
        """
        name = name or getattr(coroutine, "__name__", None)
        return super().create_task(deferred(coroutine), name, context)

    async def start(self) -> None:
        """Begin to deliver, those messages first that have come already."""
        self._started.set()
        for mailbox in list(self._mailboxes.values()):
            mailbox.start()
        await asyncio.sleep(0)

    async def stop(self) -> None:
        """Stop to deliver; what comes is kept until it starts again."""
        self._started.clear()
        for mailbox in list(self._mailboxes.values()):
            await self._cancel(mailbox)

    async def until_started(self) -> None:
        """Wait until the bus delivers."""
        await self._started.wait()

    def problem(self) -> str | None:
        """Say why the bus delivers nothing now.

        Returns:
            The reason, or None when it delivers.
        """
        return (
            None
            if self._started.is_set()
            else "the bus has not started: its runner does not run yet"
        )

    async def subscribe(self, subscriber: BusSubscriber) -> None:
        """Deliver to a subscriber, unless one of its name is known.

        Args:
            subscriber: The subscriber.
        """
        name = subscriber.name
        if (known := self._mailboxes.get(name)) is not None:
            if known.subscriber is not subscriber:
                logger.error(
                    f"{self}: '{name}' is subscribed already, and its messages go to the first of "
                    "that name alone; give each worker a name of its own"
                )
            return
        mailbox = self._mailboxes[name] = Mailbox(
            subscriber, self.create_task, self.on_delivery_failure
        )
        if not _has_own_delivery(subscriber):
            if isinstance(subscriber, BusTaker):
                mailbox.take = subscriber.take_bus_message
            if isinstance(subscriber, BaseWorker):
                self._workers[name] = subscriber
        if sees_all(subscriber):
            self._seeing_all[name] = mailbox
            if not _passes_over_jobs(subscriber):
                self._seeing_jobs[name] = mailbox
        if self._started.is_set():
            mailbox.start()

    async def unsubscribe(self, subscriber: BusSubscriber) -> None:
        """Deliver no more to a subscriber; what waits for it is dropped.

        Args:
            subscriber: The subscriber.
        """
        mailbox = self._mailboxes.pop(subscriber.name, None)
        if mailbox is not None:
            self._seeing_all.pop(subscriber.name, None)
            self._seeing_jobs.pop(subscriber.name, None)
            self._workers.pop(subscriber.name, None)
            await self._cancel(mailbox)

    async def publish(self, message: BusMessage) -> None:
        """Deliver a message.

        Args:
            message: The message.
        """
        self.on_message_received(message)

    def on_message_received(self, message: BusMessage) -> None:
        """Put a message into the mailboxes it is for.

        Args:
            message: The message.
        """
        if not message.target:
            passed_over = isinstance(message, _NOT_FOR_WORKERS)
            for name, mailbox in list(self._mailboxes.items()):
                if not (passed_over and self._is_plain(name)):
                    mailbox.put(message)
            return
        target = self._mailboxes.get(message.target)
        if target is not None:
            target.put(message)
        taps = self._seeing_jobs if is_job_message(message) else self._seeing_all
        for mailbox in list(taps.values()):
            if mailbox is not target:
                mailbox.put(message)

    def on_delivery_failure(
        self, subscriber: BusSubscriber, message: BusMessage, error: BaseException
    ) -> None:
        """Log that a subscriber raised at a message. It gets the next one all the same.

        Args:
            subscriber: The subscriber.
            message: The message that it was given.
            error: What it raised.
        """
        log_raised(f"subscriber '{subscriber.name}' raised at {describe(message)}; going on", error)
        if isinstance(message, BusJobRequestMessage):
            self.on_undelivered_request(subscriber, message, error)

    def on_undelivered_request(
        self, subscriber: BusSubscriber, request: BusJobRequestMessage, error: BaseException
    ) -> None:
        """Answer a request that its worker raised at and has not begun, in the worker's name.

        Args:
            subscriber: The subscriber that raised.
            request: The request.
            error: What it raised.
        """
        if not _has_begun(subscriber, request):
            self.on_message_received(
                BusJobResponseMessage(
                    source=subscriber.name,
                    target=request.source,
                    job_id=request.job_id,
                    status=JobStatus.ERROR,
                    response=ErrorDetails.from_exception(error).to_response(),
                )
            )

    def _is_plain(self, name: str) -> bool:
        """Whether a worker does with a message what Pipecat's workers do, and nobody listens."""
        worker = self._workers.get(name)
        return worker is not None and not has_event_handlers(worker, "on_bus_message")

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
    return not isinstance(subscriber, BaseWorker) or _has_own_delivery(subscriber)


def _has_begun(subscriber: BusSubscriber, request: BusJobRequestMessage) -> bool:
    """Whether a subscriber may still answer a request that it raised at, or was not asked."""
    if request.target != subscriber.name or not isinstance(subscriber, BaseWorker):
        return True
    return request.job_id in subscriber.active_jobs


def _has_own_delivery(subscriber: BusSubscriber) -> bool:
    """Whether it looks at messages in ways that only its author knows."""
    methods = ("on_bus_message", "accepts_bus_message")
    own = vars(subscriber)
    return any(method in own for method in methods) or any(
        method in vars(kind) and kind not in _PASS_OVER and "_is_jobs_mixin" not in vars(kind)
        for kind in type(subscriber).__mro__
        for method in methods
    )


def _passes_over_jobs(subscriber: BusSubscriber) -> bool:
    """Whether it is Pipecat's runner, which looks at everything but jobs."""
    return type(subscriber) is WorkerRunner and "on_bus_message" not in vars(subscriber)
