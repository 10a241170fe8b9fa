"""One job at the worker that does it, and the room it may have to wait for."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs.errors import LLMTurnError
from pipecat_jobs.hooks import Steps


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
        steps: Runs its hooks in order.
        task: Its handler, when it has one.
        cancelled: Whether it was called off.
        answering: Whether an answer is on its way or has been sent.
        ended: Set once it has been answered.
        room: The room it is in.
        returned: Whether its handler has returned and left the answer to somebody else.
        turn_failure: Why the last LLM turn it started failed.
    """

    request: BusJobRequestMessage
    steps: Steps
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    answering: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    room: Room | None = None
    returned: bool = False
    turn_failure: LLMTurnError | None = None

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
