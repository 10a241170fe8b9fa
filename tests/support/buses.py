"""The buses that the whole suite of jobs can run on: ``PIPECAT_JOBS_BUS`` names one.

What holds on a bus in one process and not on another is skipped there, with the reason.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from pipecat.bus import AsyncQueueBus, BusMessage, WorkerBus
from pipecat.bus.network.redis import RedisBus
from pipecat.bus.serializers import JSONMessageSerializer
from pipecat.workers.base_worker import BaseWorker
from redis.asyncio import Redis

from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus
from pipecat_jobs.testing import JobHarness, VirtualTimeLoop

Settle = Callable[[JobHarness], Awaitable[None]]
Start = Callable[..., Awaitable[None]]

# Each message is sent over a connection of its own when several are sent at once.
_AT_ONCE = "what tasks of one worker send at the same time arrives in any order"
_BEING_SENT = "the first call is replaced while its request is being sent, and never begins"
_NOT_JSON = "no such thing is carried"

#: By mode and test.
NOT_OVER: dict[str, dict[str, str]] = {
    "redis": {
        "test_gap_30_a_malformed_message_is_dropped_and_the_worker_goes_on": "the wire drops it",
        "test_of_a_job_that_ended_this_way": "counts the bus's own tasks, which begin when needed",
        "test_a_worker_that_has_stopped_stays_subscribed": "an answer nobody asked for is not sent",
        "test_a_job_cancelled_while_it_waits_for_its_turn_never_reaches_the_llm": (
            "it waits elsewhere"
        ),
        "test_a_job_cancelled_while_its_text_is_generated_leaves_none_of_it_to_the_next": (
            "the same"
        ),
        "test_a_debater_that_is_ended_finishes_its_text_and_cancels_what_waits": "the same",
        "test_a_response_that_is_not_json_is_written_as_the_values_it_holds": _NOT_JSON,
        "test_the_bot_goes_on_when_a_worker_answers_what_few_buses_carry": _NOT_JSON,
        "test_settle_raises_for_workers_that_never_rest": "about the harness",
        "test_a_replaced_call_of_a_flow_is_settled_without_a_comment": _BEING_SENT,
        "test_a_replaced_call_is_settled_without_a_comment_and_its_jobs_stop": _BEING_SENT,
    },
    "redis-pubsub": {
        "test_no_more_handlers_run_at_once_than_allowed_and_in_order": _AT_ONCE,
        "test_a_replaced_call_of_a_flow_is_settled_without_a_comment": _BEING_SENT,
        "test_a_replaced_call_is_settled_without_a_comment_and_its_jobs_stop": _BEING_SENT,
        "test_a_response_that_is_not_json_is_written_as_the_values_it_holds": _NOT_JSON,
        "test_the_bot_goes_on_when_a_worker_answers_what_few_buses_carry": _NOT_JSON,
        "test_settle_raises_for_workers_that_never_rest": "about the harness",
    },
}


def streams_bus() -> WorkerBus:
    """A server of its own for each bus, and every message through it."""
    if _virtual():
        return AsyncQueueBus()
    # Nobody dies here, and a process that loads a module in mid-test is not to count as dead.
    return RedisStreamsBus(through_server=True, lease=20.0)


def _virtual() -> bool:
    # No server keeps to a virtual clock.
    return isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


def settle_on_streams(settle: Settle) -> Settle:
    """Have a harness wait for what is on its way to the server and back."""

    async def settle_across(harness: JobHarness) -> None:
        await settle(harness)
        bus = harness.bus
        if isinstance(bus, RedisStreamsBus) and bus._process is not None:
            received = -1
            while received != bus.stats.received:
                received = bus.stats.received + 1
                if not await _while_it_runs(harness, bus._router.caught_up()):
                    return
                await settle(harness)

    return settle_across


async def _while_it_runs(harness: JobHarness, waiting: Awaitable[object]) -> bool:
    """Wait for as long as the runner lives; one that has ended has taken its bus with it."""
    waited = asyncio.ensure_future(waiting)
    running = {harness._run_task} - {None}
    await asyncio.wait({waited, *running}, return_when=asyncio.FIRST_COMPLETED)
    if not waited.done():
        waited.cancel()
        return False
    return True


class _PubSubBus(RedisBus):
    """Pipecat's own, which here can tell when all that was sent has come back."""

    def __init__(self, client: Redis, channel: str):
        self._marks = _Marks()
        super().__init__(redis=client, channel=channel, serializer=self._marks)
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
        """How many messages were sent, and how many came."""
        return self._begun, self._marks.received

    async def all_sent(self) -> None:
        """Wait until the server has acknowledged every message."""
        await self._all_sent.wait()

    async def caught_up(self) -> None:
        """Wait until what the server has by now has been read."""
        self._marks.seen.clear()
        await self._redis.publish(self._channel, _Marks.MARK)
        await self._marks.seen.wait()


class _Marks(JSONMessageSerializer):
    """Pipecat's serializer, with a message that is none: the bus passes over it."""

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


class PubSubBuses:
    """Makes Pipecat's own ``RedisBus``, each on a channel of its own of one server."""

    def __init__(self, url: str):
        self._url = url
        self._numbers = itertools.count()
        self._clients: list[Redis] = []

    def new(self) -> WorkerBus:
        if _virtual():
            return AsyncQueueBus()
        client = Redis.from_url(self._url)
        self._clients.append(client)
        return _PubSubBus(client, f"suite-{next(self._numbers)}")

    async def close(self) -> None:
        while self._clients:
            await self._clients.pop().aclose()


def settle_on_pubsub(settle: Settle) -> Settle:
    """Have a harness wait for what is on its way to the server and back."""

    async def settle_across(harness: JobHarness) -> None:
        await settle(harness)
        bus = harness.bus
        if not isinstance(bus, _PubSubBus):
            return
        before = None
        while before != bus.traffic:
            before = bus.traffic
            # A worker may outlive its runner, which takes the bus with it.
            await bus.all_sent()
            if bus._pubsub is not None:
                await _while_it_runs(harness, bus.caught_up())
            await settle(harness)

    return settle_across


def start_on_pubsub(start: Start) -> Start:
    """Have a harness wait until its workers are active, some messages after they are ready."""

    async def start_and_settle(harness: JobHarness, *workers: BaseWorker) -> None:
        await start(harness, *workers)
        await harness.settle()

    return start_and_settle


@contextmanager
def server_of_a_session() -> Iterator[str]:
    """Run a server that outlives the loop of a test."""
    server = EmbeddedRedis()
    with asyncio.Runner() as runner:
        runner.run(server.start())
        yield server.url
        runner.run(server.stop())
