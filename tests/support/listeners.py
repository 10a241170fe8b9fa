"""A subscriber that keeps the messages that it receives, and messages for it."""

import asyncio
from collections.abc import Callable
from typing import Any

from pipecat.bus.messages import BusJobCancelMessage, BusMessage, BusTTSSpeakMessage
from pipecat.bus.subscriber import BusSubscriber


class Listener(BusSubscriber):
    """Keeps the messages that it receives, in order; a test may add its own action."""

    sees_all_bus_messages = False

    def __init__(self, name: str, on_message: Callable[[BusMessage], Any] | None = None):
        self._name = name
        self.received: asyncio.Queue[BusMessage] = asyncio.Queue()
        self.offered = 0
        self._on_message = on_message

    @property
    def name(self) -> str:
        return self._name

    def accepts_bus_message(self, message: BusMessage) -> bool:
        self.offered += 1
        return True

    async def on_bus_message(self, message: BusMessage) -> None:
        self.received.put_nowait(message)
        if self._on_message is not None:
            await self._on_message(message)

    async def receive(self, count: int) -> list[BusMessage]:
        return [await self.received.get() for _ in range(count)]


def data(target: str | None = "a", source: str = "sender", number: int = 0) -> BusMessage:
    return BusTTSSpeakMessage(source=source, target=target, text=str(number))


def system(target: str | None = "a") -> BusMessage:
    return BusJobCancelMessage(source="sender", target=target, job_id="1")
