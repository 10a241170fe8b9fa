"""What waits for one subscriber of a bus, and the tasks that hand it over."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context

from pipecat.bus.messages import BusMessage, BusSystemMessage
from pipecat.bus.subscriber import BusSubscriber

from pipecat_jobs._protocol.tasks import RunningTask

#: Starts a task that begins after this call: its coroutine, its name and the context it runs in.
StartTask = Callable[[Coroutine[None, None, None], str, Context], asyncio.Task[None]]
#: Handles a message without waiting, or says that it cannot.
Take = Callable[[BusMessage], bool]
#: Is told of a subscriber that raised at a message.
OnFailure = Callable[[BusSubscriber, BusMessage, BaseException], None]


class _Lane:
    """Messages of one priority, handed over one by one in a task of their own.

    The task begins with the first message, so that a subscriber that gets none costs none.

    Args:
        mailbox: Whose messages they are.
        kind: What to call the task after.
        urgent: The lane whose messages go first.
    """

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
        """Add a message.

        Args:
            message: The message.
        """
        self.busy = True
        self.messages.append(message)
        if self._mailbox.open:
            self.wake()

    def wake(self) -> None:
        """Have the messages handed over."""
        if self.task is None:
            self.task = self._mailbox.start_task(self._run(), self._name)
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
                self.busy = False
                self._wakes = loop.create_future()
                await self._wakes

    async def _hand_over(self, message: BusMessage) -> None:
        subscriber, task = self._mailbox.subscriber, RunningTask()
        # Whatever a subscriber raises, it gets the next message: the one that cancels it, perhaps.
        try:
            if subscriber.accepts_bus_message(message):
                await subscriber.on_bus_message(message)
        except BaseException as error:
            task.survive(error)
            self._mailbox.on_failure(subscriber, message, error)


class Mailbox:
    """The messages for one subscriber: system messages apart from the others, which they overtake.

    Args:
        subscriber: Whose it is.
        start_task: Starts its tasks.
        on_failure: Called when the subscriber raises at a message.
    """

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
        """Whether messages are handed over, rather than kept."""
        self.take: Take | None = None
        """Handles messages for the subscriber that need no task, where it can."""
        self._start_task = start_task
        # Who subscribes decides what its handlers run in, not whoever sends the first message.
        self._context = copy_context()
        self._system: _Lane | None = None
        self._data: _Lane | None = None

    def put(self, message: BusMessage) -> None:
        """Hand a message over at once, if the subscriber can take it so; otherwise add it.

        Args:
            message: The message.
        """
        urgent, take = isinstance(message, BusSystemMessage), self.take
        if take is not None and self.open and not self._would_overtake(urgent):
            # Whoever sends to it from within waits in a lane, like behind any other handler.
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
        """Whether a message that is taken now comes before one that it should come after."""
        if self._system is None:
            return False
        return self._system.busy or (not urgent and self._data is not None and self._data.busy)

    def start_task(self, run: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Start a task of the subscriber's.

        Args:
            run: What it does.
            name: What to call it.

        Returns:
            The task.
        """
        return self._start_task(run, name, self._context.copy())

    def start(self) -> None:
        """Hand over what has come, and what will."""
        self.open = True
        for lane in self._lanes():
            if lane.messages:
                lane.wake()

    def stop(self) -> list[asyncio.Task[None]]:
        """Keep what comes from now on.

        Returns:
            The tasks to cancel. One that calls this, for its subscriber, ends by itself.
        """
        self.open = False
        tasks = [lane.task for lane in self._lanes() if lane.task is not None]
        for lane in self._lanes():
            lane.task = None
        return [task for task in tasks if task is not asyncio.current_task()]

    def _lanes(self) -> list[_Lane]:
        return [lane for lane in (self._system, self._data) if lane is not None]
