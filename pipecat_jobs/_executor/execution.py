"""One job at the worker that runs it: its state, and the slot it may have to wait for."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from pipecat.bus.messages import (
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
)

from pipecat_jobs._protocol.deadline import JobDeadline, current_deadline
from pipecat_jobs._protocol.flow import StreamWindow
from pipecat_jobs._protocol.hooks import Steps
from pipecat_jobs.errors import LLMTurnError
from pipecat_jobs.outcomes import JobData

if TYPE_CHECKING:
    from pipecat_jobs._executor.exchange import Exchange
    from pipecat_jobs._executor.keys import Line


class Slots:
    """The slots under one concurrency limit."""

    __slots__ = ("free", "has_turn", "until_response")

    def __init__(self, size: int, *, until_response: bool, has_turn: bool = False):
        #: Whether a job keeps its slot until its response; otherwise until its handler returns.
        self.until_response = until_response
        #: Whether the LLM turn of the worker belongs to the job in the slot.
        self.has_turn = has_turn
        self.free = asyncio.Semaphore(size)


class ExecutionState(StrEnum):
    """How far a job is at its worker.

    The diagram in ``docs/explanation/jobs.md`` shows the transitions.
    """

    #: Its handler waits for its key or for a slot.
    WAITING = "waiting"
    #: Its handler runs.
    RUNNING = "running"
    #: Its handler returned without a response, or it has none: other code responds later.
    RETURNED = "returned"
    #: It was cancelled: its handler and its hooks clean up.
    CANCELLING = "cancelling"
    #: Its response is being sent.
    RESPONDING = "responding"
    #: Its response was sent, or never will be.
    ENDED = "ended"


# Each job reads them several times, and reading a member from its enum is slow on Python 3.11.
_WAITING, _RUNNING, _RETURNED, _CANCELLING, _RESPONDING, _ENDED = ExecutionState

#: The states that may follow each. RESPONDING goes back when the response could not be sent.
TRANSITIONS: dict[ExecutionState, frozenset[ExecutionState]] = {
    _WAITING: frozenset({_RUNNING, _CANCELLING, _RESPONDING, _ENDED}),
    _RUNNING: frozenset({_RETURNED, _CANCELLING, _RESPONDING, _ENDED}),
    _RETURNED: frozenset({_CANCELLING, _RESPONDING, _ENDED}),
    _CANCELLING: frozenset({_RESPONDING, _ENDED}),
    _RESPONDING: frozenset({_WAITING, _RUNNING, _RETURNED, _CANCELLING, _ENDED}),
    _ENDED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Execution:
    """One job at this worker, from its request to its response."""

    request: BusJobRequestMessage
    #: When its request arrived, by the clock of the event loop.
    since: float = 0.0
    state: ExecutionState = ExecutionState.WAITING
    #: Its handler's task, while that runs.
    task: asyncio.Task[None] | None = None
    #: The slots of which it has one.
    slots: Slots | None = None
    #: The jobs of its key, if its handler has one.
    line: "Line | None" = None
    #: Why the last LLM turn it started failed.
    turn_failure: LLMTurnError | None = None
    #: The latest update it has sent.
    last_update: JobData | None = None
    #: Runs its hooks in order, once there was one to run.
    steps: Steps | None = None
    #: When its requester ends it, if its request says so: the jobs of its handler inherit it.
    deadline: JobDeadline | None = None
    #: What its stream waits for, once it has one.
    window: StreamWindow | None = None
    #: Its response, for the jobs that joined it.
    response: BusJobResponseMessage | BusJobResponseUrgentMessage | None = None
    #: What was said about it meanwhile; None while nothing was.
    exchange: "Exchange | None" = None
    # The state without regard to a response: where RESPONDING goes back to.
    _progress: ExecutionState = ExecutionState.WAITING
    _end: asyncio.Event | None = None

    # -- its state ---------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether its response was sent, or never will be."""
        return self.state is _ENDED

    @property
    def is_open(self) -> bool:
        """Whether a response may still be sent, and none is on its way."""
        return self.state not in (_RESPONDING, _ENDED)

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled before it ended."""
        return self._progress is _CANCELLING

    def begin(self) -> None:
        """Note that its handler runs."""
        self._advance(_RUNNING)

    def leave_response(self) -> None:
        """Note that its handler left the response to other code, or that it has no handler."""
        if self._progress is _WAITING:
            self._advance(_RUNNING)
        self._advance(_RETURNED)

    def cancel(self) -> bool:
        """Note that it was cancelled; False when it was already: other code cleans up."""
        if self.cancelled:
            return False
        self._advance(_CANCELLING)
        return True

    def begin_response(self) -> None:
        """Note that its response is being sent."""
        self._move(_RESPONDING)

    def fail_response(self) -> None:
        """Note that the response could not be sent: it is where it was."""
        if self.state is _RESPONDING:
            self._move(self._progress)

    def end(self) -> None:
        """Note that its response was sent, or never will be. May be called more than once."""
        # Every state may end.
        self.state = _ENDED
        if self._end is not None:
            self._end.set()
        if self.window is not None:
            self.window.close()
        if self.deadline is not None:
            self.deadline.close()
        if self.exchange is not None:
            self.exchange.end()

    def _advance(self, progress: ExecutionState) -> None:
        # The handler may go on, or begin, after the response; a cancel is final.
        if self._progress is _CANCELLING or self.state is _ENDED:
            return
        assert progress in TRANSITIONS[self._progress], (self._progress, progress)
        if self.state is self._progress:
            self.state = progress
        self._progress = progress

    def _move(self, state: ExecutionState) -> None:
        assert state in TRANSITIONS[self.state], (self.state, state)
        self.state = state

    async def until_ended(self) -> None:
        """Wait until its response was sent, or never will be."""
        if not self.ended:
            self._end = self._end or asyncio.Event()
            await self._end.wait()

    # -- its slot ----------------------------------------------------------------------------

    async def take_slot(self, slots: Slots) -> None:
        """Wait for a free slot, in order of arrival."""
        await slots.free.acquire()
        self.slots = slots

    def free_slot(self) -> None:
        """Free its slot and its key for the next job. May be called more than once."""
        if self.slots is not None:
            self.slots.free.release()
            self.slots = None
        if self.line is not None:
            self.line.leave(self)


#: The job whose handler, or code that the handler started, is running.
current_execution: ContextVar[Execution | None] = ContextVar("pipecat_jobs_job", default=None)

#: The job whose LLM turn has called the function that is running.
calling_job: ContextVar[Execution | None] = ContextVar("pipecat_jobs_calling_job", default=None)


def find_current_job() -> Execution | None:
    """Find the open job to which the running code belongs: in its handler, or in a function."""
    execution = current_execution.get() or calling_job.get()
    return None if execution is None or execution.ended else execution


def enter(execution: Execution) -> None:
    """Have what runs from here on in this context belong to a job."""
    current_execution.set(execution)
    current_deadline.set(execution.deadline)
