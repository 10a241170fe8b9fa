"""A bus whose workers may be in any process and on any machine."""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping

from loguru import logger
from pipecat.bus.adapters import TypeAdapter
from pipecat.bus.messages import (
    BusJobRequestMessage,
    BusMessage,
    BusWorkerReadyMessage,
    BusWorkerRegistryMessage,
)
from pipecat.bus.subscriber import BusSubscriber
from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.runner import WorkerRunner
from redis.asyncio import Redis

from pipecat_jobs._pipecat import forget_runner
from pipecat_jobs._protocol.checks import check_flag
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs.bus._distributed.local import HearsOfLoss
from pipecat_jobs.bus._distributed.offers import Offer, offers_of
from pipecat_jobs.bus._distributed.open_jobs import Parties
from pipecat_jobs.bus._distributed.router import Post
from pipecat_jobs.bus._distributed.stats import BusStats
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.redis.embedded import EmbeddedRedis
from pipecat_jobs.bus.redis.inbox import Entry
from pipecat_jobs.bus.redis.link import UnreachableError
from pipecat_jobs.bus.redis.options import (
    check_all_seconds,
    check_channel,
    check_counts,
    check_server,
)
from pipecat_jobs.bus.redis.outbox import Call, Lane, Outbox
from pipecat_jobs.bus.redis.process import Process
from pipecat_jobs.bus.redis.script import Channel, Limits
from pipecat_jobs.bus.routed import RoutedBus
from pipecat_jobs.bus.wire import WireCodec


class RedisStreamsBus(RoutedBus):
    """A bus for workers in several processes, on which no job is lost when one of them dies.

    Every process has its own bus on the same channel of a Redis server (6.2 or newer, or Valkey).
    What Pipecat does on a bus works across them: handoff, bridged frames, the registry, proxies. A
    job goes to one process that hosts the worker and has room for it. When that process dies,
    another takes the job up, or whoever asked is told that it is lost.

    A worker in this process is asked in this process. Everything else crosses the server.

    Args:
        url_or_client: Where the server is: ``redis://``, ``rediss://`` or ``unix://``, or a
            ``redis.asyncio.Redis`` of yours, of which only the settings are used. None starts a
            private server, which ends with this process: see :class:`EmbeddedRedis`.
        channel: Processes with the same channel see each other.
        lease: Seconds after which a process that gives no sign of life counts as dead. One that
            blocks its event loop for longer is taken for dead, and loses its jobs to others.
        takeover: Seconds that a request waits for a process that may take it, before it is lost.
        max_attempts: How many processes a job may be lost with before it is given up.
        room: How many jobs without a bound of their own (``max_concurrency``) one worker takes at
            once in this process.
        secret: Signs every message, so that who has access to the server but not this secret can
            send none. All processes of a channel need the same.
        types: Dataclasses, enums and pydantic models that messages may hold beyond Pipecat's own.
        adapters: Pipecat's adapters for other types.
        max_message_bytes: The most that one message may take, encoded.
        outbox_limit: How many messages wait in this process while the server is away.
        through_server: Send what is for workers of this process through the server as well.
        start_timeout: Seconds that the server may be out of reach at the start.

    Raises:
        InvalidJobTypeError: If an option has the wrong type.
        InvalidJobError: If a number is not above zero or is too large, a name or the secret is
            empty, or two types have the same name.

    Example::

        from pipecat_jobs.bus.redis import RedisStreamsBus

        bus = RedisStreamsBus(channel="session-42")
        runner = WorkerRunner(bus=bus, handle_sigint=False)
        await runner.add_workers(BaseWorker("researcher"))
        running = asyncio.create_task(runner.run())
        await runner.end()
        await running
    """

    def __init__(
        self,
        url_or_client: str | Redis | None = None,
        *,
        channel: str = "pipecat",
        lease: float = 1.5,
        takeover: float = 3.0,
        max_attempts: int = 3,
        room: int = 64,
        secret: str | bytes | None = None,
        types: Iterable[type] = (),
        adapters: Mapping[type, TypeAdapter] | None = None,
        max_message_bytes: int = 1_000_000,
        outbox_limit: int = 10_000,
        through_server: bool = False,
        start_timeout: float = 10.0,
    ):
        super().__init__()
        check_server(url_or_client)
        check_channel(channel)
        check_all_seconds(lease=lease, takeover=takeover, start_timeout=start_timeout)
        check_flag("through_server", through_server)
        check_counts(
            max_attempts=max_attempts,
            room=room,
            max_message_bytes=max_message_bytes,
            outbox_limit=outbox_limit,
        )
        self._server = EmbeddedRedis() if url_or_client is None else None
        self._client = Redis.from_url(url_or_client) if isinstance(url_or_client, str) else None
        if isinstance(url_or_client, Redis):
            self._client = url_or_client
        self._url = url_or_client if isinstance(url_or_client, str) else None
        self._lease = lease
        self._room = room
        self._start_timeout = start_timeout
        self._channel = Channel(channel, Limits(lease, takeover, max_attempts))
        self._outbox = Outbox(outbox_limit)
        self._stats = BusStats()
        self._post = Post(
            self,
            self._outbox,
            WireCodec(types, adapters=adapters, max_bytes=max_message_bytes),
            Envelopes(channel, secret=secret),
            takeover=takeover,
            through_server=through_server,
            stats=self._stats,
        )
        self._process: Process | None = None
        self._subscribers: dict[str, BusSubscriber] = {}
        self._offers: dict[str, list[Offer]] = {}
        self._ended: set[str] = set()
        self._known: dict[str, str] = {}
        self._announced: dict[str, BusWorkerRegistryMessage] = {}
        self._draining = False
        self._start_ended = asyncio.Event()
        self._start_failure: Exception | None = None
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._roster: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where the server is, for the buses of other processes.

        Raises:
            RuntimeError: If the bus has a client of yours, or its own server is not started.
        """
        if self._server is not None:
            return self._server.url
        if self._url is None:
            raise RuntimeError("the bus was given a client; ask that for the address")
        return self._url

    @property
    def stats(self) -> BusStats:
        """What this bus has counted since it was made."""
        return self._stats

    # -- from start to stop ------------------------------------------------------------------

    async def start(self) -> None:
        """Join the channel and begin to deliver.

        Raises:
            BusUnavailableError: If the server could not be reached.
            RedisModeError: If it is a node of a cluster, or a Sentinel.
            RedisStartError: If a private server could not be started.
        """
        if self._process is not None:
            return
        self._start_failure = None
        self._start_ended.clear()
        try:
            await self._join()
        except Exception as error:
            # The task that runs the runner may not be awaited.
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
        if self._server is not None:
            await self._server.start()
            self._client = Redis.from_url(self._server.url)
        assert self._client is not None
        self._draining = False
        self._process = process = Process(
            self._client,
            self._channel,
            self._outbox,
            self,
            lease=self._lease,
            timeout=max(2 * self._lease, 2.0),
            stats=self._stats,
        )
        try:
            await process.start(self._start_timeout)
        except BaseException:
            self._process = None
            if self._server is not None:
                await self._server.stop()
            raise

    async def until_started(self) -> None:
        """Wait until the bus delivers.

        Raises:
            BusUnavailableError: If the server could not be reached.
            RedisModeError: If it is a node of a cluster, or a Sentinel.
            RedisStartError: If a private server could not be started.
        """
        await self._start_ended.wait()
        if self._start_failure is not None:
            raise self._start_failure

    def problem(self) -> str | None:
        """Say why nothing can be sent now.

        Returns:
            The reason, or None when the server takes what is sent.
        """
        trouble = self._process.trouble if self._process is not None else None
        if trouble is not None:
            return f"the Redis server is away: {trouble}"
        return super().problem()

    async def stop(self) -> None:
        """Send what waits, leave the channel, and stop to deliver."""
        if self._process is not None:
            try:
                async with asyncio.timeout(2 * self._lease):
                    await self._take_no_more()
            except TimeoutError:
                logger.warning(f"{self}: the server is away at the end")
        process, self._process = self._process, None
        self._start_ended.clear()
        await super().stop()
        for task in [*self._watches.values(), self._roster]:
            if task is not None:
                await self.cancel_task(task)
        self._watches, self._roster = {}, None
        if process is not None:
            await process.stop(timeout=2 * self._lease)
        if self._server is not None:
            await self._server.stop()

    async def drain(self, timeout: float | None = None) -> None:
        """Take no more jobs, and wait until those that were taken have ended.

        Call it before the runner ends, on SIGTERM say: :func:`drain_on_sigterm`. Requests go to
        other processes meanwhile. What workers of this process ask one another is not waited for.

        Args:
            timeout: Seconds to wait; then what is still open is stopped here and given to another
                process as a further attempt. None waits for as long as it takes.

        Raises:
            InvalidJobTypeError: If the timeout is not a number.
            InvalidJobError: If the timeout is negative, NaN or too large.
        """
        timeout = check_timeout(timeout)
        if self._process is None:
            return
        ledger = self._post.ledger
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._take_no_more()
                await ledger.free()
        for held in ledger.all_held():
            self._post.revoke(held, f"process of worker '{held.parties.worker}' is drained")
            self._post.give_back(held.ref, held.attempt, started=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self._lease):
                await self._outbox.empty()

    async def _take_no_more(self) -> None:
        self._draining = True
        for name in [offer.name for offers in self._offers.values() for offer in offers]:
            self._call("withdraw", name)
        # What the server handed out before it heard of this is given back as it comes.
        await self._post.caught_up()
        await self._outbox.empty()

    # -- subscribers -------------------------------------------------------------------------

    async def subscribe(self, subscriber: BusSubscriber) -> None:
        """Deliver to a subscriber, unless one of its name is known, and offer it to others.

        Other processes can send it messages from now on, and requests once it has started.

        Args:
            subscriber: The subscriber.
        """
        if subscriber.name not in self._subscribers:
            offers = self._offers[subscriber.name] = list(offers_of(subscriber, self._room))
            self._subscribers[subscriber.name] = subscriber
            self._ended -= {offer.name for offer in offers}
            self._host(offers)
            if self._process is not None:
                self._watch(subscriber)
        await super().subscribe(subscriber)

    async def unsubscribe(self, subscriber: BusSubscriber) -> None:
        """Deliver no more to a subscriber.

        Args:
            subscriber: The subscriber.
        """
        watch = self._watches.pop(subscriber.name, None)
        if watch is not None:
            await self.cancel_task(watch)
        if self._subscribers.pop(subscriber.name, None) is not None:
            self._take_none_for(subscriber.name, "unhost")
            del self._offers[subscriber.name]
        await super().unsubscribe(subscriber)

    def _host(self, offers: Iterable[Offer]) -> None:
        if self._process is not None:
            for offer in offers:
                current = self._current(offer)
                self._call("host", current.name, current.as_text(self._process.uid))

    def _current(self, offer: Offer) -> Offer:
        return offer if self.takes_requests(offer.name) else Offer(offer.name)

    def _take_none_for(self, subscriber: str, command: str) -> None:
        for offer in self._offers[subscriber]:
            self._ended.add(offer.name)
            self._call(command, offer.name)
            for held in self._post.ledger.all_held():
                if held.parties.worker == offer.name:
                    self._post.ledger.let_go(held)
                    self._post.give_back(held.ref, held.attempt, started=True)

    def _watch(self, subscriber: BusSubscriber) -> None:
        if isinstance(subscriber, BaseWorker):
            name = subscriber.name

            async def watch() -> None:
                await subscriber.wait()
                # It goes on to get messages, as a worker that has ended does on any bus.
                self._take_none_for(name, "withdraw")

            self._watches[name] = self.create_task(watch(), f"bus_watch_{name}")

    def _call(self, command: str, *arguments: str) -> None:
        if self._process is not None:
            self._outbox.put(Call(Lane.CONTROL, command, lambda _, __: arguments))

    # -- messages ----------------------------------------------------------------------------

    async def publish(self, message: BusMessage) -> None:
        """Send a message: to its target, or to everybody when it has none.

        Args:
            message: The message.

        Raises:
            MessageTypeError: If it holds what cannot be carried to another process.
            MessageTooLargeError: If it takes more bytes than the bus carries.
            BusFullError: If the server is away and too many messages wait for it.
        """
        logger.trace("{}: sending {}", self, message)
        if isinstance(message, BusWorkerRegistryMessage) and message.source in self._subscribers:
            before = self._announced.get(message.source)
            self._announced[message.source] = message
            if before is not None and before.workers == message.workers:
                # A runner answers each newcomer for all to hear, and has been answered for already.
                return
        if isinstance(message, BusWorkerReadyMessage):
            self._host(self._offers.get(message.source, ()))
        self._post.publish(message)

    def on_undelivered_request(
        self, subscriber: BusSubscriber, request: BusJobRequestMessage, error: BaseException
    ) -> None:
        """Hand a request that its worker raised at to another process, or answer it.

        Args:
            subscriber: The subscriber that raised.
            request: The request.
            error: What it raised.
        """
        names = [offer.name for offer in self._offers.get(subscriber.name, ())]
        if request.target not in names or not self._post.give_back_undelivered(request):
            super().on_undelivered_request(subscriber, request, error)

    def subscriber(self, name: str) -> BusSubscriber | None:
        """Look a subscriber of this process up.

        Args:
            name: Its name.

        Returns:
            The subscriber, or None.
        """
        return self._subscribers.get(name)

    def has(self, name: str) -> bool:
        """Tell whether somebody in this process has a name, or stands for a worker that has it.

        Args:
            name: The name.

        Returns:
            Whether a message for it is delivered in this process.
        """
        return name in self._subscribers or self._offered(name)

    def takes_requests(self, worker: str) -> bool:
        """Tell whether requests from other processes are taken for a worker.

        Args:
            worker: Its name.

        Returns:
            False before it has started, once it has ended, or while this process is drained.
        """
        return not self._draining and worker not in self._ended and self._has_started(worker)

    def _has_started(self, worker: str) -> bool:
        # Until its runner has set it up, a worker cannot begin a job.
        return any(
            offer.name == worker and _is_started(self._subscribers[subscriber])
            for subscriber, offers in self._offers.items()
            for offer in offers
        )

    def _offered(self, name: str) -> bool:
        return any(each.name == name for offers in self._offers.values() for each in offers)

    # -- what the channel tells --------------------------------------------------------------

    def offers(self) -> list[Offer]:
        """List what this process offers to others.

        Returns:
            One offer for each name.
        """
        return [self._current(offer) for offers in self._offers.values() for offer in offers]

    def runner_name(self) -> str:
        """Name the runners of this process.

        Returns:
            Their names, one a line.
        """
        return "\n".join(runner.name for runner in self._runners())

    def read(self, entry: Entry) -> None:
        """Take a message that came through the server.

        Args:
            entry: The message.
        """
        self._post.read(entry)

    def expelled(self) -> None:
        """Give up what this process had, since it was declared dead."""
        self._post.expelled()

    def rejoined(self) -> None:
        """Make this process's workers known again, after it was declared dead."""
        for message in self._announced.values():
            self._post.publish(message)
        if self._roster is None or self._roster.done():
            self._roster = self.create_task(self._compare_rosters(), "redis_roster")

    def audit(self) -> None:
        """Find out what the server has forgotten of the jobs, and tell it again what is offered."""
        self._post.audit()
        for offers in self._offers.values():
            self._host(offers)

    def introduced(self, runner: str, process: str) -> None:
        """Take note of the process that a runner is in.

        Args:
            runner: The runner's name.
            process: The process's id, which is another when it has joined anew.
        """
        if self._known.get(runner) != process:
            self._known[runner] = process
            # Not left to our runners: they answer a runner that they do not know, and may think
            # that they know it. When they do answer, all the others have heard it.
            for message in self._announced.values():
                self._post.route(message, runner)

    def process_gone(self, process: str, runners: Iterable[str]) -> None:
        """Take the workers of a process that is gone out of the registry.

        Args:
            process: The process's id.
            runners: Names of its runners.
        """
        for gone in runners:
            if self._known.get(gone, process) != process:
                # It was started again, under its name, before it was missed.
                continue
            logger.info(f"{self}: the process of runner '{gone}' is gone")
            self._known.pop(gone, None)
            for runner in self._runners():
                forget_runner(runner, gone)

    def tell_lost(self, subscriber: HearsOfLoss, parties: Parties, reason: str) -> None:
        """Tell a requester that one of its jobs is lost.

        Args:
            subscriber: The requester.
            parties: The job.
            reason: What happened.
        """
        self.create_task(
            subscriber.worker_lost(parties.worker, reason=reason, job_id=parties.job_id),
            "redis_lost",
        )

    async def _compare_rosters(self) -> None:
        # By then whoever is alive has joined again, if the server has lost its data.
        await asyncio.sleep(2 * self._lease)
        if self._process is None:
            return
        try:
            alive = await self._process.roster()
        except UnreachableError as error:
            logger.debug(f"{self}: who is on the channel is not known: {error}")
            return
        known = {name for names in alive for name in names.split("\n")}
        for runner in self._runners():
            entries = [runner.registry.get(name) for name in runner.registry.remote_workers]
            for gone in {entry.runner for entry in entries if entry} - known:
                self.process_gone(self._known.get(gone, ""), [gone])

    def _runners(self) -> list[WorkerRunner]:
        return [each for each in self._subscribers.values() if isinstance(each, WorkerRunner)]


def _is_started(subscriber: BusSubscriber) -> bool:
    return not isinstance(subscriber, BaseWorker) or subscriber.started_at is not None
