"""Neither a message nor an exception of its subscriber ends the delivery of the next message."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pipecat.bus.messages import BusMessage, BusTTSSpeakMessage
from pipecat.utils.asyncio.task_manager import TaskManager
from support.listeners import Listener, data, system
from support.workers import RAISED

from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.bus._mailbox import Mailbox


@pytest.fixture
async def bus() -> AsyncIterator[RoutedBus]:
    bus = RoutedBus()
    await bus.setup(TaskManager())
    await bus.start()
    yield bus
    await bus.stop()


class Raising(Listener):
    """Raises at its first message."""

    def __init__(self, error: BaseException):
        super().__init__("a")
        self.error: BaseException | None = error

    async def on_bus_message(self, message: BusMessage) -> None:
        self.received.put_nowait(message)
        error, self.error = self.error, None
        if error is not None:
            raise error


class RaisingTaker(Raising):
    """Raises at its first message, in the call that sends it."""

    def take_bus_message(self, message: BusMessage) -> bool:
        self.received.put_nowait(message)
        error, self.error = self.error, None
        if error is not None:
            raise error
        return True


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [Raising, RaisingTaker])
async def test_a_subscriber_receives_the_next_message_after_any_exception(
    bus: RoutedBus, job_log: Any, kind: type[Raising], error: BaseException
):
    subscriber = kind(error)
    mailbox = Mailbox(subscriber, bus.create_task, bus.on_delivery_failure)
    if isinstance(subscriber, RaisingTaker):
        mailbox.take = subscriber.take_bus_message
    mailbox.start()
    async with asyncio.timeout(100):
        for message in (data(), data(), system(), system()):
            mailbox.put(message)
        assert len(await subscriber.receive(4)) == 4
    [logged] = [each for each in job_log if each.exception is error]
    assert logged.level == ("CRITICAL" if isinstance(error, SystemExit) else "ERROR")
    assert "subscriber 'a' raised at Bus" in logged.message
    for task in mailbox.stop():
        await bus.cancel_task(task)


class Unwritable(BusTTSSpeakMessage):
    def __str__(self) -> str:
        raise TypeError("no text")


async def test_a_message_that_cannot_be_written_as_text_does_not_end_the_delivery(
    bus: RoutedBus, job_log: Any
):
    subscriber = Raising(ValueError("a value"))
    await bus.subscribe(subscriber)
    async with asyncio.timeout(100):
        await bus.send(Unwritable(source="sender", target="a", text="x"))
        await bus.send(data())
        assert len(await subscriber.receive(2)) == 2
    assert any("<Unwritable that cannot be written as text>" in each.message for each in job_log)


async def test_the_log_has_only_the_beginning_of_a_long_message(bus: RoutedBus, job_log: Any):
    subscriber = Raising(ValueError("a value"))
    await bus.subscribe(subscriber)
    async with asyncio.timeout(100):
        await bus.send(data(source="x" * 100_000))
        await subscriber.receive(1)
        await bus.send(data())
        await subscriber.receive(1)
    [logged] = [each for each in job_log if "raised at" in each.message]
    assert len(logged.message) < 300


async def test_a_delivery_task_that_is_cancelled_or_closed_still_ends(bus: RoutedBus):
    entered, left = asyncio.Event(), asyncio.Event()

    async def stay(message: BusMessage) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    await bus.subscribe(Listener("a", stay))
    async with asyncio.timeout(100):
        await bus.send(data())
        await entered.wait()
        await bus.stop()
    assert left.is_set()
