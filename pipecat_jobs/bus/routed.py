"""A bus that delivers a message only to the subscribers it is for."""

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
    BusJobUpdateRequestMessage,
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
from pipecat_jobs._protocol.delivery import CarriesNotes, IgnoresOthers
from pipecat_jobs._protocol.exchange import (
    SteerNote,
    describe_plain_worker,
    find_note,
    make_refusal,
)
from pipecat_jobs._protocol.messages import is_job_message
from pipecat_jobs._protocol.tasks import deferred, log_raised
from pipecat_jobs._protocol.text import describe
from pipecat_jobs.bus._mailbox import Mailbox
from pipecat_jobs.outcomes import ErrorDetails

#: Messages without a target that Pipecat's workers ignore: only runners, bridges and event handlers
#: use them. Each worker that starts sends two of them.
_NOT_FOR_WORKERS = (
    BusAddWorkerMessage,
    BusCancelMessage,
    BusEndMessage,
    BusWorkerReadyMessage,
    BusWorkerRegistryMessage,
)

#: Pipecat's classes whose methods are known to ignore messages for other subscribers.
_PASS_OVER = (BaseWorker, PipelineWorker, BusSubscriber)


@runtime_checkable
class BusTap(Protocol):
    """A subscriber that declares whether it gets the messages for other subscribers.

    A worker class with its own ``on_bus_message()`` gets every message, because the bus cannot know
    which messages it needs. A class that needs only the messages for itself declares that.

    Example::

        from pipecat_jobs.bus import BusTap

        class Quiet(BaseWorker):
            sees_all_bus_messages = False

            async def on_bus_message(self, message):
                await super().on_bus_message(message)

        assert isinstance(Quiet("quiet"), BusTap)
    """

    sees_all_bus_messages: bool
    """Whether the subscriber gets every message, or only the messages for itself."""


@runtime_checkable
class BusTaker(Protocol):
    """A subscriber that handles some messages in the call that sends them, without a task.

    The bus calls ``take_bus_message()`` only when no earlier message waits for the subscriber, and
    never while the subscriber handles another message.

    Example::

        from pipecat_jobs.bus.routed import BusTaker

        class Counter(BaseWorker):
            count = 0

            def take_bus_message(self, message):
                self.count += 1
                return True

        assert isinstance(Counter("counter"), BusTaker)
    """

    def take_bus_message(self, message: BusMessage) -> bool:
        """Handle a message without waiting.

        Args:
            message: A message for this subscriber.

        Returns:
            True if the message was handled. After False, ``on_bus_message()`` gets it.
        """
        ...


class RoutedBus(WorkerBus, CarriesNotes):
    """A drop-in for Pipecat's in-process bus whose cost does not grow with the number of workers.

    Pipecat's :class:`~pipecat.bus.AsyncQueueBus` delivers every message to every subscriber. This
    bus delivers a message with a target to the subscriber of that name, and to the subscribers that
    get every message: the runner (except messages about jobs, which it ignores), bridge processors,
    WebSocket proxies, workers with their own ``on_bus_message()``, and subscribers with
    ``sees_all_bus_messages = True``. A message without a target goes to every subscriber that may
    need it.

    A worker of this package handles a job message in the call that sends it. That call never waits,
    because handlers and hooks run in their own tasks.

    As on Pipecat's bus, messages of one sender reach a subscriber in order, system messages
    overtake the others, a subscriber that raises does not affect other subscribers, and a slow
    subscriber delays only itself. A slow handler of a system message delays the next system
    messages, but not the other messages behind it.

    Example::

        runner = WorkerRunner(bus=RoutedBus())
        await runner.add_workers(BaseWorker("host"), BaseWorker("researcher"))
    """

    def __init__(self) -> None:
        super().__init__()
        self._mailboxes: dict[str, Mailbox] = {}
        self._seeing_all: dict[str, Mailbox] = {}
        #: The subset that also gets job messages for others.
        self._seeing_jobs: dict[str, Mailbox] = {}
        #: Workers that handle messages as Pipecat's do.
        self._workers: dict[str, BaseWorker] = {}
        self._started = asyncio.Event()

    def create_task(
        self,
        coroutine: Coroutine[Any, Any, Any],
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        """Start a task that begins after this call, also with an eager task factory.

        Args:
            coroutine: The coroutine to run.
            name: The name of the task; None takes the name of the coroutine.
            context: The context to run it in; None takes a copy of the current context.

        Returns:
            The new task.
        """
        name = name or getattr(coroutine, "__name__", None)
        return super().create_task(deferred(coroutine), name, context)

    async def start(self) -> None:
        """Start delivering, beginning with the messages that wait."""
        self._started.set()
        for mailbox in list(self._mailboxes.values()):
            mailbox.start()
        await asyncio.sleep(0)

    async def stop(self) -> None:
        """Stop delivering. Messages are kept until the bus is started again."""
        self._started.clear()
        for mailbox in list(self._mailboxes.values()):
            await self._cancel(mailbox)

    async def until_started(self) -> None:
        """Wait until the bus delivers."""
        await self._started.wait()

    def find_problem(self) -> str | None:
        """Return why the bus delivers nothing now.

        Returns:
            A sentence for an error, or None if the bus delivers.

        Example::

            assert "has not started" in RoutedBus().find_problem()
        """
        return (
            None
            if self._started.is_set()
            else "the bus has not started: its runner does not run yet"
        )

    async def subscribe(self, subscriber: BusSubscriber) -> None:
        """Deliver to a subscriber, or log an error if another subscriber has its name.

        Args:
            subscriber: The subscriber, which gets the messages from now on.
        """
        name = subscriber.name
        if (known := self._mailboxes.get(name)) is not None:
            if known.subscriber is not subscriber:
                logger.error(
                    f"{self}: '{name}' is subscribed already, and only the first subscriber of "
                    "that name gets its messages; give each worker a name of its own"
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
        """Stop delivering to a subscriber, and drop the messages that wait for it.

        Args:
            subscriber: The subscriber; nothing happens if it is not subscribed.
        """
        mailbox = self._mailboxes.pop(subscriber.name, None)
        if mailbox is not None:
            self._seeing_all.pop(subscriber.name, None)
            self._seeing_jobs.pop(subscriber.name, None)
            self._workers.pop(subscriber.name, None)
            await self._cancel(mailbox)

    async def publish(self, message: BusMessage) -> None:
        """Deliver a message to the subscribers it is for.

        Args:
            message: The message, with a target or for all.
        """
        self.on_message_received(message)

    def on_message_received(self, message: BusMessage) -> None:
        """Put a message into the mailboxes of the subscribers it is for.

        Args:
            message: The message, with a target or for all.
        """
        if not message.target:
            passed_over = isinstance(message, _NOT_FOR_WORKERS)
            for name, mailbox in list(self._mailboxes.items()):
                if not (passed_over and self._is_plain(name)):
                    mailbox.put(message)
            return
        target = self._mailboxes.get(message.target)
        if target is not None:
            if type(message) is BusJobUpdateRequestMessage and self._refuse_note(target, message):
                return
            target.put(message)
        taps = self._seeing_jobs if is_job_message(message) else self._seeing_all
        if taps:
            for mailbox in list(taps.values()):
                if mailbox is not target:
                    mailbox.put(message)

    def on_delivery_failure(
        self, subscriber: BusSubscriber, message: BusMessage, error: BaseException
    ) -> None:
        """Log that a subscriber raised when it got a message. It still gets the next message.

        Args:
            subscriber: The subscriber that raised.
            message: The message that it got.
            error: The exception that it raised.
        """
        log_raised(f"subscriber '{subscriber.name}' raised at {describe(message)}; going on", error)
        if isinstance(message, BusJobRequestMessage):
            self.on_undelivered_request(subscriber, message, error)

    def on_undelivered_request(
        self, subscriber: BusSubscriber, request: BusJobRequestMessage, error: BaseException
    ) -> None:
        """Send an error response for a job that its worker has not begun, because it raised.

        Args:
            subscriber: The subscriber that raised.
            request: The request that it got.
            error: The exception that it raised, which the response names.
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

    def _refuse_note(self, target: Mailbox, message: BusJobUpdateRequestMessage) -> bool:
        """Reply in place of a worker that is not of this package to a note; True if it is one."""
        note, worker = find_note(message), target.subscriber
        if note is None or isinstance(worker, IgnoresOthers):
            return False
        if isinstance(note, SteerNote):
            reason = describe_plain_worker(worker.name, type(worker).__name__)
            self.reply_for_worker(make_refusal(message, note, reason))
        return True

    def reply_for_worker(self, reply: BusMessage) -> None:
        """Send a message in the name of a worker that does not send it itself.

        Args:
            reply: The message, from the worker to its requester.
        """
        self.on_message_received(reply)

    def _is_plain(self, name: str) -> bool:
        """Return whether a worker handles messages as Pipecat's workers do, and in no other way."""
        worker = self._workers.get(name)
        return worker is not None and not has_event_handlers(worker, "on_bus_message")

    async def _cancel(self, mailbox: Mailbox) -> None:
        for task in mailbox.stop():
            await self.cancel_task(task)


def sees_all(subscriber: BusSubscriber) -> bool:
    """Return whether a subscriber gets the messages for other subscribers.

    A subscriber can declare that: see :class:`BusTap`. Without a declaration it gets them, except a
    worker whose ``on_bus_message()`` and ``accepts_bus_message()`` are known to ignore them.

    Args:
        subscriber: The subscriber to ask about.

    Returns:
        True if it gets every message, False if it gets only the messages for itself.

    Example::

        from pipecat_jobs.bus.routed import sees_all

        assert not sees_all(BaseWorker("researcher"))
    """
    if isinstance(subscriber, BusTap):
        return subscriber.sees_all_bus_messages
    return not isinstance(subscriber, BaseWorker) or _has_own_delivery(subscriber)


def _has_begun(subscriber: BusSubscriber, request: BusJobRequestMessage) -> bool:
    """Return whether a subscriber may still send the response, or is not the request's target."""
    if request.target != subscriber.name or not isinstance(subscriber, BaseWorker):
        return True
    return request.job_id in subscriber.active_jobs


def _has_own_delivery(subscriber: BusSubscriber) -> bool:
    """Return whether it has its own ``on_bus_message()`` or ``accepts_bus_message()``."""
    methods = ("on_bus_message", "accepts_bus_message")
    own = vars(subscriber)
    return any(method in own for method in methods) or any(
        method in vars(kind) and kind not in _PASS_OVER and IgnoresOthers not in kind.__bases__
        for kind in type(subscriber).__mro__
        for method in methods
    )


def _passes_over_jobs(subscriber: BusSubscriber) -> bool:
    """Return whether it is Pipecat's runner, which ignores messages about jobs."""
    return type(subscriber) is WorkerRunner and "on_bus_message" not in vars(subscriber)
