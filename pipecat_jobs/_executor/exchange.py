"""What the requester of one job tells its worker meanwhile, and the replies."""

import asyncio
from collections import deque
from typing import NamedTuple, Self

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._executor.execution import Execution, current_execution
from pipecat_jobs._protocol.exchange import AnswerNote, WorkerNote, make_worker_note_message
from pipecat_jobs._protocol.runtime import JobRuntime
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs.errors import InvalidJobError
from pipecat_jobs.steering import JobSteer, SteerDecision


class Offer(NamedTuple):
    """A steer that is offered to a job, and what becomes of it."""

    steer: JobSteer
    decision: SteerDecision


class Exchange:
    """What was said about one job, at its worker. The first note, or the first loop, makes it."""

    __slots__ = (
        "_arrived",
        "_replies",
        "_seen",
        "_sending",
        "_taken",
        "hook",
        "is_read",
        "questions",
        "waiting",
    )

    def __init__(self) -> None:
        #: The steers that have not been taken, in order of arrival.
        self.waiting: deque[Offer] = deque()
        #: Whether the handler takes the steers itself.
        self.is_read = False
        #: The task that runs ``on_job_steered()``, while there is one.
        self.hook: asyncio.Task[None] | None = None
        #: The questions that the requester has not answered, by id.
        self.questions: dict[str, asyncio.Future[AnswerNote]] = {}
        #: Those that the handler has taken, and about which nothing is decided.
        self._taken: list[Offer] = []
        #: The notes that have arrived, by id, with what was replied to each.
        self._seen: dict[str, WorkerNote | None] = {}
        self._arrived = asyncio.Event()
        self._replies: deque[WorkerNote] = deque()
        self._sending = asyncio.Lock()

    @classmethod
    def of(cls, execution: Execution) -> "Exchange":
        """Find the exchange of a job, or make it."""
        if execution.exchange is None:
            execution.exchange = cls()
        return execution.exchange

    def is_new(self, note_id: str) -> bool:
        """Return whether a note comes for the first time; otherwise, add the reply again."""
        if note_id not in self._seen:
            self._seen[note_id] = None
            return True
        reply = self._seen[note_id]
        if reply is not None and reply not in self._replies:
            self._replies.append(reply)
        return False

    # -- the steers ----------------------------------------------------------------------------

    def add(self, offer: Offer) -> None:
        """Add a steer that the handler will take."""
        self.waiting.append(offer)
        self._arrived.set()

    def take(self) -> JobSteer | None:
        """Take the oldest steer that is not over; None if there is none."""
        while self.waiting:
            offer = self.waiting.popleft()
            if offer.decision.state is None:
                self._taken.append(offer)
                return offer.steer
        return None

    @property
    def has_waiting(self) -> bool:
        """Whether there is a steer to take."""
        return any(offer.decision.state is None for offer in self.waiting)

    def accept_taken(self) -> None:
        """Accept the steers that were taken and not refused."""
        taken, self._taken = self._taken, []
        for offer in taken:
            offer.decision.decide("accepted")

    async def wait_for_next(self) -> None:
        """Wait until there may be a further steer, or the job has ended."""
        self._arrived.clear()
        await self._arrived.wait()

    def end(self) -> None:
        """Decide about the steers that are left: the job has ended."""
        for offer in (*self._taken, *self.waiting):
            offer.decision.decide("over", "the job has ended")
        self._taken.clear()
        self.waiting.clear()
        self._arrived.set()
        if self.hook is not None and self.hook is not asyncio.current_task():
            self.hook.cancel()
        for note_id in list(self.questions):
            self.take_answer(AnswerNote(note_id, refused="the job has ended"))

    # -- the questions -------------------------------------------------------------------------

    def take_answer(self, note: AnswerNote) -> bool:
        """Give an answer to the code that waits for it; False if none does."""
        answered = self.questions.get(note.id)
        if answered is None:
            return False
        if not answered.done():
            answered.set_result(note)
        return True

    # -- the replies ---------------------------------------------------------------------------

    def add_reply(self, note: WorkerNote) -> None:
        """Add a reply, for :meth:`send_replies`."""
        self._seen[note.id] = note
        self._replies.append(note)

    async def send_replies(self, runtime: JobRuntime, request: BusJobRequestMessage) -> None:
        """Send the replies in order, and return once all are sent; log those that cannot be."""
        async with self._sending:
            while self._replies:
                note, task = self._replies.popleft(), RunningTask()
                try:
                    await runtime.send(
                        make_worker_note_message(runtime.name, request.source, request.job_id, note)
                    )
                except BaseException as error:
                    task.survive(error)
                    log_raised(f"Worker '{runtime.name}': could not reply to a steer", error)


class JobSteers:
    """The steers of the running job, for ``async for``: what :func:`job_steers` returns."""

    def __init__(self, execution: Execution):
        self._execution = execution
        self._exchange = exchange = Exchange.of(execution)
        exchange.is_read = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobSteer:
        self._exchange.accept_taken()
        while (steer := self._exchange.take()) is None:
            if self._execution.ended or self._execution.cancelled:
                raise StopAsyncIteration
            await self._exchange.wait_for_next()
        return steer

    def take_waiting(self) -> list[JobSteer]:
        """Take the steers that have arrived since the last time, without waiting.

        It is for a handler that works in steps and looks between two of them. The steers that were
        taken before are accepted, unless they were refused.

        Returns:
            The steers, the oldest first; an empty list if there is none.

        Example::

            class Mechanic(BaseWorker):
                @job(name="inspect")
                async def inspect(self, message):
                    steers, parts = job_steers(), ["engine", "lights"]
                    done = []
                    while parts:
                        done.append(parts.pop(0))
                        parts += [steer.data["also"] for steer in steers.take_waiting()]
                    return {"inspected": done}
        """
        self._exchange.accept_taken()
        taken: list[JobSteer] = []
        while (steer := self._exchange.take()) is not None:
            taken.append(steer)
        return taken


def job_steers() -> JobSteers:
    """Take the steers of the running job, for ``async for`` in its handler.

    From this call on the steers of the job wait for the handler; those that came before it began
    are the first ones. Call it at the beginning of the handler, before the first ``await``: a steer
    that arrives earlier goes to ``on_job_steered()``. The loop ends when the job has ended.

    A steer is accepted when the loop asks for the next one, or when the handler returns, unless it
    was refused.

    Returns:
        The steers. Beside ``async for`` they have ``take_waiting()``, which does not wait.

    Raises:
        InvalidJobError: If the calling code does not run in the handler of a job.

    Example::

        class Mechanic(BaseWorker):
            @job(name="inspect")
            async def inspect(self, message):
                found = []
                async for steer in job_steers():
                    if steer.data.get("stop"):
                        break
                    found.append(f"{steer.data['also']}: fine")
                return {"found": found}
    """
    execution = current_execution.get()
    if execution is None:
        raise InvalidJobError(
            "job_steers() was called outside of a job; call it in a method with @job, or in "
            "on_job_request()"
        )
    return JobSteers(execution)
