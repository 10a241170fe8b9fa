"""What waits for one subscriber of a bus, and the tasks that hand it over."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine

from loguru import logger
from pipecat.bus.messages import BusMessage, BusSystemMessage
from pipecat.bus.subscriber import BusSubscriber

#: Starts a task: its coroutine and its name.
StartTask = Callable[[Coroutine[None, None, None], str], asyncio.Task[None]]


class _Lane:
    """Messages of one priority, handed over one by one in a task of their own.

    The task begins with the first message, so that a subscriber that gets none costs none.

    Args:
        subscriber: Who gets them.
        name: What to call the task.
        start_task: Starts it.
        urgent: The lane whose messages go first.
    """

    __slots__ = ("_name", "_start_task", "_subscriber", "_urgent", "_wakes", "messages", "task")

    def __init__(
        self,
        subscriber: BusSubscriber,
        name: str,
        start_task: StartTask,
        urgent: "_Lane | None" = None,
    ):
        self.messages: deque[BusMessage] = deque()
        self.task: asyncio.Task[None] | None = None
        self._subscriber = subscriber
        self._name = name
        self._start_task = start_task
        self._urgent = urgent
        self._wakes: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Have the messages handed over."""
        if self.task is None:
            self.task = self._start_task(self._run(), self._name)
        elif self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)

    async def _run(self) -> None:
        loop, own_task = asyncio.get_running_loop(), asyncio.current_task()
        while self.task is own_task:
            while self.messages and self.task is own_task:
                if self._urgent is not None and self._urgent.messages:
                    # Its task was woken as well; this lets it take the first.
                    await asyncio.sleep(0)
                if self.messages:
                    await self._hand_over(self.messages.popleft())
            if self.task is own_task:
                self._wakes = loop.create_future()
                await self._wakes

    async def _hand_over(self, message: BusMessage) -> None:
        # Whatever a subscriber raises, it gets the next message: the one that cancels it, perhaps.
        try:
            if self._subscriber.accepts_bus_message(message):
                await self._subscriber.on_bus_message(message)
        except Exception as error:
            logger.opt(exception=error).error(
                f"subscriber '{self._subscriber.name}' raised at {message}; going on"
            )


class Mailbox:
    """The messages for one subscriber: system messages apart from the others, which they overtake.

    Args:
        subscriber: Whose it is.
        start_task: Starts its tasks.
    """

    __slots__ = ("_data", "_system", "open", "subscriber")

    def __init__(self, subscriber: BusSubscriber, start_task: StartTask):
        self.subscriber = subscriber
        self.open = False
        """Whether messages are handed over, rather than kept."""
        self._system = _Lane(subscriber, f"bus_system_{subscriber}", start_task)
        self._data = _Lane(subscriber, f"bus_data_{subscriber}", start_task, self._system)

    def put(self, message: BusMessage) -> None:
        """Add a message.

        Args:
            message: The message.
        """
        lane = self._system if isinstance(message, BusSystemMessage) else self._data
        lane.messages.append(message)
        if self.open:
            lane.wake()

    def start(self) -> None:
        """Hand over what has come, and what will."""
        self.open = True
        for lane in (self._system, self._data):
            if lane.messages:
                lane.wake()

    def stop(self) -> list[asyncio.Task[None]]:
        """Keep what comes from now on.

        Returns:
            The tasks to cancel. One that calls this, for its subscriber, ends by itself.
        """
        self.open = False
        tasks = {self._system.task, self._data.task} - {None, asyncio.current_task()}
        self._system.task = self._data.task = None
        return [task for task in tasks if task is not None]
