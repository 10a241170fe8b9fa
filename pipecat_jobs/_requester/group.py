"""The jobs of one call, as Pipecat's ``JobGroup``: a policy over handles."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from types import MappingProxyType
from typing import Protocol, Self, Unpack, cast

from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from pipecat.pipeline.job_context import JobGroupEvent

from pipecat_jobs._protocol.clock import now
from pipecat_jobs._protocol.deadline import Deadline
from pipecat_jobs._protocol.flow import StreamWindow
from pipecat_jobs._protocol.headers import JobHeaders
from pipecat_jobs._protocol.hooks import Steps
from pipecat_jobs._protocol.messages import ResponseMessage
from pipecat_jobs._protocol.runtime import JobRuntime, StartableBus
from pipecat_jobs._protocol.tasks import RunningTask
from pipecat_jobs._requester.attempts import Attempts
from pipecat_jobs._requester.call import Call
from pipecat_jobs._requester.events import EventQueue, JobEvents
from pipecat_jobs._requester.handle import (
    CancelAt,
    HandleState,
    JobHandle,
    OutcomeFacts,
    SteerAt,
)
from pipecat_jobs._requester.policy import (
    ALL_COMPLETE,
    ALL_END,
    FAILED,
    OPEN,
    SUCCEEDED,
    Policy,
    choose_partial_policy,
    choose_policy,
)
from pipecat_jobs.errors import InvalidJobError, JobError, failure_of
from pipecat_jobs.outcomes import CancelReason, JobData, JobOutcome, OutcomeStatus
from pipecat_jobs.params import CheckedParams, JobGroupParams
from pipecat_jobs.steering import SteerOutcome

#: The type of the event of a worker that has completed, beside the types of Pipecat's events.
RESPONSE = "response"

#: Why a job is cancelled whose group has completed without it.
NOT_NEEDED = "not needed: the group has completed"


async def _refuse_cancel(job_id: str, worker_name: str, reason: str) -> None:
    raise InvalidJobError(
        f"job '{job_id}' at worker '{worker_name}' is of a group that was built by hand; cancel "
        "the whole group with cancel_job_group()"
    )


async def _refuse_steer(handle: JobHandle, data: JobData) -> SteerOutcome:
    raise InvalidJobError(
        f"job '{handle.job_id}' at worker '{handle.worker}' is of a group that was built by hand; "
        "steer it with steer() of the worker that has the group in its job_groups"
    )


@dataclass(slots=True)
class Findings:
    """What was found out while a call ran, for the message of its error.

    Parameters:
        list_known: Lists the workers that are known, once one was waited for.
        loop_blocked: Seconds for which the event loop did not run when the deadline passed.
        sharing_loop: The late workers that run in the requester's event loop.
        bus: The bus for which the call waited.
        bus_failure: What the bus raised when it was started.
        not_ready_within: The seconds of ``ready_within`` that have passed for a worker.
        not_ready: The workers for which they have passed.
    """

    list_known: Callable[[], Sequence[str]] = tuple
    loop_blocked: float = 0.0
    sharing_loop: Sequence[str] = ()
    bus: StartableBus | None = None
    bus_failure: Exception | None = None
    not_ready_within: float | None = None
    not_ready: tuple[str, ...] = ()


class Content(Protocol):
    """What the requests of a call carry: one payload for all workers, or one for each."""

    @property
    def payload(self) -> JobData | None:
        """The payload of each request, unless there is one for each worker."""
        ...

    @property
    def payloads(self) -> Mapping[str, JobData] | None:
        """The payload of each request, by worker."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What each attempt at a job sends."""

    content: Content
    headers: JobHeaders


class JobGroup(PipecatJobGroup):
    """Jobs launched together under one id. Pipecat's ``JobGroup``, with outcomes.

    It is what ``create_job_group_and_request_job()`` returns and ``job_groups`` holds. One that is
    built by hand takes Pipecat's arguments. Put into a worker's ``job_groups`` it is completed by
    the responses of its workers; the code that built it sends the requests.

    Attributes:
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

    #: Seconds from its call to its deadline; None without a deadline.
    timeout: float | None = None
    #: Whether the deadline is that of the work in which it was called.
    inherits_deadline = False
    deadline: Deadline | None = None
    #: The timer of its ``partial_after``.
    partial: Deadline | None = None
    #: The tasks that wait until they may ask one of its workers.
    waiting: Sequence[asyncio.Task[None]] = ()
    #: Whether its end is being announced to the hooks, or to the workers that are cancelled.
    concluded = False
    #: The first response of a worker that did not complete.
    failing: ResponseMessage | None = None
    #: The task that dispatches it, while that is under way.
    dispatcher: RunningTask | None = None
    #: The reason to record if it is cancelled.
    ending = CancelReason.REQUESTER_CANCELLED
    #: The job in whose handler it was asked for; None outside of a handler.
    asked_within: object | None = None
    #: Runs its hooks in order; None until there is one to run.
    steps: Steps | None = None
    #: Whether there may be several attempts at one of its jobs.
    may_repeat = False
    #: What further attempts send; None while there are none.
    request: Request | None = None
    #: Called with each outcome; None while nothing has to know.
    on_settled: Callable[[JobOutcome], None] | None = None
    #: The latest update of each worker that has sent one.
    last_updates: Mapping[str, JobData] = MappingProxyType({})
    _findings: Findings | None = None
    _single = False
    # Set with each outcome, once something waits for them.
    _news: asyncio.Event | None = None

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
        #: The updates and stream events of its jobs.
        self.events = JobEvents(kept=False, latest_only=False, queue=event_queue)
        super().__init__(
            job_id=job_id,
            # Kept as it was given: bots compare it with sets of their own.
            worker_names=cast("list[str]", worker_names),
            responses={} if responses is None else responses,
            timeout_task=timeout_task,
            cancel_on_error=cancel_on_error,
            label=label,
            cancellable=cancellable,
            terminated=set() if terminated is None else terminated,
        )
        #: How it was asked for.
        self.asked = CheckedParams(
            job_id, label=label, cancellable=cancellable, cancel_on_error=cancel_on_error
        )
        policy = ALL_COMPLETE if cancel_on_error else ALL_END
        self._make_handles(policy, now, _refuse_cancel, _refuse_steer)
        for name in worker_names:
            self.mark_sent(name)

    @classmethod
    def for_dispatch(
        cls,
        worker_names: list[str],
        call: Call,
        now: Callable[[], float],
        cancel: CancelAt,
        steer: SteerAt,
    ) -> Self:
        """Build a group that a requester dispatches: none of its workers has been asked."""
        params = call.params
        group = cls.__new__(cls)
        group.events = JobEvents(kept=call.keeps_events, latest_only=params.latest_update_only)
        PipecatJobGroup.__init__(
            group,
            params.job_id,
            worker_names,
            cancel_on_error=params.cancel_on_error,
            label=params.label,
            cancellable=params.cancellable,
        )
        group.asked = params
        group._single = call.single
        policy = call.policy or choose_policy(params)
        new_attempts = None
        if params.retry is not None or params.hedge_after is not None:
            group.may_repeat = True
            hedge_after = None if group.asks_in_turn else params.hedge_after
            new_attempts = partial(Attempts, params.retry, hedge_after, params.run_once)
        group._make_handles(policy, now, cancel, steer, new_attempts)
        return group

    def _make_handles(
        self,
        policy: Policy,
        now: Callable[[], float],
        cancel: CancelAt,
        steer: SteerAt,
        new_attempts: Callable[[], Attempts] | None = None,
    ) -> None:
        self.outcomes: dict[str, JobOutcome] = {}
        #: How it stands.
        self.verdict = OPEN
        # Each job reads these often, and a default of the class takes four times as long to read.
        self._first_failure: JobOutcome | None = None
        self._completed = 0
        self._policy = policy
        self._now = now
        job_id, asked_at = self.job_id, now()
        #: Its jobs, by worker, in the order of the workers.
        self.handles: dict[str, JobHandle] = {}
        for name in self.worker_names:
            attempts = None if new_attempts is None else new_attempts()
            self.handles[name] = JobHandle(job_id, name, asked_at, cancel, steer, attempts)

    @cached_property
    def params(self) -> JobGroupParams:
        """How it was asked for; what its constructor was given, when it was built by hand."""
        return self.asked.to_model(JobGroupParams)

    @property
    def asks_in_turn(self) -> bool:
        """Whether its workers are asked one after the other, and not at once."""
        return self.asked.hedge_after is not None and len(self.worker_names) > 1

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
        """Whether the group has to end without success."""
        return self.verdict is FAILED

    @property
    def failure_reason(self) -> str:
        """Why it fails, as a sentence for the workers whose jobs are cancelled."""
        first = self._first_failure
        assert first is not None
        done = {
            OutcomeStatus.CANCELLED: "cancelled",
            OutcomeStatus.LOST: "was lost",
            OutcomeStatus.TIMED_OUT: "was not ready in time",
        }
        return f"worker '{first.worker}' {done.get(first.status, 'errored')}"

    @property
    def unready(self) -> list[str]:
        """The workers that were not asked in time, because they were not ready."""
        not_ready = self.findings.not_ready
        unasked = {name for name, handle in self.handles.items() if not handle.was_sent}
        if self.asks_in_turn and len(unasked) < len(self.handles):
            # The turn of those without a request has not come.
            unasked.clear()
        return [name for name in self.handles if name in unasked or name in not_ready]

    @property
    def holds_hooks(self) -> bool:
        """Whether a hook that has to run now waits: for others, or for the end of the dispatch."""
        return self.dispatcher is not None if self.steps is None else self.steps.busy

    def find_steps(self, runtime: JobRuntime) -> Steps:
        """Find what runs its hooks in order."""
        if self.steps is None:
            self.steps = Steps(runtime, held=self.holds_hooks)
        return self.steps

    def mark_sent(self, worker_name: str) -> str:
        """Note that a worker's request goes out now, and give the id that it carries."""
        return self.handles[worker_name].mark_sent(self._now())

    def awaits(self, worker_name: str, attempt_id: str) -> bool:
        """Return whether a response from this worker to an attempt counts."""
        handle = self.handles.get(worker_name)
        return handle is not None and handle.awaits(attempt_id)

    def owes(self, worker_name: str, attempt_id: str) -> bool:
        """Return whether a worker owes a response to an attempt, whatever became of the group."""
        handle = self.handles.get(worker_name)
        return handle is not None and handle.owes_response(attempt_id)

    def settle(self, worker_name: str, status: OutcomeStatus, facts: OutcomeFacts) -> None:
        """Record an outcome after which the worker owes nothing, and judge the group."""
        self._judge(self.handles[worker_name].settle(self._now(), status, facts))

    def abandon(
        self, worker_name: str, status: OutcomeStatus, **facts: Unpack[OutcomeFacts]
    ) -> None:
        """Record an outcome that the worker does not know of, and judge the group."""
        self._judge(self.handles[worker_name].abandon(self._now(), status, facts))

    def abandon_pending(self, status: OutcomeStatus, **facts: Unpack[OutcomeFacts]) -> None:
        """End every job that has no outcome, and with them the group."""
        for name in self.pending:
            outcome = self.handles[name].abandon(self._now(), status, facts)
            self._note(outcome)
            if self.verdict is OPEN:
                self.verdict = FAILED
                self._first_failure = outcome

    @property
    def has_abandoned(self) -> bool:
        """Whether workers have to be cancelled that do not know that their job has an outcome."""
        return self._completed < len(self.outcomes) and any(
            handle.state is HandleState.ABANDONED for handle in self.handles.values()
        )

    def find_abandoned(self) -> list[JobHandle]:
        """Find the jobs whose workers have to be cancelled."""
        return [handle for handle in self.handles.values() if handle.state is HandleState.ABANDONED]

    def _judge(self, outcome: JobOutcome) -> None:
        self._note(outcome)
        if self.verdict is not OPEN:
            return
        pending = len(self.worker_names) - len(self.outcomes)
        self.verdict = verdict = self._policy.judge(outcome, self._completed, pending)
        if verdict is FAILED:
            self._first_failure = outcome
        elif pending and verdict is SUCCEEDED:
            self._leave_pending()

    def accept_partial(self) -> None:
        """Succeed with the responses so far, or, if there is none, with the next one."""
        self._policy = choose_partial_policy(self.asked)
        if self._completed:
            self.accept()

    def accept(self) -> None:
        """Succeed with the responses so far, unless it has ended."""
        if self.verdict is OPEN:
            self.verdict = SUCCEEDED
            self._leave_pending()

    def _leave_pending(self) -> None:
        facts = OutcomeFacts(reason=NOT_NEEDED, cancel_reason=CancelReason.NOT_NEEDED)
        for name in self.pending:
            handle = self.handles[name]
            self._note(handle.abandon(self._now(), OutcomeStatus.CANCELLED, facts))
        if self.dispatcher is not None:
            # What it waits for is only needed by jobs that are not needed.
            self.dispatcher.interrupt()

    async def find_outcome(self, number: int) -> JobOutcome | None:
        """Wait for an outcome by its number in the order of ending; None after the last."""
        while len(self.outcomes) <= number:
            if self.settled or self.is_done:
                return None
            self._news = self._news or asyncio.Event()
            self._news.clear()
            await self._news.wait()
        return next(islice(self.outcomes.values(), number, None))

    def _note(self, outcome: JobOutcome) -> None:
        self.outcomes[outcome.worker] = outcome
        if self._news is not None:
            self._news.set()
        completed, response = outcome.completed, outcome.response
        self._completed += completed
        if response is not None or completed:
            self.responses[outcome.worker] = response or {}
        if self.on_settled is not None:
            self.on_settled(outcome)

    # -- what arrives meanwhile --------------------------------------------------------------

    @property
    def event_queue(self) -> EventQueue | None:
        """Where updates and stream events go, and None after the last; None while there are none.

        A queue that is set once the dispatch has returned, as Pipecat's own contexts do, gets what
        came during it.
        """
        return self.events.queue

    @event_queue.setter
    def event_queue(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, queue: EventQueue | None
    ) -> None:
        if queue is not None:
            self.events.use(queue)

    def push(self, event: JobGroupEvent, *, handled: bool = True) -> None:
        """Queue an event for the reader of the group."""
        if self.dispatcher is not None and not self.events.kept and self.events.queue is None:
            self.events.hold(event)
        self.events.push(event, handled=handled)

    def note_update(self, worker_name: str, update: JobData | None) -> None:
        """Keep a worker's latest update, for ``open_jobs``."""
        self.last_updates = {**self.last_updates, worker_name: update or {}}

    def push_response(self, worker_name: str, response: JobData | None) -> None:
        """Queue the response of a worker for the reader of a group."""
        if self.events.kept and not self._single:
            self.events.push(JobGroupEvent(RESPONSE, worker_name, response), handled=True)

    def window(self, worker_name: str) -> StreamWindow | None:
        """Find what limits how far a worker's stream runs ahead of its reader."""
        limit = self.asked.unread_limit
        handle = self.handles.get(worker_name)
        if self.is_done or not limit or handle is None or handle.state is not HandleState.OPEN:
            return None
        return self.events.window(worker_name, limit)

    # -- the end -----------------------------------------------------------------------------

    def complete(self) -> None:
        """Wake the tasks that wait for the group. Does nothing the second time."""
        if self.is_done:
            return
        if self.deadline is not None:
            self.deadline.clear()
        if self.partial is not None:
            self.partial.clear()
        if self.waiting or self.timeout_task is not None:
            self._stop_tasks()
        self.events.closed = True
        super().complete()
        if self.dispatcher is not None:
            self.dispatcher.interrupt()

    def _stop_tasks(self) -> None:
        for task in (*self.waiting, self.timeout_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self.waiting = ()

    def fail(self, reason: str | None = None) -> None:
        """End the group as cancelled.

        Args:
            reason: Why, as a sentence.
        """
        self.abandon_pending(OutcomeStatus.CANCELLED, reason=reason, cancel_reason=self.ending)
        self.complete()

    @property
    def findings(self) -> Findings:
        """What was found out while it ran."""
        if self._findings is None:
            self._findings = Findings()
        return self._findings

    def failure(self) -> JobError:
        """Build the exception that says how the group failed.

        Returns:
            A new exception each time, since several tasks may raise it.
        """
        findings = self.findings
        return failure_of(
            job_id=self.job_id,
            job_name=self.asked.name,
            outcomes=self.outcomes,
            first=self._first_failure,
            single=self._single,
            timeout=self.timeout,
            inherited=self.inherits_deadline,
            need=self.asked.need,
            unready=self.unready,
            not_ready_within=findings.not_ready_within,
            known_workers=sorted(findings.list_known()),
            loop_blocked=findings.loop_blocked,
            sharing_loop=findings.sharing_loop,
            bus_problem=findings.bus.find_problem() if findings.bus is not None else None,
            bus_failure=findings.bus_failure,
        )

    async def until_done(self) -> None:
        """Wait until the group is done, whether or not it completed."""
        await super().wait()

    async def wait(self) -> None:
        """Wait until the group is done.

        Raises:
            JobError: If it did not complete; for a group, a ``JobGroupError``.
        """
        await super().wait()
        if self.verdict is FAILED:
            raise self.failure()
