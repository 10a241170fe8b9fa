"""A bus between processes that works with any engine."""

import asyncio
import contextlib
import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator

from loguru import logger
from pipecat.bus.messages import (
    BusJobRequestMessage,
    BusMessage,
    BusWorkerReadyMessage,
    BusWorkerRegistryMessage,
)
from pipecat.bus.subscriber import BusSubscriber
from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs._pipecat import forget_runner
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs.bus._distributed.engine import (
    BusStats,
    Call,
    Command,
    Engine,
    Entry,
    Lane,
    UnreachableError,
)
from pipecat_jobs.bus._distributed.offers import Offer, find_offers
from pipecat_jobs.bus._distributed.open_jobs import JobKey
from pipecat_jobs.bus._distributed.outbox import Outbox
from pipecat_jobs.bus._distributed.router import LossListener, Router
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.routed import RoutedBus
from pipecat_jobs.bus.wire import WireCodec


class DistributedBus(RoutedBus):
    """Connects the subscribers of this process to those of other processes, through an engine."""

    def __init__(
        self,
        codec: WireCodec,
        envelopes: Envelopes,
        *,
        lease: float,
        takeover: float,
        room: int,
        outbox_limit: int,
        through_server: bool,
        start_timeout: float,
    ):
        super().__init__()
        self._lease = lease
        self._room = room
        self._start_timeout = start_timeout
        self._outbox = Outbox(outbox_limit)
        self._stats = BusStats()
        self._router = Router(
            self,
            self._outbox,
            codec,
            envelopes,
            takeover=takeover,
            through_server=through_server,
            stats=self._stats,
        )
        self._process: Engine | None = None
        self._subscribers: dict[str, BusSubscriber] = {}
        self._offers: dict[str, list[Offer]] = {}
        #: Names of workers that have ended or have unsubscribed.
        self._ended: set[str] = set()
        #: The process of each runner of other processes.
        self._process_of: dict[str, str] = {}
        #: The last registry message of each runner of this process.
        self._announced: dict[str, BusWorkerRegistryMessage] = {}
        self._draining = False
        self._start_ended = asyncio.Event()
        self._start_failure: Exception | None = None
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._roster: asyncio.Task[None] | None = None

    @abstractmethod
    async def _open_engine(self) -> Engine:
        """Make the engine, and start the server if it is private to this bus."""

    @abstractmethod
    async def _close_server(self) -> None:
        """Stop the server if it is private to this bus."""

    @property
    def stats(self) -> BusStats:
        """The counters of this bus, which start at 0 when the bus is made."""
        return self._stats

    # -- from start to stop ------------------------------------------------------------------

    async def start(self) -> None:
        """Join the channel and start delivering. Pipecat's runner calls this.

        Raises:
            BusUnavailableError: If the server cannot be reached within ``start_timeout``.
            RedisModeError: If the server is a node of a cluster, or a Sentinel.
            RedisStartError: If a private server does not start.
        """
        if self._process is not None:
            return
        self._start_failure = None
        self._start_ended.clear()
        try:
            await self._join()
        except Exception as error:
            # Logged as well, because a bot may never await the task of its runner.
            logger.error(f"{self} has not started: {error}")
            self._start_failure = error
            raise
        except BaseException:
            self._start_failure = RuntimeError("it was cancelled while it started")
            raise
        finally:
            self._start_ended.set()
        for subscriber in list(self._subscribers.values()):
            self._watch(subscriber)
        await super().start()

    async def _join(self) -> None:
        self._draining = False
        self._process = process = await self._open_engine()
        try:
            await process.start(self._start_timeout)
        except BaseException:
            self._process = None
            await self._close_server()
            raise

    async def until_started(self) -> None:
        """Wait until the bus delivers.

        Raises:
            BusUnavailableError: If the server cannot be reached within ``start_timeout``.
            RedisModeError: If the server is a node of a cluster, or a Sentinel.
            RedisStartError: If a private server does not start.
        """
        await self._start_ended.wait()
        if self._start_failure is not None:
            raise self._start_failure

    def find_problem(self) -> str | None:
        """Return why nothing reaches other processes now.

        Returns:
            A sentence for an error, or None if the server takes messages.
        """
        trouble = self._process.trouble if self._process is not None else None
        return trouble or super().find_problem()

    async def stop(self) -> None:
        """Send the messages that wait, leave the channel, and stop delivering.

        A server that does not answer delays this by a few times ``lease``, not longer.
        """
        if self._process is not None:
            try:
                async with asyncio.timeout(2 * self._lease):
                    await self._stop_requests()
            except TimeoutError:
                logger.warning(f"{self}: the server is away while the bus stops")
        process, self._process = self._process, None
        self._start_ended.clear()
        await super().stop()
        for task in [*self._watches.values(), self._roster]:
            if task is not None:
                await self.cancel_task(task)
        self._watches, self._roster = {}, None
        if process is not None:
            await process.stop(timeout=2 * self._lease)
        await self._close_server()

    async def drain(self, timeout: float | None = None) -> None:
        """Take no more jobs from other processes, and wait until the jobs taken before have ended.

        Call it before the runner ends, for example on SIGTERM: :func:`drain_on_sigterm`. New
        requests go to other processes meanwhile. It does not wait for jobs between two workers of
        this process.

        Args:
            timeout: Seconds to wait. Jobs that are still open then are stopped in this process, and
                another process gets them as a further attempt. None waits until all have ended.

        Raises:
            InvalidJobTypeError: If the timeout is not a number.
            InvalidJobError: If the timeout is negative, NaN or too large.

        Example::

            from pipecat_jobs.bus.redis import RedisStreamsBus

            bus = RedisStreamsBus()
            runner = WorkerRunner(bus=bus, handle_sigint=False)
            await runner.add_workers(BaseWorker("researcher"))
            running = asyncio.create_task(runner.run())
            await bus.until_started()
            await bus.drain(timeout=30)
            await runner.end()
            await running
        """
        timeout = check_timeout("timeout", timeout)
        if self._process is None:
            return
        open_jobs = self._router.open_jobs
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._stop_requests()
                await open_jobs.wait_until_none_held()
        for held in open_jobs.list_held():
            self._router.revoke(held, f"process of worker '{held.key.worker}' is drained")
            self._router.reassign(held.ref, held.attempt, started=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self._lease):
                await self._outbox.wait_until_empty()

    async def _stop_requests(self) -> None:
        self._draining = True
        for offer in self._iterate_offers():
            self._call(Command.WITHDRAW, offer.name)
        # Requests that the server sent to this process before that are reassigned as they arrive.
        await self._router.wait_until_caught_up()
        await self._outbox.wait_until_empty()

    # -- subscribers -------------------------------------------------------------------------

    async def subscribe(self, subscriber: BusSubscriber) -> None:
        """Deliver to a subscriber, also from other processes, unless another one has its name.

        It gets messages from now on, and requests from other processes once it has started.

        Args:
            subscriber: The subscriber, whose ``job_affinity`` is read if it is a worker.

        Raises:
            InvalidJobError: If its ``job_affinity`` is wrong.
        """
        if subscriber.name not in self._subscribers:
            offers = self._offers[subscriber.name] = list(find_offers(subscriber, self._room))
            self._subscribers[subscriber.name] = subscriber
            self._ended -= {offer.name for offer in offers}
            self._host(offers)
            if self._process is not None:
                self._watch(subscriber)
        await super().subscribe(subscriber)

    async def unsubscribe(self, subscriber: BusSubscriber) -> None:
        """Stop delivering to a subscriber. Its open jobs from other processes are reassigned.

        Args:
            subscriber: The subscriber; nothing happens if it is not subscribed.
        """
        watch = self._watches.pop(subscriber.name, None)
        if watch is not None:
            await self.cancel_task(watch)
        if self._subscribers.pop(subscriber.name, None) is not None:
            self._stop_requests_for(subscriber.name, Command.UNHOST)
            del self._offers[subscriber.name]
        await super().unsubscribe(subscriber)

    def _host(self, offers: Iterable[Offer]) -> None:
        if self._process is not None:
            for offer in offers:
                current = self._make_current_offer(offer)
                self._call(Command.HOST, current.name, current.to_json(self._process.uid))

    def _make_current_offer(self, offer: Offer) -> Offer:
        return offer if self.takes_requests(offer.name) else Offer(offer.name)

    def _stop_requests_for(self, subscriber: str, command: Command) -> None:
        for offer in self._offers[subscriber]:
            self._ended.add(offer.name)
            self._call(command, offer.name)
            for held in self._router.open_jobs.list_held():
                if held.key.worker == offer.name:
                    self._router.open_jobs.release(held)
                    self._router.reassign(held.ref, held.attempt, started=True)

    def _watch(self, subscriber: BusSubscriber) -> None:
        if isinstance(subscriber, BaseWorker):
            name = subscriber.name

            async def watch() -> None:
                await subscriber.wait()
                # Only requests stop: on any bus, a worker that has ended still gets messages.
                self._stop_requests_for(name, Command.WITHDRAW)

            self._watches[name] = self.create_task(watch(), f"bus_watch_{name}")

    def _call(self, command: Command, *arguments: str) -> None:
        if self._process is not None:
            self._outbox.put(Call(Lane.CONTROL, command, lambda _, __: arguments))

    # -- messages ----------------------------------------------------------------------------

    async def publish(self, message: BusMessage) -> None:
        """Send a message to its target, or to every subscriber if it has no target.

        It returns at once; the message waits in this process until the server takes it.

        Args:
            message: The message to send.

        Raises:
            MessageTypeError: If it has a value that cannot be carried to another process.
            MessageTooLargeError: If it is encoded in more bytes than ``max_message_bytes``.
            BusFullError: If the server is away and ``outbox_limit`` messages wait for it.
        """
        logger.trace("{}: sending {}", self, message)
        if isinstance(message, BusWorkerRegistryMessage) and message.source in self._subscribers:
            before = self._announced.get(message.source)
            self._announced[message.source] = message
            if before is not None and before.workers == message.workers:
                # A runner repeats its workers to all when a new runner comes. `record_runner` has
                # already sent them to the new one.
                return
        if isinstance(message, BusWorkerReadyMessage):
            self._host(self._offers.get(message.source, ()))
        self._router.publish(message)

    def on_undelivered_request(
        self, subscriber: BusSubscriber, request: BusJobRequestMessage, error: BaseException
    ) -> None:
        """Reassign a job whose worker raised when it got the request.

        A job of a requester in this process gets an error response instead.

        Args:
            subscriber: The subscriber that raised.
            request: The request that it got.
            error: The exception that it raised.
        """
        names = [offer.name for offer in self._offers.get(subscriber.name, ())]
        if request.target not in names or not self._router.reassign_undelivered(request):
            super().on_undelivered_request(subscriber, request, error)

    def reply_for_worker(self, reply: BusMessage) -> None:
        """Send a message in the name of a worker that does not send it itself.

        Args:
            reply: The message, from the worker to its requester.
        """
        self._router.publish(reply)

    def find_subscriber(self, name: str) -> BusSubscriber | None:
        """Look up a subscriber of this process by its name."""
        return self._subscribers.get(name)

    def has_subscriber(self, name: str) -> bool:
        """Return whether a subscriber has a name, or is a proxy of a worker that has it."""
        return name in self._subscribers or any(
            offer.name == name for offer in self._iterate_offers()
        )

    def has_keys(self, worker: str, job_name: str) -> bool:
        """Return whether the jobs of a name have keys at a worker of this process."""
        return any(job_name in offer.keys for offer in self._offers.get(worker, ()))

    def takes_requests(self, worker: str) -> bool:
        """Return whether a worker has started, has not ended, and this process is not drained."""
        return not self._draining and worker not in self._ended and self._has_started(worker)

    def _has_started(self, worker: str) -> bool:
        # A worker cannot begin a job before its runner has set it up.
        return any(
            offer.name == worker and _is_started(self._subscribers[subscriber])
            for subscriber, offers in self._offers.items()
            for offer in offers
        )

    def _iterate_offers(self) -> Iterator[Offer]:
        return itertools.chain.from_iterable(self._offers.values())

    # -- what the engine calls --------------------------------------------------------------

    def list_offers(self) -> list[Offer]:
        """List the names of this process and the requests it takes."""
        return [self._make_current_offer(offer) for offer in self._iterate_offers()]

    def name_runners(self) -> str:
        """Return the names of the runners of this process, one per line."""
        return "\n".join(runner.name for runner in self._find_runners())

    def read(self, entry: Entry) -> None:
        """Take an entry from the inbox."""
        self._router.read(entry)

    def on_evicted(self) -> None:
        """Stop all jobs of this process, because the server has reassigned them."""
        self._router.on_evicted()

    def on_rejoined(self) -> None:
        """Announce this process's workers again after an eviction."""
        for message in self._announced.values():
            self._router.publish(message)
        if self._roster is None or self._roster.done():
            self._roster = self.create_task(self._compare_rosters(), "bus_roster")

    def audit(self) -> None:
        """Ask the server which jobs it has lost, and repeat which requests this process takes."""
        self._router.audit()
        self._host(self._iterate_offers())

    def record_runner(self, runner: str, process: str) -> None:
        """Record the process of a runner, and send the workers of this process to a new runner."""
        if self._process_of.get(runner) != process:
            self._process_of[runner] = process
            # The runners of this process would not do it if they know the name of the new runner
            # from an earlier process.
            for message in self._announced.values():
                self._router.route(message, runner)

    def remove_process(self, process: str, runners: Iterable[str]) -> None:
        """Remove the workers of a process that has left or is dead from the registry."""
        for gone in runners:
            if self._process_of.get(gone, process) != process:
                # A new process has a runner of the same name.
                continue
            logger.info(f"{self}: the process of runner '{gone}' is gone")
            self._process_of.pop(gone, None)
            for runner in self._find_runners():
                forget_runner(runner, gone)

    def report_lost(self, requester: LossListener, key: JobKey, reason: str) -> None:
        """Have a requester settle one of its jobs as lost."""
        self.create_task(
            requester.worker_lost(key.worker, reason=reason, job_id=key.job_id), "bus_lost"
        )

    async def _compare_rosters(self) -> None:
        # If the server lost its data, every living process has joined again by then.
        await asyncio.sleep(2 * self._lease)
        if self._process is None:
            return
        try:
            alive = await self._process.fetch_roster()
        except UnreachableError as error:
            logger.debug(f"{self}: cannot ask which runners are on the channel: {error}")
            return
        known = {name for names in alive for name in names.split("\n")}
        for runner in self._find_runners():
            entries = [runner.registry.get(name) for name in runner.registry.remote_workers]
            for gone in {entry.runner for entry in entries if entry} - known:
                self.remove_process(self._process_of.get(gone, ""), [gone])

    def _find_runners(self) -> list[WorkerRunner]:
        return [each for each in self._subscribers.values() if isinstance(each, WorkerRunner)]


def _is_started(subscriber: BusSubscriber) -> bool:
    return not isinstance(subscriber, BaseWorker) or subscriber.started_at is not None
