"""One job at the worker that does it, and the room it may have to wait for."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._protocol.flow import StreamWindow
from pipecat_jobs._protocol.hooks import Steps
from pipecat_jobs.errors import LLMTurnError


class Room:
    """Bounds how many jobs of one handler are open, or running, at once.

    Args:
        size: How many.
        until_answered: Whether a job stays in it until it has been answered; otherwise until its
            handler has returned.
        has_turn: Whether the LLM turn of its worker belongs to the job in it.
    """

    __slots__ = ("has_turn", "places", "until_answered")

    def __init__(self, size: int, *, until_answered: bool, has_turn: bool = False):
        self.until_answered = until_answered
        self.has_turn = has_turn
        self.places = asyncio.Semaphore(size)


@dataclass(slots=True, eq=False)
class Execution:
    """One job at this worker, from its request to its answer.

    Parameters:
        request: What was asked.
        task: Its handler, when it has one and that is running.
        cancelled: Whether it was called off.
        task_cancelled: Whether its handler has been cancelled, and may be cleaning up.
        answering: Whether an answer is on its way or has been sent.
        ended: Whether it has been answered.
        room: The room it is in.
        returned: Whether its handler has returned and left the answer to somebody else.
        turn_failure: Why the last LLM turn it started failed.
        steps: Runs its hooks in order, once there was one to run.
        window: What its stream waits for, once it has one.
    """

    request: BusJobRequestMessage
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    task_cancelled: bool = False
    answering: bool = False
    ended: bool = False
    room: Room | None = None
    returned: bool = False
    turn_failure: LLMTurnError | None = None
    steps: Steps | None = None
    window: StreamWindow | None = None
    _end: asyncio.Event | None = None

    def end(self) -> None:
        """Note that it has been answered."""
        self.answering = self.ended = True
        if self._end is not None:
            self._end.set()
        if self.window is not None:
            self.window.close()

    async def until_ended(self) -> None:
        """Wait until it has been answered."""
        if not self.ended:
            self._end = self._end or asyncio.Event()
            await self._end.wait()

    async def enter(self, room: Room) -> None:
        """Wait for a place, in order of arrival.

        Args:
            room: Where.
        """
        await room.places.acquire()
        self.room = room

    def leave(self) -> None:
        """Give the place, if there is one, to the next. May be called more than once."""
        if self.room is not None:
            self.room.places.release()
            self.room = None


#: The job whose handler, or whatever that handler started, is running.
current_execution: ContextVar[Execution | None] = ContextVar("pipecat_jobs_job", default=None)
