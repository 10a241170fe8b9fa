"""``RoutedBus``: a message wakes only its receivers."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pipecat.bus import AsyncQueueBus, BusBridgeProcessor
from pipecat.bus.bus import WorkerBus
from pipecat.bus.messages import (
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusMessage,
    BusWorkerRegistryMessage,
)
from pipecat.bus.subscriber import BusSubscriber
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.utils.asyncio.task_manager import TaskManager
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.proxy.websocket.client import WebSocketProxyClient
from pipecat.workers.runner import WorkerRunner
from support.listeners import Listener, data, system
from support.workers import Requester, Responder

from pipecat_jobs import BaseWorker, JobError, OutcomeStatus, PipelineWorker, job
from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.bus._mailbox import Mailbox
from pipecat_jobs.bus.routed import sees_all
from pipecat_jobs.testing import JobHarness


@pytest.fixture
async def bus() -> AsyncIterator[RoutedBus]:
    bus = RoutedBus()
    await bus.setup(TaskManager())
    await bus.start()
    yield bus
    await bus.stop()


async def listeners(bus: WorkerBus, *names: str) -> list[Listener]:
    made = [Listener(name) for name in names]
    for listener in made:
        await bus.subscribe(listener)
    return made


# Routing


async def test_a_targeted_message_goes_to_its_target_and_to_subscribers_that_see_everything(
    bus: RoutedBus,
):
    target, other = await listeners(bus, "a", "b")
    tap = Listener("tap")
    tap.sees_all_bus_messages = True
    await bus.subscribe(tap)
    message = data("a")

    await bus.send(message)

    assert await target.receive(1) == await tap.receive(1) == [message]
    await bus.send(last := data(None))
    assert await other.receive(1) == [last]
    assert (target.offered, other.offered) == (2, 1)


async def test_a_subscriber_that_sees_everything_gets_its_own_messages_once(bus: RoutedBus):
    tap = Listener("a")
    tap.sees_all_bus_messages = True
    await bus.subscribe(tap)
    await bus.send(first := data("a"))
    await bus.send(second := data("b"))
    assert await tap.receive(2) == [first, second]


async def test_a_message_without_a_target_reaches_every_subscriber(bus: RoutedBus):
    everybody = await listeners(bus, "a", "b", "c")
    message = data(None)

    await bus.send(message)

    assert [await listener.receive(1) for listener in everybody] == [[message]] * 3


async def test_a_message_for_an_unknown_target_is_dropped(bus: RoutedBus):
    (listener,) = await listeners(bus, "a")
    await bus.send(data("nobody"))
    await bus.send(last := data("a"))
    assert await listener.receive(1) == [last]
    assert listener.offered == 1


def pipeline() -> Pipeline:
    return Pipeline([IdentityFilter()])


class Own(BaseWorker):
    async def on_bus_message(self, message: BusMessage) -> None:
        await super().on_bus_message(message)


class Quiet(Own):
    sees_all_bus_messages = False


class Picky(BaseWorker):
    def accepts_bus_message(self, message: BusMessage) -> bool:
        return super().accepts_bus_message(message)


@pytest.mark.parametrize(
    ("make", "everything"),
    [
        pytest.param(lambda: BaseWorker("a"), False, id="our worker"),
        pytest.param(lambda: PipelineWorker(pipeline(), name="a"), False, id="our pipeline worker"),
        pytest.param(lambda: PipecatBaseWorker("a"), False, id="Pipecat's worker"),
        pytest.param(
            lambda: PipecatPipelineWorker(pipeline(), name="a"),
            False,
            id="Pipecat's pipeline worker",
        ),
        pytest.param(lambda: Quiet("a"), False, id="says that it does not"),
        pytest.param(lambda: Own("a"), True, id="own on_bus_message"),
        pytest.param(lambda: Picky("a"), True, id="own accepts_bus_message"),
        pytest.param(WorkerRunner, True, id="the runner"),
        pytest.param(
            lambda: BusBridgeProcessor(bus=RoutedBus(), worker_name="a"), True, id="a bridge"
        ),
        pytest.param(
            lambda: WebSocketProxyClient(
                "a", url="ws://127.0.0.1:1", remote_worker_name="b", local_worker_name="c"
            ),
            True,
            id="a proxy",
        ),
    ],
)
async def test_sees_all_tells_whether_a_subscriber_sees_everything(
    make: Callable[[], BusSubscriber], everything: bool
):
    assert sees_all(make()) is everything


async def test_a_worker_whose_method_was_replaced_sees_everything(monkeypatch: pytest.MonkeyPatch):
    async def on_bus_message(message: BusMessage) -> None: ...

    worker = BaseWorker("a")
    monkeypatch.setattr(worker, "on_bus_message", on_bus_message)
    assert sees_all(worker)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BaseWorker("a"),
        lambda: PipelineWorker(pipeline(), name="a"),
        lambda: PipecatBaseWorker("a"),
        lambda: PipecatPipelineWorker(pipeline(), name="a"),
    ],
)
async def test_subscribers_that_do_not_see_everything_miss_nothing(
    make: Callable[[], PipecatBaseWorker],
):
    """This fails when a release of Pipecat has workers that use messages for others."""
    received: list[BusMessage] = []
    harness = JobHarness(AsyncQueueBus())
    async with harness:
        worker = make()
        worker.add_event_handler("on_bus_message", lambda _, message: received.append(message))
        await harness.start(worker)
        for_others = [data("b"), system("b")]
        for message in for_others:
            await harness.bus.send(message)
        await harness.settle()
        assert received
        assert not [message for message in received if message in for_others]


# Order


async def test_messages_of_one_sender_arrive_in_order(bus: RoutedBus):
    (listener,) = await listeners(bus, "a")
    sent = [data("a", number=number) for number in range(100)]
    for message in sent:
        await bus.send(message)
    assert await listener.receive(100) == sent


async def test_a_system_message_overtakes_data_that_waits(bus: RoutedBus):
    (listener,) = await listeners(bus, "a")
    first, second, urgent = data("a"), data("a"), system("a")
    await bus.send(first)
    await bus.send(second)
    await bus.send(urgent)
    assert await listener.receive(3) == [urgent, first, second]


async def test_a_system_message_overtakes_data_behind_a_slow_handler(bus: RoutedBus):
    release = asyncio.Event()

    async def slow(message: BusMessage) -> None:
        if message is first:
            await release.wait()

    listener = Listener("a", slow)
    await bus.subscribe(listener)
    first, second, urgent = data("a"), data("a"), system("a")
    await bus.send(first)
    assert await listener.receive(1) == [first]
    await bus.send(second)
    await bus.send(urgent)
    assert await listener.receive(1) == [urgent]
    release.set()
    assert await listener.receive(1) == [second]


async def test_a_slow_system_handler_does_not_delay_data(bus: RoutedBus):
    async def slow(message: BusMessage) -> None:
        if message is urgent:
            await asyncio.Event().wait()

    listener = Listener("a", slow)
    await bus.subscribe(listener)
    urgent, next_urgent, message = system("a"), system("a"), data("a")
    for each in (urgent, next_urgent, message):
        await bus.send(each)
    assert await listener.receive(2) == [urgent, message]


async def test_messages_sent_before_the_start_are_delivered_after_it_system_messages_first():
    bus = RoutedBus()
    await bus.setup(TaskManager())
    (listener,) = await listeners(bus, "a")
    message, urgent = data("a"), system("a")
    await bus.send(message)
    await bus.send(urgent)
    assert listener.offered == 0

    await bus.start()

    assert await listener.receive(2) == [urgent, message]
    await bus.stop()
    await bus.send(later := data("a"))
    await bus.start()
    assert await listener.receive(1) == [later]
    await bus.stop()


# Failures of a subscriber


@pytest.mark.parametrize("kind", [data, system])
async def test_a_subscriber_that_raises_gets_its_next_message_and_affects_no_other(
    bus: RoutedBus, kind: Callable[[str | None], BusMessage], job_log: Any
):
    async def raise_error(message: BusMessage) -> None:
        raise ValueError("no")

    broken, sound = Listener("broken", raise_error), Listener("sound")
    for listener in (broken, sound):
        await bus.subscribe(listener)
    sent = [kind(None), kind(None)]
    for message in sent:
        await bus.send(message)

    assert await broken.receive(2) == await sound.receive(2) == sent
    await bus.send(data("broken"))
    await broken.receive(1)
    assert [record.level for record in job_log if "'broken' raised" in record.message] == [
        "ERROR"
    ] * 3


class Undeliverable(BaseWorker):
    """A worker whose delivery of a request raises, before or after its job has begun."""

    def __init__(self, *, begins: bool):
        super().__init__("undeliverable")
        self.begins = begins

    async def on_bus_message(self, message: BusMessage) -> None:
        asks = isinstance(message, BusJobRequestMessage)
        if self.begins or not asks:
            await super().on_bus_message(message)
        if asks:
            raise ValueError("not today")

    @job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return {"echo": True}


async def test_a_request_whose_delivery_raises_gets_a_response():
    async with JobHarness(bus=RoutedBus()) as harness:
        requester = Requester()
        await harness.start(requester, Undeliverable(begins=False))
        with pytest.raises(JobError, match="not today") as raised:
            await requester.ask("undeliverable", "echo")
    assert raised.value.outcomes["undeliverable"].status is OutcomeStatus.ERROR


async def test_a_job_that_has_begun_before_its_worker_raised_goes_on():
    async with JobHarness(bus=RoutedBus()) as harness:
        requester = Requester()
        await harness.start(requester, Undeliverable(begins=True))
        assert await requester.ask("undeliverable", "echo") == {"echo": True}


async def test_a_slow_subscriber_delays_only_itself(bus: RoutedBus):
    async def never(message: BusMessage) -> None:
        await asyncio.Event().wait()

    slow, quick = Listener("slow", never), Listener("quick")
    for listener in (slow, quick):
        await bus.subscribe(listener)
    for _ in range(3):
        await bus.send(data(None))
    assert len(await quick.receive(3)) == 3
    assert slow.offered == 1


# Joining and leaving


async def test_a_name_is_taken_once(bus: RoutedBus, job_log: Any):
    (first,) = await listeners(bus, "a")
    second = Listener("a")
    await bus.subscribe(second)
    await bus.send(data("a"))
    await first.receive(1)
    assert second.offered == 0
    await bus.subscribe(first)
    assert [r.level for r in job_log if "'a' is subscribed already" in r.message] == ["ERROR"]


async def test_a_subscriber_that_has_left_gets_nothing_and_may_return(bus: RoutedBus):
    (listener,) = await listeners(bus, "a")
    await bus.unsubscribe(listener)
    await bus.unsubscribe(listener)
    await bus.send(data("a"))
    await bus.subscribe(listener)
    await bus.send(later := data("a"))
    assert await listener.receive(1) == [later]
    assert listener.offered == 1


async def test_a_subscriber_that_saw_everything_leaves_nothing_behind(bus: RoutedBus):
    tap = Listener("tap")
    tap.sees_all_bus_messages = True
    await bus.subscribe(tap)
    await bus.send(data("a"))
    await tap.receive(1)
    await bus.unsubscribe(tap)
    reference = weakref.ref(tap)
    del tap
    # Python 3.12 releases the cancelled task one turn of the loop later.
    async with asyncio.timeout(100):
        while reference() is not None:
            await asyncio.sleep(0)
            gc.collect()


async def test_a_subscriber_may_leave_in_its_own_handler(bus: RoutedBus, job_log: Any):
    left = asyncio.Event()

    async def leave(message: BusMessage) -> None:
        await bus.unsubscribe(listener)
        left.set()

    listener = Listener("a", leave)
    await bus.subscribe(listener)
    await bus.send(data("a"))
    await bus.send(data("a"))
    await left.wait()
    await bus.send(data("a"))
    (other,) = await listeners(bus, "b")
    await bus.send(data("b"))
    await other.receive(1)
    assert listener.offered == 1
    assert not [record for record in job_log if record.level == "WARNING"]


async def test_thousands_of_subscribers_join_and_leave_while_messages_flow(bus: RoutedBus):
    (steady,) = await listeners(bus, "steady")
    before = asyncio.all_tasks()

    async def come_and_go(number: int) -> None:
        (listener,) = await listeners(bus, f"worker {number}")
        await bus.send(data(None, source=str(number)))
        await bus.unsubscribe(listener)

    await asyncio.gather(*(come_and_go(number) for number in range(2_000)))

    received = await steady.receive(2_000)
    assert {message.source for message in received} == {str(number) for number in range(2_000)}
    await bus.stop()
    assert not asyncio.all_tasks() - before


# Cost


async def test_subscribers_without_messages_have_no_tasks(bus: RoutedBus):
    before = len(asyncio.all_tasks())
    everybody = await listeners(bus, *(f"worker {number}" for number in range(500)))
    for _ in range(10):
        await bus.send(data("worker 7"))
    await everybody[7].receive(10)
    assert len(asyncio.all_tasks()) - before <= 2
    assert sum(listener.offered for listener in everybody) == 10


async def deliveries_of_a_job(idle: int, monkeypatch: pytest.MonkeyPatch) -> int:
    count = 0
    put = Mailbox.put

    def counting(self: Mailbox, message: BusMessage) -> None:
        nonlocal count
        count += isinstance(message, BusJobRequestMessage | BusJobResponseMessage)
        put(self, message)

    async with JobHarness(RoutedBus()) as harness:
        requester = Requester()
        await harness.start(
            requester, Responder(), *(BaseWorker(f"idle {number}") for number in range(idle))
        )
        with monkeypatch.context() as patched:
            patched.setattr(Mailbox, "put", counting)
            assert (await requester.ask("responder", "echo", payload={}))["from"] == "responder"
    return count


async def test_a_job_is_delivered_as_often_with_many_workers_as_with_few(
    monkeypatch: pytest.MonkeyPatch,
):
    few = await deliveries_of_a_job(0, monkeypatch)
    assert few == await deliveries_of_a_job(100, monkeypatch)
    # The request and the response, each to its target and to the harness's own tap.
    assert few == 4


async def test_a_broadcast_still_reaches_all_workers():
    async with JobHarness(RoutedBus()) as harness:
        workers = [BaseWorker(f"worker {number}") for number in range(10)]
        received: set[str] = set()
        for worker in workers:
            worker.add_event_handler(
                "on_bus_message",
                lambda worker, message: (
                    received.add(worker.name)
                    if isinstance(message, BusWorkerRegistryMessage) and message.source == "me"
                    else None
                ),
            )
        await harness.start(*workers)
        await harness.bus.send(BusWorkerRegistryMessage(source="me", runner="r", workers=[]))
        await harness.settle()
        assert received == {worker.name for worker in workers}
