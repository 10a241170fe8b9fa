"""The buses that a test can run on, and a harness that also waits for messages at a server.

A test takes the `bus` fixture, or `job_harness`, which runs on it. It runs on the bus of one
process by default, on every bus with the marker ``every_bus``, and on the buses that the option
``--buses`` names.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager

from pipecat.bus import AsyncQueueBus, BusMessage, WorkerBus
from pipecat.bus.network.redis import RedisBus
from pipecat.bus.serializers import JSONMessageSerializer
from pipecat.workers.base_worker import BaseWorker
from redis.asyncio import Redis

from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus
from pipecat_jobs.testing import ChaosBus, Faults, JobHarness

#: The bus of a test without a marker.
DEFAULT = "queue"
#: The buses of a test that is marked with ``every_bus``.
EVERY = (DEFAULT, "routed", "redis", "pubsub")
#: The buses of one process, which any event loop can run.
LOCAL = {"queue": AsyncQueueBus, "routed": RoutedBus}
#: The buses that need a Redis server.
ON_SERVER = ("redis", "pubsub")


class BusHarness(JobHarness):
    """A harness that also waits for messages on their way to a server and back."""

    def __init__(self, bus: WorkerBus, *, check_watches: bool = True):
        super().__init__(bus, timeout=100.0, check_watches=check_watches)

    async def start(self, *workers: BaseWorker) -> None:
        await super().start(*workers)
        if isinstance(self.bus, PubSubBus):
            # Workers become active some messages after they are ready.
            await self.settle()

    async def settle(self) -> None:
        await super().settle()
        if not isinstance(self.bus, StreamsBus | PubSubBus):
            return
        before = None
        while before != self.bus.traffic:
            before = self.bus.traffic
            if not await self._while_it_runs(self.bus.catch_up()):
                return
            await super().settle()

    async def _while_it_runs(self, waiting: Awaitable[None]) -> bool:
        """Wait while the runner runs; a runner that has ended has stopped its bus."""
        waited = asyncio.ensure_future(waiting)
        running = {self._run_task} - {None}
        await asyncio.wait({waited, *running}, return_when=asyncio.FIRST_COMPLETED)
        if waited.done():
            return True
        waited.cancel()
        return False


class StreamsBus(RedisStreamsBus):
    """Our bus, with every message sent through the server."""

    def __init__(self, url: str, channel: str):
        # No process dies here, and a slow import must not make a process count as dead.
        super().__init__(
            url,
            channel=channel,
            through_server=True,
            lease=20.0,
            start_timeout=100.0,
        )
        self._own = 0

    @property
    def traffic(self) -> int:
        """How many messages have arrived."""
        return self.stats.received - self._own

    async def catch_up(self) -> None:
        """Wait until all messages that the server has now have been read."""
        if self._process is not None:
            # The mark that shows it counts as a message.
            self._own += 1
            await self._router.wait_until_caught_up()


class PubSubBus(RedisBus):
    """Pipecat's bus, which here can wait until all sent messages have come back."""

    def __init__(self, client: Redis, channel: str):
        self._serializer_with_marks = _Marks()
        super().__init__(redis=client, channel=channel, serializer=self._serializer_with_marks)
        self._begun = self._ended = 0
        self._all_sent = asyncio.Event()
        self._all_sent.set()

    async def publish(self, message: BusMessage) -> None:
        self._begun += 1
        self._all_sent.clear()
        try:
            await super().publish(message)
        finally:
            self._ended += 1
            if self._ended == self._begun:
                self._all_sent.set()

    @property
    def traffic(self) -> tuple[int, int]:
        """How many messages were sent, and how many arrived."""
        return self._begun, self._serializer_with_marks.received

    async def catch_up(self) -> None:
        """Wait until the server has every message, and all of them have been read."""
        await self._all_sent.wait()
        if self._pubsub is not None:
            self._serializer_with_marks.seen.clear()
            await self._redis.publish(self._channel, _Marks.MARK)
            await self._serializer_with_marks.seen.wait()


class _Marks(JSONMessageSerializer):
    """Pipecat's serializer, which also decodes marks; the bus ignores them."""

    MARK = b"null"

    def __init__(self) -> None:
        super().__init__()
        self.seen = asyncio.Event()
        self.received = 0

    def deserialize(self, data: bytes) -> BusMessage | None:
        if data == self.MARK:
            self.seen.set()
        else:
            self.received += 1
        return super().deserialize(data)


@asynccontextmanager
async def new_bus(name: str, server_url: str | None) -> AsyncIterator[WorkerBus]:
    """Make a bus, on its own channel if it uses the server."""
    channel = f"test-{uuid.uuid4().hex[:8]}"
    match name, server_url:
        case "queue", None:
            yield AsyncQueueBus()
        case "slow", None:
            yield ChaosBus(seed=3, faults=Faults(slow_publish=0.7, max_delay=0.002))
        case "routed", None:
            yield RoutedBus()
        case "redis", str(url):
            yield StreamsBus(url, channel)
        case "pubsub", str(url):
            async with Redis.from_url(url) as client:
                yield PubSubBus(client, channel)
        case _:
            raise ValueError(f"there is no bus '{name}'; take one of {', '.join(EVERY)}")


@contextmanager
def server_of_a_session() -> Iterator[EmbeddedRedis]:
    """Run a server that outlives the event loop of a test."""
    server = EmbeddedRedis(start_timeout=100.0)
    with asyncio.Runner() as runner:
        runner.run(server.start())
        yield server
        runner.run(server.stop())
