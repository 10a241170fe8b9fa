"""What this worker asked of others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias, TypeVar, Unpack

from loguru import logger
from pipecat.bus.messages import (
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobStreamEndMessage,
    BusJobStreamStartMessage,
    BusJobUpdateRequestMessage,
)
from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from pipecat.pipeline.job_context import JobGroupEvent, JobGroupResponse, JobStatus
from pipecat.pipeline.job_context import JobGroupParams as PipecatJobGroupParams

from pipecat_jobs._protocol.deadline import Deadline, job_deadline
from pipecat_jobs._protocol.exchange import (
    QuestionNote,
    SteeredNote,
    WithdrawnNote,
    WorkerNote,
    read_worker_note,
)
from pipecat_jobs._protocol.headers import JobHeaders, PlannedHeaders, set_headers
from pipecat_jobs._protocol.hooks import JobHooks
from pipecat_jobs._protocol.interception import Interceptors
from pipecat_jobs._protocol.messages import (
    JobMessage,
    ResponseMessage,
    StreamMessage,
    UpdateMessage,
    response_status,
)
from pipecat_jobs._protocol.recent import Recent
from pipecat_jobs._protocol.runtime import JobRuntime, WorkerHasEnded, WorkersView
from pipecat_jobs._protocol.statements import RESERVED_KEY, read_statement
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs._protocol.text import describe
from pipecat_jobs._requester.call import Call, Dispatch, DispatchedParams
from pipecat_jobs._requester.cancellation import CancelGroup, Cancellation, Cancelled
from pipecat_jobs._requester.exchange import AskedJob, Exchanges, QuestionHook
from pipecat_jobs._requester.group import NOT_NEEDED, Content, JobGroup, Request
from pipecat_jobs._requester.handle import OTHER_ATTEMPT, HandleState, JobHandle, OutcomeFacts
from pipecat_jobs._requester.liveness import Liveness
from pipecat_jobs._requester.open_jobs import list_asked
from pipecat_jobs._requester.policy import FAILED, OPEN
from pipecat_jobs._requester.repeating import Repeating
from pipecat_jobs.errors import InvalidJobError, UnknownJobError
from pipecat_jobs.interceptors import JobCall, JobLifeEventKind
from pipecat_jobs.open_jobs import OpenJob
from pipecat_jobs.outcomes import (
    CancelReason,
    ErrorDetails,
    JobData,
    JobOutcome,
    OutcomeStatus,
)
from pipecat_jobs.params import JobGroupKeywords, check_workers, group_params
from pipecat_jobs.steering import SteerOutcome

#: The worker's own ``create_job_group_and_request_job()``: takes worker names and parameters.
CreateGroup: TypeAlias = Callable[[list[str], DispatchedParams], Awaitable[PipecatJobGroup]]


#: What the hooks of a requester get.
HookMessage: TypeAlias = ResponseMessage | StreamMessage | UpdateMessage | BusJobStreamEndMessage
Message = TypeVar("Message", bound=HookMessage)

# Each job reads them, and reading a member from its enum is slow on Python 3.11.
_RESPONDED, _COMPLETED = JobStatus.COMPLETED, OutcomeStatus.COMPLETED


def _of_job(message: Message, job_id: str) -> Message:
    """Give a message of an attempt the job's id, which hooks know."""
    return message if message.job_id == job_id else replace(message, job_id=job_id)


class Requester:
    """The requesting half of a worker: its job groups, from the call to the outcome."""

    def __init__(
        self,
        runtime: JobRuntime,
        hooks: JobHooks,
        interceptors: Interceptors,
        groups: dict[str, PipecatJobGroup],
        *,
        cancel_group: CancelGroup,
        create_group: CreateGroup | None,
        find_current_job: Callable[[], object | None],
        on_question: QuestionHook,
    ):
        self._runtime = runtime
        self._hooks = hooks
        self._interceptors = interceptors
        self._liveness = Liveness(self.lost)
        self._groups = groups
        #: By the id of an open attempt after the first, which is not a key of `groups`.
        self._later_attempts: dict[str, JobGroup] = {}
        self._cancellation = Cancellation(
            runtime, groups, self._later_attempts, self._liveness, cancel_group
        )
        self._repeating = Repeating(
            runtime, self._later_attempts, self._liveness, self._cancellation, self._ask_again
        )
        self._exchanges = Exchanges(
            runtime,
            self._notify_steered,
            self._notify_question,
            lambda question: interceptors.answer(question, on_question),
        )
        self._create_group = create_group
        #: Finds the job, of another requester, in whose handler a job is asked for.
        self._find_current_job = find_current_job
        #: The ids of its jobs, each with the first worker.
        self._used: Recent[str, str] = Recent()
        self._stopped = False

    # -- asking ------------------------------------------------------------------------------

    def dispatch(self, worker_names: list[str], call: Call) -> Awaitable[PipecatJobGroup]:
        """Start a group, through the worker's own method where its class extends that."""
        if self._create_group is None:
            return self._start(worker_names, call)
        return self._dispatch_through(self._create_group, worker_names, call)

    async def _dispatch_through(
        self, create_group: CreateGroup, worker_names: list[str], call: Call
    ) -> PipecatJobGroup:
        dispatch = Dispatch(call)
        try:
            return await create_group(worker_names, DispatchedParams.carry(dispatch))
        except BaseException as error:
            # What extends the method may fail, or be cancelled, after the requests have gone out.
            group = self._groups.get(dispatch.job_id) if dispatch.job_id is not None else None
            if group is not None:
                await self.end(group, f"dispatch cut off by {type(error).__name__}")
            raise

    async def ask(
        self,
        worker_names: Sequence[str],
        params: PipecatJobGroupParams | None,
        keywords: JobGroupKeywords,
    ) -> JobGroup:
        """Start a group for the worker's own method, or for a bot that calls it."""
        call = Call(group_params(params, keywords, JobGroupKeywords))
        names = check_workers(worker_names, call.params)
        if not isinstance(params, DispatchedParams):
            return await self._start(names, call)
        dispatch = params.dispatch
        call = replace(dispatch.call, params=call.params)
        self._check_id(call.params.job_id)
        dispatch.job_id = call.params.job_id
        return await self._start(names, call)

    def _check_id(self, job_id: str) -> None:
        if job_id in self._groups:
            raise self._refused_id(job_id, "is in use")
        if job_id in self._used:
            # A late message of the earlier job would be taken for one of this job.
            raise self._refused_id(job_id, "was used before")

    def _refused_id(self, job_id: str, why: str) -> InvalidJobError:
        return InvalidJobError(
            f"job id '{job_id}' {why} by worker '{self._runtime.name}'; give another one"
        )

    async def _start(self, worker_names: list[str], call: Call) -> JobGroup:
        params = call.params
        self._check_id(params.job_id)
        workers = self._runtime.workers
        group = JobGroup.for_dispatch(
            worker_names, call, self._runtime.clock(), self._cancel_at, self._exchanges.steer
        )
        timeout, inherited = params.timeout, job_deadline()
        if inherited is not None and (timeout is None or inherited < timeout):
            timeout, group.inherits_deadline = inherited, True
        group.timeout = timeout
        if (outer := self._find_current_job()) is not None:
            group.asked_within = outer
        if self._interceptors.active:
            group.on_settled = partial(self._notify_settled, group)
            for name in worker_names:
                self._notify(JobLifeEventKind.ASKED, group, name)
        if self._stopped:
            group.ending = CancelReason.REQUESTER_STOPPED
            group.fail(f"worker '{self._runtime.name}' has stopped")
            raise group.failure()
        self._groups[group.job_id] = group
        self._used.remember(group.job_id, worker_names[0])
        if timeout is not None:
            group.deadline = Deadline(timeout, partial(self._expired, group))
        if params.partial_after is not None:
            accept = partial(self._accept_partial, group)
            group.partial = Deadline(params.partial_after, accept)
        group.dispatcher = task = RunningTask()
        try:
            if self._interceptors.active:
                await self._send_through_interceptors(group, workers)
            else:
                await self._send_requests(group, workers, params)
        except asyncio.CancelledError as error:
            if not task.resume():
                await self._cancellation.cancel(group, "requester cancelled")
                # redis-py raises a subclass, which asyncio.timeout() of Python 3.11 ignores.
                raise asyncio.CancelledError(*error.args) from error
        except BaseException as error:
            task.survive(error)
            await self._cancellation.fail(group, ErrorDetails.from_exception(error))
            raise group.failure() from error
        finally:
            group.dispatcher = None
            # What was awaited may have swallowed the interruption.
            task.resume()
            if group.steps is not None:
                group.steps.release()
            self._conclude_if_idle(group)
        if group.verdict is FAILED and group.is_done:
            raise group.failure()
        return group

    async def _send_through_interceptors(self, group: JobGroup, workers: WorkersView) -> None:
        params = group.asked
        call = JobCall(
            job_id=group.job_id,
            job_name=params.name,
            requester=self._runtime.name,
            worker_names=tuple(group.worker_names),
            timeout=group.timeout,
            payload=params.payload,
            payloads=params.payloads,
            headers=JobHeaders(run_once=params.run_once, affinity=params.affinity),
        )
        await self._interceptors.ask(
            call, lambda call: self._send_requests(group, workers, call, call.headers)
        )

    def _notify(
        self,
        kind: JobLifeEventKind,
        group: JobGroup,
        worker: str,
        *,
        data: JobData | None = None,
        outcome: JobOutcome | None = None,
        steered: SteerOutcome | None = None,
    ) -> None:
        self._interceptors.notify(
            kind,
            group.job_id,
            group.asked.name,
            self._runtime.name,
            worker,
            data=data,
            outcome=outcome,
            steered=steered,
        )

    def _notify_settled(self, group: JobGroup, outcome: JobOutcome) -> None:
        self._notify(JobLifeEventKind.SETTLED, group, outcome.worker, outcome=outcome)

    async def _send_requests(
        self,
        group: JobGroup,
        workers: WorkersView,
        content: Content,
        headers: JobHeaders | None = None,
    ) -> None:
        params, names = group.asked, group.worker_names
        if group.may_repeat:
            headers = headers or JobHeaders(run_once=params.run_once, affinity=params.affinity)
            group.request = Request(content, replace(headers, find_window=group.window))
            if params.hedge_after is not None and group.asks_in_turn:
                self._repeating.take_turns(group, params.hedge_after)
                names = names[:1]
        missing = workers.find_missing(names)
        if missing and params.need != "all":
            waiting = list(group.waiting)
            for name in missing:
                # A task of its own, which ends with the group: the others are asked now.
                sending = self._send_when_ready(group, workers, name, content, headers)
                waiting.append(self._runtime.create_task(sending, "job_readiness"))
            group.waiting = waiting
        elif missing:
            await self._wait_for_workers(group, workers, missing)
            if group.verdict is FAILED:
                await self._cancellation.end(group, group.failure_reason, CancelReason.GROUP_FAILED)
            missing = ()
        completed = self._complete_headers(group, headers)
        for name in names:
            if group.verdict is FAILED:
                break
            # One that has an outcome was cancelled on its own meanwhile, and is not asked.
            if name not in group.outcomes and name not in missing:
                request = self._begin_attempt(group, workers, name, content, completed)
                if request is not None:
                    await self._runtime.send(request)

    async def _wait_for_workers(
        self, group: JobGroup, workers: WorkersView, missing: list[str]
    ) -> None:
        """Wait until workers are ready, or settle those that are not after ``ready_within``."""
        group.findings.list_known = workers.list_known
        limit = group.asked.ready_within
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                await self._wait_for_bus(group)
                await workers.wait_until_known(missing)
        except TimeoutError:
            if limit is None or not scope.expired():
                raise
            group.findings.not_ready_within = limit
            for name in workers.find_missing(missing):
                if group.handles[name].outcome is None:
                    group.findings.not_ready += (name,)
                    group.abandon(
                        name,
                        OutcomeStatus.TIMED_OUT,
                        reason=f"not ready within {limit:g} s",
                        cancel_reason=CancelReason.DEADLINE,
                    )

    async def _send_when_ready(
        self,
        group: JobGroup,
        workers: WorkersView,
        name: str,
        content: Content,
        headers: JobHeaders | None,
    ) -> None:
        task, handle = RunningTask(), group.handles[name]
        try:
            await self._wait_for_workers(group, workers, [name])
            if handle.outcome is None:
                completed = self._complete_headers(group, headers)
                request = self._begin_attempt(group, workers, name, content, completed)
                if request is not None:
                    await self._runtime.send(request)
        except BaseException as error:
            task.survive(error)
            log_raised(f"Worker '{self._runtime.name}': could not ask '{name}'", error)
            if handle.outcome is None:
                details = ErrorDetails.from_exception(error)
                group.abandon(name, OutcomeStatus.ERROR, error=details)
                await self._cancellation.cancel_abandoned(group, "the request could not be sent")
        self._conclude_if_idle(group)

    @staticmethod
    def _complete_headers(
        group: JobGroup, headers: JobHeaders | None
    ) -> JobHeaders | PlannedHeaders:
        time_left = group.deadline.left if group.deadline is not None else None
        if headers is not None:
            return replace(headers, time_left=time_left, find_window=group.window)
        params = group.asked
        return PlannedHeaders(params.run_once, params.affinity, time_left, group.window)

    def _begin_attempt(
        self,
        group: JobGroup,
        workers: WorkersView,
        name: str,
        content: Content,
        headers: JobHeaders | PlannedHeaders,
    ) -> BusJobRequestMessage | None:
        """Note that a worker is asked; give the request, or None for a worker that has ended."""
        attempt_id = group.mark_sent(name)
        handle = group.handles[name]
        if handle.attempts is not None:
            self._repeating.note_begun(group, handle, attempt_id)
        try:
            self._liveness.watch(workers, name, attempt_id)
        except WorkerHasEnded as ended:
            self._settle_lost(group, name, attempt_id, str(ended))
            return None
        request = BusJobRequestMessage(
            source=self._runtime.name,
            target=name,
            job_id=attempt_id,
            job_name=group.asked.name,
            payload=content.payload if content.payloads is None else content.payloads[name],
        )
        set_headers(request, headers)
        if self._interceptors.active:
            self._notify(JobLifeEventKind.SENT, group, name)
        if handle.exchange is not None:
            self._exchanges.repeat(handle, attempt_id)
        return request

    async def _ask_again(self, group: JobGroup, handle: JobHandle) -> None:
        """Begin another attempt, or the first at a worker that is not asked at once."""
        name, task, request = handle.worker, RunningTask(), None
        try:
            workers = self._runtime.workers
            if workers.find_missing([name]):
                if handle.was_sent and group.deadline is None:
                    # Nothing would end the wait for a worker that does not come back.
                    raise WorkerHasEnded(f"worker '{name}' is not known any more")
                if handle.state is HandleState.OPEN:
                    # The attempt beside it may still end the job, however long this takes.
                    await workers.wait_until_known([name])
                else:
                    await self._wait_for_workers(group, workers, [name])
                if handle.outcome is not None:
                    self._conclude_if_idle(group)
                    return
            request = self._begin_further(group, handle, workers)
            if request is not None:
                await self._runtime.send(request)
        except WorkerHasEnded as ended:
            self._settle_lost(group, name, group.mark_sent(name), str(ended))
        except BaseException as error:
            task.survive(error)
            attempt_id = group.mark_sent(name) if request is None else request.job_id
            if handle.awaits(attempt_id):
                details = ErrorDetails.from_exception(error)
                self._settle(group, name, attempt_id, OutcomeStatus.ERROR, error=details)
                self._conclude_if_idle(group)

    def _begin_further(
        self, group: JobGroup, handle: JobHandle, workers: WorkersView
    ) -> BusJobRequestMessage | None:
        planned, attempts = group.request, handle.attempts
        assert planned is not None
        assert attempts is not None
        beside = next(iter(attempts.open), None)
        headers = replace(
            planned.headers,
            attempt=planned.headers.attempt + attempts.begun,
            # The process of the attempt beside it would be chosen again.
            beside=beside,
            time_left=group.deadline.left if group.deadline is not None else None,
        )
        return self._begin_attempt(group, workers, handle.worker, planned.content, headers)

    async def _wait_for_bus(self, group: JobGroup) -> None:
        bus = group.findings.bus = self._runtime.bus
        if bus is None:
            return
        try:
            await bus.until_started()
        except Exception as error:
            group.findings.bus_failure = error
            raise

    def list_open(self) -> Iterator[OpenJob]:
        """List the jobs that have no outcome."""
        return list_asked(self._runtime.name, list(self._groups.values()))

    async def request_update(self, job_id: str, worker_name: str) -> None:
        """Ask a worker how far it is."""
        group = self._groups.get(job_id)
        handle = group.handles.get(worker_name) if isinstance(group, JobGroup) else None
        if handle is None or handle.outcome is not None:
            raise UnknownJobError(
                self._runtime.name, job_id, ended=group is not None, open_jobs=self._groups
            )
        for attempt_id in handle.open_ids:
            await self._runtime.send(
                BusJobUpdateRequestMessage(
                    source=self._runtime.name, target=worker_name, job_id=attempt_id
                )
            )

    async def steer(self, job_id: str, data: JobData, worker_name: str | None) -> SteerOutcome:
        """Steer a job at one worker, and wait until it is known what became of that."""
        group = self._groups.get(job_id)
        if group is None and (asked := self._used.get(job_id)) is not None:
            return SteerOutcome("over", worker_name or asked, "the job has ended")
        if group is None:
            raise UnknownJobError(self._runtime.name, job_id, ended=False, open_jobs=self._groups)
        if not isinstance(group, JobGroup):
            why = "the group of the job is of Pipecat's own class; take JobGroup from pipecat_jobs"
            return SteerOutcome("refused", worker_name or next(iter(group.worker_names)), why)
        names = list(group.handles)
        if worker_name is None and len(names) > 1:
            raise InvalidJobError(
                f"job '{job_id}' is of {len(names)} workers, and a steer is for one of them; give "
                f"worker_name, one of {', '.join(map(repr, names))}"
            )
        handle = group.handles.get(worker_name or names[0])
        if handle is None:
            raise InvalidJobError(
                f"job '{job_id}' is not of worker '{worker_name}'; give worker_name, one of "
                f"{', '.join(map(repr, names))}"
            )
        return await self._exchanges.steer(handle, data)

    def _notify_steered(self, handle: JobHandle, data: JobData, outcome: SteerOutcome) -> None:
        group = self._groups.get(handle.job_id)
        if self._interceptors.active and isinstance(group, JobGroup):
            kind = JobLifeEventKind.STEERED
            self._notify(kind, group, handle.worker, data=data, steered=outcome)

    def _notify_question(self, kind: JobLifeEventKind, handle: JobHandle, data: JobData) -> None:
        group = self._groups.get(handle.job_id)
        if self._interceptors.active and isinstance(group, JobGroup):
            self._notify(kind, group, handle.worker, data=data)

    def find_outer_job(self, job_id: str) -> object | None:
        """Find the job in whose handler an open job was asked for."""
        group = self._groups.get(job_id)
        return group.asked_within if isinstance(group, JobGroup) else None

    # -- what comes back ---------------------------------------------------------------------

    def leaves_to_pipecat(self, job_id: str) -> bool:
        """Return whether an open group is of Pipecat's own class, and completed by Pipecat's code.

        Such a group was put into ``job_groups`` by the bot.
        """
        group = self._groups.get(job_id)
        return group is not None and not isinstance(group, JobGroup)

    def on_response(self, message: ResponseMessage) -> None:
        """Settle a job with its worker's response."""
        group = self._awaited(message)
        if group is None:
            self._unawaited(message)
            return
        status = response_status(message)
        if status is _RESPONDED:
            settled = self._settle(
                group, message.source, message.job_id, _COMPLETED, response=message.response
            )
            if settled:
                group.push_response(message.source, message.response)
        else:
            settled = self._settle_failed(group, message, OutcomeStatus(str(status)))
        if settled:
            self._run_hooks(group, "on_job_response", message)

    def _settle_failed(
        self, group: JobGroup, message: ResponseMessage, status: OutcomeStatus
    ) -> bool:
        name, attempt_id = message.source, message.job_id
        stated, response = read_statement(message.response)
        if status is OutcomeStatus.CANCELLED:
            reason = (response or {}).get("reason")
            text = reason if isinstance(reason, str) else f"worker '{name}' cancelled it"
            why = stated.cancel_reason
            return self._settle(group, name, attempt_id, status, reason=text, cancel_reason=why)
        error = ErrorDetails.from_response(response)
        settled = self._settle(
            group,
            name,
            attempt_id,
            status,
            response=response,
            error=error,
            refusal=stated.refusal,
            held_by=stated.held_by,
        )
        if settled:
            group.failing = group.failing or _of_job(message, group.job_id)
        return settled

    def on_stream_end(self, message: BusJobStreamEndMessage) -> None:
        """Settle a job with the end of its stream, which is the response."""
        group = self._awaited(message)
        if group is None:
            self._ignored(message)
            return
        name, data = message.source, message.data
        self._settle(group, name, message.job_id, _COMPLETED, response=data)
        group.push(JobGroupEvent(JobGroupEvent.STREAM_END, name, data))
        group.push_response(name, data)
        self._run_hooks(group, "on_job_stream_end", message)

    def on_update(self, message: UpdateMessage) -> None:
        """Take a progress update, or a note that the worker has written into one."""
        if message.update and RESERVED_KEY in message.update:
            self._on_note(message, read_worker_note(message.update))
            return
        event = JobGroupEvent(JobGroupEvent.UPDATE, message.source, message.update)
        self._on_event("on_job_update", message, event)

    def _on_note(self, message: UpdateMessage, note: WorkerNote | None) -> None:
        group = self._awaited(message)
        if group is None:
            self._ignored(message)
            return
        handle = group.handles[message.source]
        match note:
            case SteeredNote():
                self._exchanges.on_steered(handle, note)
            case QuestionNote():
                job = AskedJob(handle, group.asked.name, group.label)
                self._exchanges.on_question(job, message.job_id, note)
            case WithdrawnNote():
                self._exchanges.on_withdrawn(handle, note)
            case None:
                self._ignored(message)

    def on_stream(self, message: StreamMessage) -> None:
        """Take the start or a chunk of a streamed response."""
        if isinstance(message, BusJobStreamStartMessage):
            hook, kind = "on_job_stream_start", JobGroupEvent.STREAM_START
        else:
            hook, kind = "on_job_stream_data", JobGroupEvent.STREAM_DATA
        self._on_event(hook, message, JobGroupEvent(kind, message.source, message.data))

    def _on_event(
        self, hook: str, message: UpdateMessage | StreamMessage, event: JobGroupEvent
    ) -> None:
        group = self._awaited(message)
        if group is not None and self._interceptors.active:
            update = event.type == JobGroupEvent.UPDATE
            kind = JobLifeEventKind.UPDATE if update else JobLifeEventKind.STREAM
            self._notify(kind, group, message.source, data=event.data)
        if group is None or group.failed:
            self._run_hooks_late(hook, message)
            return
        if event.type == JobGroupEvent.UPDATE:
            group.note_update(message.source, event.data)
        handle = group.handles[message.source]
        if handle.attempts is not None and event.type != JobGroupEvent.UPDATE:
            self._repeating.follow_stream(group, handle, message.job_id)
        handled = not self._hooks.has_any(hook) or self._runs_hooks_at_once(group, hook)
        group.push(event, handled=handled)
        self._run_hooks(group, hook, message, event)

    def _run_hooks(
        self,
        group: JobGroup,
        hook: str,
        message: HookMessage,
        event: JobGroupEvent | None = None,
    ) -> None:
        if not self._hooks.has_any(hook):
            self._conclude_if_idle(group)
            return
        message = _of_job(message, group.job_id)
        if self._runs_hooks_at_once(group, hook):
            self._hooks.announce(hook, message)
            self._conclude(group)
        else:
            group.find_steps(self._runtime).run(partial(self._fire, group, hook, message, event))

    def _runs_hooks_at_once(self, group: JobGroup, hook: str) -> bool:
        return not (group.holds_hooks or self._hooks.overrides(hook))

    async def _fire(
        self, group: JobGroup, hook: str, message: JobMessage, event: JobGroupEvent | None
    ) -> None:
        await self._hooks.fire(hook, message)
        if event is not None:
            group.events.note_handled(event)
        if group.find_steps(self._runtime).last:
            self._conclude(group)

    def _find_group(self, attempt_id: str) -> PipecatJobGroup | None:
        """Find the group of an attempt; the first attempt at a job has the group's id."""
        group = self._groups.get(attempt_id)
        return group if group is not None else self._later_attempts.get(attempt_id)

    def _awaited(self, message: JobMessage) -> JobGroup | None:
        group = self._find_group(message.job_id)
        if not isinstance(group, JobGroup) or not group.awaits(message.source, message.job_id):
            return None
        if group.deadline is not None and group.deadline.blocked:
            # The event loop was blocked and its timer is late: the deadline has passed.
            self._expired(group)
            return None
        return group

    def _ignored(self, message: JobMessage) -> None:
        logger.debug(
            f"Worker '{self._runtime.name}': ignoring {describe(message)} for job "
            f"'{message.job_id}': '{message.source}' does not owe it a response"
        )

    def _unawaited(self, message: ResponseMessage) -> None:
        # Pipecat promises on_job_response the CANCELLED response to a cancel; the group has ended.
        self._fire_late("on_job_response", message, self._cancellation.acknowledge(message))

    def _run_hooks_late(self, hook: str, message: UpdateMessage | StreamMessage) -> None:
        # A cancelled worker may send updates until its CANCELLED response.
        group = self._find_group(message.job_id)
        if not isinstance(group, JobGroup):
            cancelled = self._cancellation.find_cancelled(message)
        elif group.owes(message.source, message.job_id):
            cancelled = Cancelled(group.job_id, group.find_steps(self._runtime))
        else:
            cancelled = None
        self._fire_late(hook, message, cancelled)

    def _fire_late(self, hook: str, message: HookMessage, cancelled: Cancelled | None) -> None:
        if cancelled is None:
            self._ignored(message)
            return
        message, steps = _of_job(message, cancelled.job_id), cancelled.steps
        if steps.busy or self._hooks.overrides(hook):
            steps.run(partial(self._hooks.fire, hook, message))
        else:
            self._hooks.announce(hook, message)

    def _settle(
        self,
        group: JobGroup,
        name: str,
        attempt_id: str,
        status: OutcomeStatus,
        **facts: Unpack[OutcomeFacts],
    ) -> bool:
        """Settle a job with the end of an attempt; False when another attempt decides."""
        self._liveness.unwatch(name, attempt_id)
        exchange = group.handles[name].exchange
        if exchange is not None:
            exchange.end_attempt(attempt_id)
        attempts = group.handles[name].attempts
        if attempts is not None and self._repeating.goes_on(
            group, group.handles[name], attempt_id, status, facts
        ):
            return False
        group.terminated.add(name)
        group.settle(name, status, facts)
        if attempts is not None and attempts.open:
            cancelling = self._cancellation.cancel_abandoned(group, OTHER_ATTEMPT)
            self._runtime.create_task(cancelling, "job_not_needed")
        return True

    def _conclude_if_idle(self, group: JobGroup) -> None:
        """End a group for which nothing has arrived; what runs its hooks ends it otherwise."""
        if group.verdict is not OPEN and not group.holds_hooks:
            self._conclude(group)

    def _conclude(self, group: JobGroup) -> None:
        """End a group once the hooks have run for everything that arrived for it."""
        if group.concluded or group.verdict is OPEN:
            return
        group.concluded = True
        if group.verdict is FAILED:
            group.find_steps(self._runtime).run(partial(self._fail, group))
            return
        self._groups.pop(group.job_id, None)
        if group.has_abandoned:
            # A success that does not need everybody.
            cancelling = self._cancellation.cancel_abandoned(group, NOT_NEEDED)
            self._runtime.create_task(cancelling, "job_not_needed")
        if self._hooks.overrides("on_job_completed"):
            group.find_steps(self._runtime).run(partial(self._announce_completion, group))
            return
        if self._hooks.listens("on_job_completed"):
            self._hooks.announce("on_job_completed", self._result_of(group))
        group.complete()

    async def _fail(self, group: JobGroup) -> None:
        if group.failing is not None:
            await self._hooks.fire("on_job_error", group.failing)
        await self._cancellation.end(group, group.failure_reason, CancelReason.GROUP_FAILED)

    async def _announce_completion(self, group: JobGroup) -> None:
        await self._hooks.fire("on_job_completed", self._result_of(group))
        group.complete()

    @staticmethod
    def _result_of(group: JobGroup) -> JobGroupResponse:
        return JobGroupResponse(job_id=group.job_id, responses=group.responses)

    # -- workers that went away --------------------------------------------------------------

    def lost(self, name: str, reason: str, job_id: str | None = None) -> None:
        """Settle as lost what a worker has not responded to; ``job_id`` limits that to one job."""
        groups = list(self._groups.values()) if job_id is None else [self._find_group(job_id)]
        for group in groups:
            handle = group.handles.get(name) if isinstance(group, JobGroup) else None
            if handle is None or handle.state is not HandleState.OPEN:
                continue
            assert isinstance(group, JobGroup)
            for attempt_id in handle.open_ids:
                if job_id in (None, attempt_id):
                    self._settle_lost(group, name, attempt_id, reason)

    def _settle_lost(self, group: JobGroup, name: str, attempt_id: str, reason: str) -> None:
        logger.warning(f"Worker '{self._runtime.name}': lost '{name}': {reason}")
        error = ErrorDetails("WorkerLostError", reason)
        settled = self._settle(
            group, name, attempt_id, OutcomeStatus.LOST, error=error, reason=reason
        )
        # The worker may only be out of reach, and would finish work that is not needed.
        self._runtime.create_task(
            self._cancellation.send_cancels([(attempt_id, name)], reason), "job_cancel"
        )
        if not settled:
            return
        # In the name of the lost worker: hooks get the same message for every end.
        message = BusJobResponseMessage(
            source=name,
            target=self._runtime.name,
            job_id=group.job_id,
            status=JobStatus.ERROR,
            response=error.to_response(),
        )
        group.failing = group.failing or message
        self._run_hooks(group, "on_job_response", message)

    # -- cancelling --------------------------------------------------------------------------

    async def cancel(self, job_id: str, reason: str | None) -> None:
        """Cancel a group."""
        group = self._groups.get(job_id)
        if isinstance(group, JobGroup):
            await self._cancellation.cancel(group, reason)

    async def _cancel_at(self, job_id: str, worker_name: str, reason: str) -> None:
        """Cancel a job at one worker; the group's policy decides about the others."""
        group = self._groups[job_id]
        assert isinstance(group, JobGroup)
        group.abandon(
            worker_name,
            OutcomeStatus.CANCELLED,
            reason=reason,
            cancel_reason=CancelReason.REQUESTER_CANCELLED,
        )
        await self._cancellation.cancel_abandoned(group, reason)
        self._conclude_if_idle(group)

    def _accept_partial(self, group: JobGroup) -> None:
        group.accept_partial()
        self._conclude_if_idle(group)

    def accept(self, group: JobGroup) -> None:
        """End a group with the responses so far; the other jobs are not needed."""
        group.accept()
        self._conclude_if_idle(group)

    async def end(self, group: PipecatJobGroup, reason: str) -> None:
        """Cancel a group through the worker's own ``cancel_job_group()``."""
        await self._cancellation.end(group, reason, CancelReason.REQUESTER_CANCELLED)

    async def stop(self) -> None:
        """Cancel every group, and refuse new ones: the worker stops."""
        self._stopped = True
        reason = f"worker '{self._runtime.name}' stopped"
        for group in list(self._groups.values()):
            await self._cancellation.end(group, reason, CancelReason.REQUESTER_STOPPED)

    def _expired(self, group: JobGroup) -> None:
        if group.settled:
            logger.warning(f"Worker '{self._runtime.name}': a hook of job '{group.job_id}' overran")
        else:
            self._note_blocked_loop(group)
            group.abandon_pending(
                OutcomeStatus.TIMED_OUT, reason="timeout", cancel_reason=CancelReason.DEADLINE
            )
        if group.failed:
            group.concluded = True
            ending = self._cancellation.end(group, "timeout", CancelReason.DEADLINE)
            self._runtime.create_task(ending, "job_timeout")
        else:
            self._groups.pop(group.job_id, None)
            group.complete()

    def _note_blocked_loop(self, group: JobGroup) -> None:
        if group.deadline is not None and group.deadline.blocked:
            group.findings.loop_blocked = group.deadline.blocked
            workers = self._runtime.workers
            group.findings.sharing_loop = [
                name for name in group.pending if workers.shares_loop(name)
            ]
