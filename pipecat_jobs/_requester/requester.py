"""What this worker asked of others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias, Unpack

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

from pipecat_jobs._protocol.deadline import Deadline
from pipecat_jobs._protocol.headers import JobHeaders, set_headers
from pipecat_jobs._protocol.hooks import JobHooks, Steps
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
from pipecat_jobs._protocol.statements import read_statement
from pipecat_jobs._protocol.tasks import RunningTask
from pipecat_jobs._protocol.text import describe
from pipecat_jobs._requester.call import Call, Dispatch, DispatchedParams
from pipecat_jobs._requester.cancellation import CancelGroup, Cancellation
from pipecat_jobs._requester.group import NOT_NEEDED, JobGroup
from pipecat_jobs._requester.handle import OutcomeFacts
from pipecat_jobs._requester.liveness import Liveness
from pipecat_jobs._requester.open_jobs import list_asked
from pipecat_jobs._requester.policy import OPEN
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
from pipecat_jobs.params import JobGroupKeywords, check_worker_names, group_params

#: The worker's own ``create_job_group_and_request_job()``: takes worker names and parameters.
CreateGroup: TypeAlias = Callable[[list[str], DispatchedParams], Awaitable[PipecatJobGroup]]


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
    ):
        self._runtime = runtime
        self._hooks = hooks
        self._interceptors = interceptors
        self._liveness = Liveness(self.lost)
        self._groups = groups
        self._cancellation = Cancellation(runtime, groups, self._liveness, cancel_group)
        self._create_group = create_group
        self._used: Recent[str, None] = Recent()
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
        names = check_worker_names(worker_names)
        if not isinstance(params, DispatchedParams):
            return await self._start(names, call)
        dispatch = params.dispatch
        call = replace(dispatch.call, params=call.params)
        self._check_id(call.job_id)
        dispatch.job_id = call.job_id
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
        self._check_id(call.job_id)
        workers = self._runtime.workers
        steps = Steps(self._runtime, held=True)
        group = JobGroup.for_dispatch(
            worker_names, call, steps, self._runtime.clock(), self._cancel_at
        )
        if self._interceptors.active:
            group.on_settled = partial(self._tell_settled, group)
            for name in worker_names:
                self._tell(JobLifeEventKind.ASKED, group, name)
        if self._stopped:
            group.ending = CancelReason.REQUESTER_STOPPED
            group.fail(f"worker '{self._runtime.name}' has stopped")
            raise group.failure()
        self._groups[group.job_id] = group
        self._used.remember(group.job_id, None)
        if params.timeout is not None:
            group.deadline = Deadline(params.timeout, lambda: self._expired(group))
        group.dispatcher = task = RunningTask()
        try:
            if self._interceptors.active:
                await self._send_through_interceptors(group, workers)
            else:
                await self._send_requests(group, workers, params.payload)
        except asyncio.CancelledError:
            if not task.resume():
                await self._cancellation.cancel(group, "requester cancelled")
                raise
        except BaseException as error:
            task.survive(error)
            await self._cancellation.fail(group, ErrorDetails.from_exception(error))
            raise group.failure() from error
        finally:
            group.dispatcher = None
            # What was awaited may have swallowed the interruption.
            task.resume()
            steps.release()
            if not steps.busy:
                self._conclude(group)
        if group.failed and group.is_done:
            raise group.failure()
        return group

    async def _send_through_interceptors(self, group: JobGroup, workers: WorkersView) -> None:
        params = group.params
        call = JobCall(
            job_id=group.job_id,
            job_name=params.name,
            requester=self._runtime.name,
            worker_names=tuple(group.worker_names),
            timeout=params.timeout,
            payload=params.payload,
            headers=JobHeaders(run_once=params.run_once, affinity=params.affinity),
        )
        await self._interceptors.ask(
            call, lambda call: self._send_requests(group, workers, call.payload, call.headers)
        )

    def _tell(
        self,
        kind: JobLifeEventKind,
        group: JobGroup,
        worker: str,
        *,
        data: JobData | None = None,
        outcome: JobOutcome | None = None,
    ) -> None:
        self._interceptors.tell(
            kind,
            group.job_id,
            group.params.name,
            self._runtime.name,
            worker,
            data=data,
            outcome=outcome,
        )

    def _tell_settled(self, group: JobGroup, outcome: JobOutcome) -> None:
        self._tell(JobLifeEventKind.SETTLED, group, outcome.worker, outcome=outcome)

    async def _wait_for_workers(
        self, group: JobGroup, workers: WorkersView, missing: list[str]
    ) -> None:
        group.findings.known_workers = sorted(workers.list_known())
        await self._wait_for_bus(group)
        await workers.wait_until_known(missing)

    async def _send_requests(
        self,
        group: JobGroup,
        workers: WorkersView,
        payload: JobData | None,
        headers: JobHeaders | None = None,
    ) -> None:
        params = group.params
        if missing := workers.find_missing(group.worker_names):
            await self._wait_for_workers(group, workers, missing)
        time_left = group.deadline.left if group.deadline is not None else None
        if headers is None:
            headers = JobHeaders(
                run_once=params.run_once,
                affinity=params.affinity,
                time_left=time_left,
                find_window=group.window,
            )
        else:
            headers = replace(headers, time_left=time_left, find_window=group.window)
        for name, handle in group.handles.items():
            if group.failed:
                break
            if handle.outcome is not None:
                # It was cancelled on its own meanwhile, and is not asked.
                continue
            group.mark_sent(name)
            try:
                self._liveness.watch(workers, name, group.job_id)
            except WorkerHasEnded as ended:
                self._settle_lost(group, name, str(ended))
                continue
            request = BusJobRequestMessage(
                source=self._runtime.name,
                target=name,
                job_id=group.job_id,
                job_name=params.name,
                payload=payload,
            )
            set_headers(request, headers)
            if self._interceptors.active:
                self._tell(JobLifeEventKind.SENT, group, name)
            await self._runtime.send(request)

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
        if not isinstance(group, JobGroup) or not group.awaits(worker_name):
            raise UnknownJobError(
                self._runtime.name, job_id, ended=group is not None, open_jobs=self._groups
            )
        await self._runtime.send(
            BusJobUpdateRequestMessage(source=self._runtime.name, target=worker_name, job_id=job_id)
        )

    # -- what comes back ---------------------------------------------------------------------

    def leaves_to_pipecat(self, job_id: str) -> bool:
        """Tell whether an open group is of Pipecat's own class, and completed by Pipecat's code.

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
        if status is JobStatus.COMPLETED:
            self._settle(group, message.source, OutcomeStatus.COMPLETED, response=message.response)
        else:
            self._settle_failed(group, message, OutcomeStatus(str(status)))
        self._run_hooks(group, "on_job_response", message)

    def _settle_failed(
        self, group: JobGroup, message: ResponseMessage, status: OutcomeStatus
    ) -> None:
        stated, response = read_statement(message.response)
        if status is OutcomeStatus.CANCELLED:
            reason = (response or {}).get("reason")
            text = reason if isinstance(reason, str) else f"worker '{message.source}' cancelled it"
            why = stated.cancel_reason
            self._settle(group, message.source, status, reason=text, cancel_reason=why)
            return
        group.failing = group.failing or message
        error = ErrorDetails.from_response(response)
        self._settle(
            group,
            message.source,
            status,
            response=response,
            error=error,
            refusal=stated.refusal,
            held_by=stated.held_by,
        )

    def on_stream_end(self, message: BusJobStreamEndMessage) -> None:
        """Settle a job with the end of its stream, which is the response."""
        group = self._awaited(message)
        if group is None:
            self._ignored(message)
            return
        self._settle(group, message.source, OutcomeStatus.COMPLETED, response=message.data)
        group.push(JobGroupEvent(JobGroupEvent.STREAM_END, message.source, message.data))
        self._run_hooks(group, "on_job_stream_end", message)

    def on_update(self, message: UpdateMessage) -> None:
        """Take a progress update."""
        event = JobGroupEvent(JobGroupEvent.UPDATE, message.source, message.update)
        self._on_event("on_job_update", message, event)

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
            self._tell(kind, group, message.source, data=event.data)
        if group is None or group.failed:
            self._run_hooks_late(hook, message)
            return
        if event.type == JobGroupEvent.UPDATE:
            group.note_update(message.source, event.data)
        handled = not self._hooks.has_any(hook) or self._runs_hooks_at_once(group, hook)
        group.push(event, handled=handled)
        self._run_hooks(group, hook, message, event)

    def _run_hooks(
        self,
        group: JobGroup,
        hook: str,
        message: JobMessage,
        event: JobGroupEvent | None = None,
    ) -> None:
        if self._runs_hooks_at_once(group, hook):
            self._hooks.announce(hook, message)
            self._conclude(group)
        elif self._hooks.has_any(hook):
            self._steps_of(group).run(partial(self._fire, group, hook, message, event))

    def _runs_hooks_at_once(self, group: JobGroup, hook: str) -> bool:
        return not (self._steps_of(group).busy or self._hooks.overrides(hook))

    def _steps_of(self, group: JobGroup) -> Steps:
        if group.steps is None:
            group.steps = Steps(self._runtime)
        return group.steps

    async def _fire(
        self, group: JobGroup, hook: str, message: JobMessage, event: JobGroupEvent | None
    ) -> None:
        await self._hooks.fire(hook, message)
        if event is not None:
            group.events.note_handled(event)
        if self._steps_of(group).last:
            self._conclude(group)

    def _awaited(self, message: JobMessage) -> JobGroup | None:
        group = self._groups.get(message.job_id)
        if not isinstance(group, JobGroup) or not group.awaits(message.source):
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
        group = self._groups.get(message.job_id)
        if not isinstance(group, JobGroup):
            steps = self._cancellation.steps_after_end(message)
        else:
            steps = self._steps_of(group) if group.owes(message.source) else None
        self._fire_late(hook, message, steps)

    def _fire_late(self, hook: str, message: JobMessage, steps: Steps | None) -> None:
        if steps is None:
            self._ignored(message)
        elif steps.busy or self._hooks.overrides(hook):
            steps.run(partial(self._hooks.fire, hook, message))
        else:
            self._hooks.announce(hook, message)

    def _settle(
        self,
        group: JobGroup,
        name: str,
        status: OutcomeStatus,
        **facts: Unpack[OutcomeFacts],
    ) -> None:
        self._liveness.unwatch(name, group.job_id)
        group.terminated.add(name)
        group.settle(name, status, facts)

    def _conclude(self, group: JobGroup) -> None:
        """End a group once the hooks have run for everything that arrived for it."""
        if group.concluded or group.verdict is OPEN:
            return
        group.concluded = True
        if group.failed:
            self._steps_of(group).run(partial(self._fail, group))
            return
        self._groups.pop(group.job_id, None)
        if group.has_abandoned:
            # A success that does not need everybody.
            cancelling = self._cancellation.cancel_abandoned(group, NOT_NEEDED)
            self._runtime.create_task(cancelling, "job_not_needed")
        if self._hooks.overrides("on_job_completed"):
            self._steps_of(group).run(partial(self._announce_completion, group))
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
        for group in list(self._groups.values()):
            if job_id not in (None, group.job_id):
                continue
            if isinstance(group, JobGroup) and group.awaits(name):
                self._settle_lost(group, name, reason)

    def _settle_lost(self, group: JobGroup, name: str, reason: str) -> None:
        logger.warning(f"Worker '{self._runtime.name}': lost '{name}': {reason}")
        error = ErrorDetails("WorkerLostError", reason)
        self._settle(group, name, OutcomeStatus.LOST, error=error, reason=reason)
        # In the name of the lost worker: hooks get the same message for every end.
        message = BusJobResponseMessage(
            source=name,
            target=self._runtime.name,
            job_id=group.job_id,
            status=JobStatus.ERROR,
            response=error.to_response(),
        )
        group.failing = group.failing or message
        # The worker may only be out of reach, and would finish work that is not needed.
        self._runtime.create_task(
            self._cancellation.send_cancels(group.job_id, [name], reason), "job_cancel"
        )
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
        self._liveness.unwatch(worker_name, group.job_id)
        group.abandon(
            worker_name,
            OutcomeStatus.CANCELLED,
            reason=reason,
            cancel_reason=CancelReason.REQUESTER_CANCELLED,
        )
        await self._cancellation.cancel_abandoned(group, reason)
        if not self._steps_of(group).busy:
            self._conclude(group)

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
