"""``RoutedBus``: messages that a subscriber handles within the call that sends them."""

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from pipecat.bus.messages import (
    BusAddWorkerMessage,
    BusCancelMessage,
    BusEndMessage,
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobUpdateRequestMessage,
    BusMessage,
    BusTTSSpeakMessage,
    BusWorkerReadyMessage,
    BusWorkerRegistryMessage,
)
from pipecat.bus.subscriber import BusSubscriber
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.utils.asyncio.task_manager import TaskManager
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.runner import WorkerRunner
from support.workers import Requester, Responder

from pipecat_jobs import BaseWorker, job
from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.bus._mailbox import Mailbox
from pipecat_jobs.testing import JobHarness


class Taker(BusSubscriber):
    """Takes the messages that a test selects; keeps the taken and the delivered ones."""

    sees_all_bus_messages = False

    def __init__(self, name: str = "a"):
        self._name = name
        self.taken: list[BusMessage] = []
        self.handed: asyncio.Queue[BusMessage] = asyncio.Queue()
        self.takes: Callable[[BusMessage], bool] = lambda _: True
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def name(self) -> str:
        return self._name

    def take_bus_message(self, message: BusMessage) -> bool:
        if self.takes(message):
            self.taken.append(message)
            return True
        return False

    async def on_bus_message(self, message: BusMessage) -> None:
        self.handed.put_nowait(message)
        await self.gate.wait()


@pytest.fixture
async def bus(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RoutedBus]:
    # As if the class were Pipecat's: a message then needs no check for a custom method.
    monkeypatch.setattr(
        "pipecat_jobs.bus.routed._PASS_OVER", (BusSubscriber, PipecatBaseWorker, Taker)
    )
    bus = RoutedBus()
    await bus.setup(TaskManager())
    await bus.start()
    yield bus
    await bus.stop()


@pytest.fixture
async def taker(bus: RoutedBus) -> Taker:
    taker = Taker()
    await bus.subscribe(taker)
    return taker


def data(target: str | None = "a") -> BusMessage:
    return BusTTSSpeakMessage(source="sender", target=target, text="")


def system(target: str = "a") -> BusMessage:
    return BusJobCancelMessage(source="sender", target=target, job_id="1")


async def test_a_taken_message_is_handled_once_before_the_send_returns(
    bus: RoutedBus, taker: Taker
):
    sent = [data(), system(), data()]
    for number, message in enumerate(sent, 1):
        await bus.send(message)
        assert len(taker.taken) == number
    assert taker.taken == sent
    assert taker.handed.empty()


async def test_a_message_that_is_not_taken_is_delivered_later(bus: RoutedBus, taker: Taker):
    taker.takes = lambda message: message is not other
    await bus.send(other := data())
    assert await taker.handed.get() is other


async def test_no_message_overtakes_data_that_waits_or_is_being_handled(
    bus: RoutedBus, taker: Taker
):
    taker.takes = lambda message: message not in (first, second)
    first, second, third, urgent = data(), data(), data(), system()
    taker.gate.clear()
    await bus.send(first)
    assert await taker.handed.get() is first
    for message in (second, third, urgent):
        await bus.send(message)
    assert taker.taken == [urgent], "system messages overtake data"
    taker.gate.set()
    assert [await taker.handed.get() for _ in range(2)] == [second, third]
    await asyncio.sleep(0)
    await bus.send(last := data())
    assert taker.taken == [urgent, last]


async def test_no_message_overtakes_a_system_message(bus: RoutedBus, taker: Taker):
    taker.takes = lambda message: message is not urgent
    urgent, more, last = system(), data(), system()
    for message in (urgent, more, last):
        await bus.send(message)
    assert taker.taken == []
    assert [await taker.handed.get() for _ in range(3)] == [urgent, last, more]


async def test_a_message_sent_by_a_handler_waits_its_turn(bus: RoutedBus, taker: Taker):
    inner = data()

    def send_another(message: BusMessage) -> bool:
        if message is not inner:
            bus.on_message_received(inner)
            assert inner not in taker.taken
        return True

    taker.takes = send_another
    await bus.send(outer := data())
    assert taker.taken == [outer]
    assert await taker.handed.get() is inner


async def test_a_subscriber_that_raises_affects_neither_the_sender_nor_its_next_message(
    bus: RoutedBus, taker: Taker, job_log: Any
):
    def fail(message: BusMessage) -> bool:
        raise ValueError("no")

    taker.takes = fail
    await bus.send(data())
    taker.takes = lambda _: True
    await bus.send(last := data())
    assert taker.taken == [last]
    assert [r.level for r in job_log if "subscriber 'a' raised" in r.message] == ["ERROR"]


async def test_no_message_is_taken_before_the_start():
    bus = RoutedBus()
    await bus.setup(TaskManager())
    worker = BaseWorker("a")
    await bus.subscribe(worker)
    took: list[BusMessage] = []
    next(iter(bus._mailboxes.values())).take = lambda message: not took.append(message)
    await bus.send(system())
    assert took == []


# Workers


class Own(Responder):
    def __init__(self) -> None:
        super().__init__("own")
        self.received: list[type[BusMessage]] = []

    async def on_bus_message(self, message: BusMessage) -> None:
        self.received.append(type(message))
        await super().on_bus_message(message)


class QuietOwn(Own):
    sees_all_bus_messages = False


@pytest.mark.parametrize("kind", [Own, QuietOwn])
async def test_a_worker_with_an_on_bus_message_of_its_own_sees_its_jobs(kind: type[Own]):
    async with JobHarness(RoutedBus()) as harness:
        requester, own = Requester(), kind()
        await harness.start(requester, own)
        await requester.ask("own", "echo")
        assert BusJobRequestMessage in own.received


async def test_an_event_handler_for_all_messages_sees_jobs_while_it_is_registered():
    async with JobHarness(RoutedBus()) as harness:
        requester, responder = Requester(), Responder()
        await harness.start(requester, responder)
        received: list[type[BusMessage]] = []

        async def receive(worker: BaseWorker, message: BusMessage) -> None:
            received.append(type(message))

        await requester.ask("responder", "echo")
        responder.add_event_handler("on_bus_message", receive)
        await requester.ask("responder", "echo")
        await harness.settle()
        question = BusJobUpdateRequestMessage(source="requester", target="responder", job_id="1")
        assert not responder.take_bus_message(question)
        responder.remove_event_handler("on_bus_message", receive)
        assert responder.take_bus_message(question)
        await requester.ask("responder", "echo")
        await harness.settle()
        assert received.count(BusJobRequestMessage) == 1


class Tap(Responder):
    sees_all_bus_messages = True


async def test_a_worker_that_sees_everything_does_not_do_the_jobs_of_others():
    async with JobHarness(RoutedBus()) as harness:
        requester, responder, tap = Requester(), Responder(), Tap("tap")
        await harness.start(requester, responder, tap)
        await requester.ask("responder", "echo")
        assert (len(responder.ran), tap.ran) == (1, [])


async def test_a_new_subscriber_of_a_name_receives_messages_that_the_earlier_one_ignored(
    bus: RoutedBus,
):
    worker, taker = BaseWorker("a"), Taker("a")
    await bus.subscribe(worker)
    await bus.unsubscribe(worker)
    await bus.subscribe(taker)
    await bus.send(ready := BusEndMessage(source="me"))
    assert taker.taken == [ready]


mood: ContextVar[str] = ContextVar("mood", default="calm")


class ContextReader(BaseWorker):
    @job(name="mood")
    async def tell(self, message: BusJobRequestMessage) -> dict:
        return {"mood": mood.get()}


async def test_a_handler_runs_in_the_context_of_its_worker_and_not_of_the_requester():
    """Pipecat marks a running tool call by a context variable; it must not reach the worker."""
    async with JobHarness(RoutedBus()) as harness:
        requester = Requester()
        await harness.start(requester, ContextReader("reader"))
        mood.set("angry")
        assert await requester.ask("reader", "mood") == {"mood": "calm"}


async def test_a_handler_whose_first_message_is_delivered_later_runs_in_its_own_context(
    bus: RoutedBus,
):
    moods: asyncio.Queue[str] = asyncio.Queue()

    class Listener(Taker):
        async def on_bus_message(self, message: BusMessage) -> None:
            moods.put_nowait(mood.get())

    await bus.subscribe(Listener())
    mood.set("angry")
    await bus.send(data())
    assert await moods.get() == "calm"


# Cost


async def tasks_of_a_job(requester: Requester, harness: JobHarness) -> list[str]:
    started: list[str] = []
    create = harness.runner.task_manager.create_task

    def create_task(coroutine: Any, name: str, context: Any = None) -> asyncio.Task[Any]:
        started.append(name)
        return create(coroutine, name, context)

    harness.runner.task_manager.create_task = create_task  # type: ignore[method-assign]
    try:
        await requester.ask("responder", "echo", payload={"n": 1}, timeout=10)
    finally:
        harness.runner.task_manager.create_task = create  # type: ignore[method-assign]
    return started


class PlainRequester(BaseWorker):
    ask = Requester.ask


async def test_a_job_starts_no_task_but_its_handlers():
    async with JobHarness(RoutedBus()) as harness:
        requester = PlainRequester("requester")
        await harness.start(requester, Responder())
        await requester.ask("responder", "echo")
        assert await tasks_of_a_job(requester, harness) == ["responder::job_echo"]


async def test_a_job_creates_no_reference_cycles():
    async with JobHarness(RoutedBus()) as harness:
        requester = PlainRequester("requester")
        await harness.start(requester, Responder())
        await requester.ask("responder", "echo")
        await harness.settle()
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                await requester.ask("responder", "echo", payload={"n": 1}, timeout=10)
            await harness.settle()
            assert gc.collect() < 100
        finally:
            gc.enable()


async def test_the_runner_is_not_woken_for_jobs_and_receives_all_other_messages():
    async with JobHarness(RoutedBus()) as harness:
        requester = PlainRequester("requester")
        await harness.start(requester, Responder())
        runner = harness.runner
        put: list[BusMessage] = []
        box = harness.bus._mailboxes[runner.name]
        original = Mailbox.put

        def counting(self: Mailbox, message: BusMessage) -> None:
            if self is box:
                put.append(message)
            original(self, message)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Mailbox, "put", counting)
            await requester.ask("responder", "echo")
            await harness.bus.send(data("responder"))
            await harness.settle()
        assert [type(message) for message in put] == [BusTTSSpeakMessage]


async def test_a_runner_class_with_its_own_on_bus_message_sees_jobs():
    class Curious(WorkerRunner):
        async def on_bus_message(self, message: BusMessage) -> None:
            received.append(type(message))
            await super().on_bus_message(message)

    received: list[type[BusMessage]] = []
    bus = RoutedBus()
    await bus.setup(TaskManager())
    await bus.start()
    await bus.subscribe(Curious())
    await bus.send(BusJobRequestMessage(source="a", target="b", job_id="1"))
    await asyncio.sleep(0)
    await bus.stop()
    assert received == [BusJobRequestMessage]


async def test_messages_that_pipecats_workers_ignore_do_not_wake_them():
    async with JobHarness(RoutedBus()) as harness:
        workers = [BaseWorker(f"w{number}") for number in range(3)]
        workers.append(PipecatBaseWorker("plain"))
        await harness.start(*workers)
        names = {worker.name for worker in workers}
        put: list[str] = []
        original = Mailbox.put

        def counting(self: Mailbox, message: BusMessage) -> None:
            put.append(self.subscriber.name)
            original(self, message)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Mailbox, "put", counting)
            await harness.bus.send(BusWorkerRegistryMessage(source="me", runner="r", workers=[]))
            assert names.isdisjoint(put)
            await harness.bus.send(data(None))
            assert names.issubset(put)
            await harness.settle()


@pytest.mark.parametrize(
    "message",
    [
        BusAddWorkerMessage,
        BusCancelMessage,
        BusEndMessage,
        BusWorkerReadyMessage,
        BusWorkerRegistryMessage,
    ],
)
@pytest.mark.parametrize("worker", [PipecatBaseWorker, PipecatPipelineWorker])
def test_pipecats_workers_still_ignore_these_messages(
    worker: type[PipecatBaseWorker], message: type[BusMessage]
):
    """This fails when a release of Pipecat has workers that use one of these messages."""
    assert message.__name__ not in inspect.getsource(worker.on_bus_message)


def test_pipecats_runner_still_ignores_job_messages():
    """This fails when a release of Pipecat has a runner that uses job messages."""
    assert "BusJob" not in inspect.getsource(WorkerRunner.on_bus_message)
