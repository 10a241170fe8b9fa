"""The messages that wait for one subscriber of a bus, and the tasks that deliver them."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context

from pipecat.bus.messages import BusMessage, BusSystemMessage
from pipecat.bus.subscriber import BusSubscriber

from pipecat_jobs._protocol.tasks import RunningTask

#: Starts a task that begins after this call: its coroutine, its name and the context it runs in.
StartTask = Callable[[Coroutine[None, None, None], str, Context], asyncio.Task[None]]
#: Handles a message without waiting. Returns whether it did.
Take = Callable[[BusMessage], bool]
#: Called when a subscriber raised at a message.
OnFailure = Callable[[BusSubscriber, BusMessage, BaseException], None]


class _Lane:
    """Messages of one priority, delivered one by one in a task that starts with the first one."""

    __slots__ = ("_mailbox", "_name", "_urgent", "_wakes", "busy", "messages", "task")

    def __init__(self, mailbox: "Mailbox", kind: str, urgent: "_Lane | None" = None):
        self.messages: deque[BusMessage] = deque()
        self.busy = False
        """Whether a message waits or is being handled."""
        self.task: asyncio.Task[None] | None = None
        self._mailbox = mailbox
        self._name = f"bus_{kind}_{mailbox.subscriber}"
        self._urgent = urgent
        self._wakes: asyncio.Future[None] | None = None

    def add(self, message: BusMessage) -> None:
        """Add a message."""
        self.busy = True
        self.messages.append(message)
        if self._mailbox.open:
            self.wake()

    def wake(self) -> None:
        """Deliver the messages that wait."""
        if self.task is None:
            self.task = self._mailbox.start_task(self._run(), self._name)
        elif self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)

    async def _run(self) -> None:
        loop, own_task = asyncio.get_running_loop(), asyncio.current_task()
        while self.task is own_task:
            while self.messages and self.task is own_task:
                if self._urgent is not None and self._urgent.messages:
                    # The task of the urgent lane was woken as well: let it run first.
                    await asyncio.sleep(0)
                if self.messages:
                    await self._deliver(self.messages.popleft())
            if self.task is own_task:
                self.busy = False
                self._wakes = loop.create_future()
                await self._wakes

    async def _deliver(self, message: BusMessage) -> None:
        subscriber, task = self._mailbox.subscriber, RunningTask()
        # The next message may be a cancel, so it is delivered even if the subscriber raises here.
        try:
            if subscriber.accepts_bus_message(message):
                await subscriber.on_bus_message(message)
        except BaseException as error:
            task.survive(error)
            self._mailbox.on_failure(subscriber, message, error)


class Mailbox:
    """The messages for one subscriber, in two lanes: system messages overtake the others."""

    __slots__ = (
        "_context",
        "_data",
        "_start_task",
        "_system",
        "on_failure",
        "open",
        "subscriber",
        "take",
    )

    def __init__(self, subscriber: BusSubscriber, start_task: StartTask, on_failure: OnFailure):
        self.subscriber = subscriber
        self.on_failure = on_failure
        self.open = False
        """Whether messages are delivered; otherwise they are kept."""
        self.take: Take | None = None
        """The subscriber's way to handle messages without a task, if it has one."""
        self._start_task = start_task
        # Handlers run in the context of the subscription, not of the sender of a message.
        self._context = copy_context()
        self._system: _Lane | None = None
        self._data: _Lane | None = None

    def put(self, message: BusMessage) -> None:
        """Let the subscriber handle a message at once if it can, or add it to a lane."""
        urgent, take = isinstance(message, BusSystemMessage), self.take
        if take is not None and self.open and not self._would_overtake(urgent):
            # Handling a message may send the subscriber another one, which must wait in a lane.
            self.take = None
            try:
                if self._context.run(take, message):
                    return
            except BaseException as error:
                RunningTask().survive(error)
                self.on_failure(self.subscriber, message, error)
                return
            finally:
                self.take = take
        if self._system is None:
            self._system = _Lane(self, "system")
        if urgent:
            self._system.add(message)
            return
        if self._data is None:
            self._data = _Lane(self, "data", self._system)
        self._data.add(message)

    def _would_overtake(self, urgent: bool) -> bool:
        """Return whether an earlier message must be handled before one that arrives now."""
        if self._system is None:
            return False
        return self._system.busy or (not urgent and self._data is not None and self._data.busy)

    def start_task(self, run: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Start a task in the subscriber's context."""
        return self._start_task(run, name, self._context.copy())

    def start(self) -> None:
        """Start delivering."""
        self.open = True
        for lane in self._list_lanes():
            if lane.messages:
                lane.wake()

    def stop(self) -> list[asyncio.Task[None]]:
        """Stop delivering, keep the messages, and return the tasks to cancel."""
        self.open = False
        tasks = [lane.task for lane in self._list_lanes() if lane.task is not None]
        for lane in self._list_lanes():
            lane.task = None
        # A task that calls this itself ends by itself.
        return [task for task in tasks if task is not asyncio.current_task()]

    def _list_lanes(self) -> list[_Lane]:
        return [lane for lane in (self._system, self._data) if lane is not None]
