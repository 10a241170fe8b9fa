"""The jobs of one call: the workers that were asked, their outcomes, and how the group ended."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Self, cast

from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from pipecat.pipeline.job_context import JobGroupEvent

from pipecat_jobs._protocol.deadline import Deadline
from pipecat_jobs._protocol.flow import StreamWindow
from pipecat_jobs._protocol.hooks import Steps
from pipecat_jobs._protocol.messages import ResponseMessage
from pipecat_jobs._protocol.tasks import RunningTask
from pipecat_jobs._requester.events import EventQueue, LatestUpdateQueue
from pipecat_jobs._requester.readiness import StartableBus
from pipecat_jobs.errors import JobError, failure_of
from pipecat_jobs.outcomes import (
    CancelReason,
    ErrorDetails,
    JobData,
    JobOutcome,
    JobRefusal,
    OutcomeStatus,
)
from pipecat_jobs.params import JobGroupParams


def _now() -> float:
    """The loop's time; outside of one, the clock that a loop has by default."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


class JobGroup(PipecatJobGroup):
    """Jobs launched together under one id. Pipecat's ``JobGroup``, with outcomes.

    It is what ``create_job_group_and_request_job()`` returns and ``job_groups`` holds. One that is
    built by hand takes Pipecat's arguments. Put into a worker's ``job_groups`` it is completed by
    the responses of its workers; the code that built it sends the requests.

    Parameters:
        params: How it was asked for.
        outcomes: How it ended, by worker; complete once the group is done.

    Example::

        group = JobGroup(job_id="lookup-1", worker_names={"worker"}, cancel_on_error=True)
        self.job_groups[group.job_id] = group
        await self.send_bus_message(
            BusJobRequestMessage(source=self.name, target="worker", job_id=group.job_id)
        )
        await group.wait()
        print(group.responses["worker"])
    """

    deadline: Deadline | None = None
    #: Whether its requests have gone out.
    dispatched = True
    #: Whether its end is being announced to the hooks, or to the workers that are cancelled.
    concluded = False
    #: The first response of a worker that did not complete.
    failing: ResponseMessage | None = None
    #: The workers that were asked and had not responded when the group ended: they are cancelled.
    owing: Sequence[str] = ()
    #: The task that dispatches it, while that is under way.
    dispatcher: RunningTask | None = None
    #: The reason to record if it is cancelled.
    ending = CancelReason.REQUESTER_CANCELLED
    #: Called with each outcome; None while nothing has to know.
    on_settled: Callable[[JobOutcome], None] | None = None
    _params: JobGroupParams | None = None
    _events: EventQueue | None = None
    _reading = False
    _first: JobOutcome | None = None
    _known_workers: Sequence[str] = ()
    _loop_blocked = 0.0
    _sharing_loop: Sequence[str] = ()
    _bus: StartableBus | None = None
    _bus_failure: Exception | None = None

    def __init__(
        self,
        job_id: str,
        worker_names: Collection[str],
        responses: dict[str, JobData] | None = None,
        timeout_task: asyncio.Task[None] | None = None,
        cancel_on_error: bool = True,
        label: str | None = None,
        cancellable: bool = True,
        terminated: set[str] | None = None,
        event_queue: EventQueue | None = None,
    ):
        """Build a group by hand; the code that builds it sends the requests.

        Args:
            job_id: The id that its requests and responses carry.
            worker_names: The workers that are asked.
            responses: Where their responses are kept, by worker; a new dict by default.
            timeout_task: A task that cancels the group at its deadline; cancelled when the group
                ends before.
            cancel_on_error: Whether the first worker that does not complete ends the group.
            label: What it is about, for people.
            cancellable: Whether ``request_cancel_job_group()`` may cancel it.
            terminated: The workers that have responded; none by default.
            event_queue: Where updates and stream events go, and None after the last.
        """
        super().__init__(
            job_id,
            # Kept as it was given: bots compare it with sets of their own.
            cast("list[str]", worker_names),
            responses={} if responses is None else responses,
            timeout_task=timeout_task,
            cancel_on_error=cancel_on_error,
            label=label,
            cancellable=cancellable,
            terminated=set() if terminated is None else terminated,
        )
        #: Runs its hooks in order; None until the requester has any to run.
        self.steps: Steps | None = None
        self.outcomes: dict[str, JobOutcome] = {}
        self._single = False
        self._keeps_events = False
        self._early: list[JobGroupEvent] = []
        self._windows: dict[str, StreamWindow] = {}
        self._asked_at = _now()
        self._sent_at = dict.fromkeys(worker_names, self._asked_at)
        self._events = event_queue

    @classmethod
    def for_dispatch(
        cls,
        job_id: str,
        worker_names: list[str],
        params: JobGroupParams,
        steps: Steps,
        *,
        single: bool,
        keeps_events: bool,
    ) -> Self:
        """Build a group that a requester dispatches: none of its workers has been asked.

        Args:
            job_id: The group's id.
            worker_names: The workers to ask.
            params: How.
            steps: Runs the group's hooks in order.
            single: Whether one worker is asked on its own, with ``job()``.
            keeps_events: Whether its events are kept until ``async for`` reads them.

        Returns:
            The group.
        """
        group = cls(
            job_id,
            worker_names,
            cancel_on_error=params.cancel_on_error,
            label=params.label,
            cancellable=params.cancellable,
        )
        group._params = params
        group.steps = steps
        group.dispatched = False
        group._single = single
        group._keeps_events = keeps_events
        group._sent_at = {}
        return group

    @property
    def params(self) -> JobGroupParams:
        """How it was asked for; what its constructor was given, when it was built by hand."""
        if self._params is None:
            self._params = JobGroupParams(
                label=self.label,
                cancellable=self.cancellable,
                cancel_on_error=self.cancel_on_error,
            )
        return self._params

    # -- who has ended -----------------------------------------------------------------------

    @property
    def pending(self) -> list[str]:
        """The workers without an outcome, in the order they were named."""
        return [name for name in self.worker_names if name not in self.outcomes]

    @property
    def settled(self) -> bool:
        """Whether every worker has an outcome."""
        return len(self.outcomes) == len(self.worker_names)

    @property
    def failed(self) -> bool:
        """Whether the group has to end, because a worker or the caller gave it up."""
        return self._first is not None

    @property
    def verdict(self) -> str:
        """Why it fails, as a sentence for the workers that are told to stop."""
        assert self._first is not None
        done = {OutcomeStatus.CANCELLED: "cancelled", OutcomeStatus.LOST: "was lost"}
        return f"worker '{self._first.worker}' {done.get(self._first.status, 'errored')}"

    @property
    def unready(self) -> list[str]:
        """The workers that were never asked."""
        return [name for name in self.worker_names if name not in self._sent_at]

    def asks(self, worker_name: str) -> None:
        """Note that a worker's request goes out now.

        Args:
            worker_name: The worker.
        """
        self._sent_at[worker_name] = _now()

    def awaits(self, worker_name: str) -> bool:
        """Tell whether an answer from this worker counts.

        Args:
            worker_name: Who answered.

        Returns:
            Whether it was asked and has no outcome yet.
        """
        return worker_name in self._sent_at and worker_name not in self.outcomes

    def owes(self, worker_name: str) -> bool:
        """Tell whether a worker was asked and has not answered, whatever became of the group.

        Args:
            worker_name: A worker.

        Returns:
            Whether its answer is still to come.
        """
        return self.awaits(worker_name) or worker_name in self.owing

    def settle(
        self,
        worker_name: str,
        status: OutcomeStatus,
        response: JobData | None = None,
        error: ErrorDetails | None = None,
        reason: str | None = None,
        cancel_reason: CancelReason | None = None,
        refusal: JobRefusal | None = None,
    ) -> JobOutcome:
        """Record how it ended for one worker.

        Args:
            worker_name: A worker without an outcome.
            status: How it ended.
            response: What the worker answered.
            error: What went wrong.
            reason: Why, as a sentence.
            cancel_reason: Who ended it.
            refusal: Why the worker did not begin.

        Returns:
            The outcome.
        """
        now = _now()
        sent_at = self._sent_at.get(worker_name, now)
        outcome = JobOutcome(
            worker_name,
            status,
            response,
            error,
            reason,
            waited=sent_at - self._asked_at,
            ran=now - sent_at,
            cancel_reason=cancel_reason,
            refusal=refusal,
        )
        self.outcomes[worker_name] = outcome
        if response is not None or outcome.completed:
            self.responses[worker_name] = response or {}
        if self.cancel_on_error and not outcome.completed:
            self._first = self._first or outcome
        if self.on_settled is not None:
            self.on_settled(outcome)
        return outcome

    def settle_pending(
        self,
        status: OutcomeStatus,
        *,
        error: ErrorDetails | None = None,
        reason: str | None = None,
        cancel_reason: CancelReason | None = None,
    ) -> None:
        """End every worker that has no outcome, and with them the group.

        Args:
            status: How it ended for them.
            error: What went wrong.
            reason: Why, as a sentence.
            cancel_reason: Who ends it.
        """
        pending = self.pending
        self.owing = [*self.owing, *(name for name in pending if name in self._sent_at)]
        for name in pending:
            outcome = self.settle(
                name, status, error=error, reason=reason, cancel_reason=cancel_reason
            )
            self._first = self._first or outcome

    # -- what arrives meanwhile --------------------------------------------------------------

    @property
    def event_queue(self) -> EventQueue | None:
        """Where updates and stream events go, and None after the last; None while there are none.

        A queue that is set once the dispatch has returned, as Pipecat's own contexts do, gets what
        came during it.
        """
        return self._events

    @event_queue.setter
    def event_queue(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, queue: EventQueue | None
    ) -> None:
        self._events = queue
        if queue is not None:
            self._fill(queue)

    def _fill(self, queue: EventQueue) -> None:
        for event in self._early:
            queue.put_nowait(event)
        self._early.clear()
        if self.is_done:
            queue.put_nowait(None)

    def _event_queue(self) -> EventQueue:
        if self._events is None:
            latest = self.params.latest_update_only
            self._events = LatestUpdateQueue() if latest else asyncio.Queue()
            self._fill(self._events)
        return self._events

    def push(self, event: JobGroupEvent, *, heard: bool = True) -> None:
        """Queue an event for the reader of the group.

        Args:
            event: An update or a stream event of an asked worker.
            heard: Whether no hook has to hear it first; see :meth:`heard`.
        """
        if self._keeps_events:
            self._event_queue().put_nowait(event)
        elif self._events is not None:
            self._events.put_nowait(event)
        elif not self.dispatched:
            self._early.append(event)
        if (window := self._window_of(event)) is not None:
            window.arrived(heard=heard, kept=self._keeps_events)

    def heard(self, event: JobGroupEvent) -> None:
        """Note that the hooks have heard an event.

        Args:
            event: One that was pushed before they had.
        """
        if (window := self._window_of(event)) is not None:
            window.heard()

    async def next_event(self) -> JobGroupEvent | None:
        """Wait for the next event; from now on a worker that streams waits for its reader.

        Returns:
            The event, or None after the last, however often it is asked for.
        """
        if not self._reading:
            self.reading(True)
        queue = self._event_queue()
        event = await queue.get()
        if event is None:
            # Left for the next loop over the same job, which has to end as well.
            queue.put_nowait(None)
        elif (window := self._window_of(event)) is not None:
            window.read()
        return event

    def reading(self, reading: bool) -> None:
        """Say whether events are being read, and workers held up that stream faster.

        Args:
            reading: Whether they are.
        """
        self._reading = reading
        for window in self._windows.values():
            window.reading(reading)

    def window(self, worker_name: str) -> StreamWindow | None:
        """Give what holds a worker up that streams faster than it is read.

        Args:
            worker_name: A worker that owes an answer.

        Returns:
            The worker's window, or None when it may stream as fast as it can.
        """
        if self.is_done or not self.params.unread_limit or not self.awaits(worker_name):
            return None
        window = self._windows.get(worker_name)
        if window is None:
            window = self._windows[worker_name] = StreamWindow(self.params.unread_limit)
            window.reading(self._reading)
        return window

    def _window_of(self, event: JobGroupEvent) -> StreamWindow | None:
        if event.type != JobGroupEvent.STREAM_DATA:
            return None
        return self._windows.get(event.worker_name)

    # -- the end -----------------------------------------------------------------------------

    def complete(self) -> None:
        """Wake the tasks that wait for the group. Does nothing the second time."""
        if self.is_done:
            return
        if self.deadline is not None:
            self.deadline.clear()
        if self.timeout_task is not None and self.timeout_task is not asyncio.current_task():
            self.timeout_task.cancel()
        super().complete()
        if self.dispatcher is not None:
            self.dispatcher.interrupt()

    def fail(self, reason: str | None = None) -> None:
        """End the group as cancelled.

        Args:
            reason: Why, as a sentence.
        """
        self.settle_pending(OutcomeStatus.CANCELLED, reason=reason, cancel_reason=self.ending)
        self.complete()

    def failure(self) -> JobError:
        """Build the exception that says how the group failed.

        Returns:
            A new exception each time, since several tasks may raise it.
        """
        return failure_of(
            job_id=self.job_id,
            job_name=self.params.name,
            outcomes=self.outcomes,
            first=self._first,
            single=self._single,
            timeout=self.params.timeout,
            unready=self.unready,
            known_workers=self._known_workers,
            loop_blocked=self._loop_blocked,
            sharing_loop=self._sharing_loop,
            bus_problem=self._bus.problem() if self._bus is not None else None,
            bus_failure=self._bus_failure,
        )

    def note_known_workers(self, names: Iterable[str]) -> None:
        """Keep who was known when a worker was not, for the error message.

        Args:
            names: The registry's workers.
        """
        self._known_workers = sorted(names)

    def note_blocked_loop(self, sharing: Sequence[str]) -> None:
        """Keep for how long the event loop did not run when the deadline passed, if it did not.

        Args:
            sharing: The late workers that run in the requester's event loop.
        """
        if self.deadline is not None:
            self._loop_blocked = self.deadline.blocked
            self._sharing_loop = sharing

    async def until_bus_started(self, bus: StartableBus) -> None:
        """Wait until the requests can be sent, and keep why not for the error message.

        Args:
            bus: The requester's bus.

        Raises:
            Exception: What the bus raised when it was started.
        """
        self._bus = bus
        try:
            await bus.until_started()
        except Exception as error:
            self._bus_failure = error
            raise

    async def wait(self) -> None:
        """Wait until the group is done.

        Raises:
            JobError: If it did not complete; for a group, a ``JobGroupError``.
        """
        await super().wait()
        if self.failed:
            raise self.failure()
