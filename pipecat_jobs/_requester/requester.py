"""What this worker asked of others."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import TypeGuard

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
from pipecat.registry import WorkerRegistry
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._protocol.deadline import Deadline
from pipecat_jobs._protocol.headers import JobHeaders, set_headers
from pipecat_jobs._protocol.hooks import Hooks, Steps
from pipecat_jobs._protocol.interception import Interceptors
from pipecat_jobs._protocol.messages import (
    JobMessage,
    ResponseMessage,
    StreamMessage,
    UpdateMessage,
    response_status,
)
from pipecat_jobs._protocol.recent import Recent
from pipecat_jobs._protocol.statements import read_statement
from pipecat_jobs._protocol.tasks import RunningTask, start_task
from pipecat_jobs._protocol.text import describe
from pipecat_jobs._requester.cancellation import Cancellation
from pipecat_jobs._requester.extended import Call, ExtendedCalls
from pipecat_jobs._requester.group import JobGroup
from pipecat_jobs._requester.liveness import DepartureOf, Liveness
from pipecat_jobs._requester.readiness import StartableBus, until_ready
from pipecat_jobs.errors import InvalidJobError, UnknownJobError, WorkerNotAddedError
from pipecat_jobs.interceptors import JobCall, JobLifeEventKind
from pipecat_jobs.outcomes import (
    CancelReason,
    ErrorDetails,
    JobData,
    JobOutcome,
    JobRefusal,
    OutcomeStatus,
)
from pipecat_jobs.params import JobGroupParams


class Requester:
    """The requesting half of a worker: its job groups, from the call to the outcome."""

    def __init__(
        self,
        worker: BaseWorker,
        hooks: Hooks,
        interceptors: Interceptors,
        departure_of: DepartureOf,
        *,
        extended: bool,
    ):
        self._worker = worker
        self._hooks = hooks
        self._interceptors = interceptors
        self._is_extended = extended
        self._liveness = Liveness(worker, self.lost, departure_of)
        # The worker's own ``job_groups``: Pipecat's workers look their groups up there.
        self._groups: dict[str, PipecatJobGroup] = worker.job_groups
        self._cancellation = Cancellation(worker, self._groups, self._liveness)
        self._extended = ExtendedCalls(worker, self._groups, self._cancellation)
        self._used: Recent[str, None] = Recent()
        self._stopped = False

    # -- asking ------------------------------------------------------------------------------

    async def dispatch(
        self,
        worker_names: list[str],
        params: JobGroupParams,
        *,
        single: bool = False,
        keeps_events: bool = False,
    ) -> PipecatJobGroup:
        """Start a group, through the worker's own method where its class extends that."""
        if not self._is_extended:
            return await self._ask(worker_names, params, single, keeps_events)
        assert params.job_id is not None
        self._check_id(params.job_id)
        return await self._extended.dispatch(worker_names, Call(params, single, keeps_events))

    def has_checked(self, params: PipecatJobGroupParams | None) -> TypeGuard[JobGroupParams]:
        """Tell whether parameters come from :meth:`dispatch`, and need no second check."""
        return self._extended.has_checked(params)

    def _check_id(self, job_id: str) -> None:
        if job_id in self._groups or job_id in self._extended:
            raise self._refused_id(job_id, "is in use")
        if job_id in self._used:
            # A late message of the earlier job would be taken for one of this job.
            raise self._refused_id(job_id, "was used before")

    def _refused_id(self, job_id: str, why: str) -> InvalidJobError:
        return InvalidJobError(
            f"job id '{job_id}' {why} by worker '{self._worker.name}'; give another one"
        )

    async def ask(self, worker_names: list[str], params: JobGroupParams) -> JobGroup:
        """Wait for workers to be ready and send each its request."""
        assert params.job_id is not None
        call = self._extended.take(params.job_id) or Call(params)
        return await self._ask(worker_names, params, call.single, call.keeps_events)

    async def _ask(
        self, worker_names: list[str], params: JobGroupParams, single: bool, keeps_events: bool
    ) -> JobGroup:
        assert params.job_id is not None
        job_id = params.job_id
        self._check_id(job_id)
        try:
            registry = self._worker.registry
        except RuntimeError as error:
            raise WorkerNotAddedError(self._worker.name) from error
        steps = Steps(self._worker, held=True)
        group = JobGroup.for_dispatch(
            job_id, worker_names, params, steps, single=single, keeps_events=keeps_events
        )
        if self._interceptors:
            group.on_settled = partial(self._tell_settled, group)
            for name in worker_names:
                self._tell(JobLifeEventKind.ASKED, group, name)
        if self._stopped:
            group.ending = CancelReason.REQUESTER_STOPPED
            group.fail(f"worker '{self._worker.name}' has stopped")
            raise group.failure()
        self._groups[job_id] = group
        self._used.remember(job_id, None)
        if params.timeout is not None:
            group.deadline = Deadline(params.timeout, lambda: self._expired(group))
        group.dispatcher = task = RunningTask()
        try:
            await self._send_requests(group, registry)
        except asyncio.CancelledError:
            if not task.resume():
                await self._cancellation.cancel(group, "caller cancelled")
                raise
        except BaseException as error:
            task.survive(error)
            await self._cancellation.fail(group, ErrorDetails.from_exception(error))
            raise group.failure() from error
        finally:
            group.dispatcher = None
            # What was awaited may have swallowed the interruption.
            task.resume()
            group.dispatched = not group.is_done
            steps.release()
            if not steps.busy:
                self._conclude(group)
        if group.is_done and group.failed:
            raise group.failure()
        return group

    async def _send_requests(self, group: JobGroup, registry: WorkerRegistry) -> None:
        params = group.params
        headers = JobHeaders(
            run_once=params.run_once, affinity=params.affinity, find_window=group.window
        )
        if not self._interceptors:
            await self._reach_workers(group, registry, params.payload, headers)
            return

        async def send(call: JobCall) -> None:
            headers = replace(call.headers, find_window=group.window)
            await self._reach_workers(group, registry, call.payload, headers)

        call = JobCall(
            job_id=group.job_id,
            job_name=params.name,
            requester=self._worker.name,
            worker_names=tuple(group.worker_names),
            timeout=params.timeout,
            payload=params.payload,
            headers=headers,
        )
        await self._interceptors.ask(call, send)

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
            self._worker.name,
            worker,
            data=data,
            outcome=outcome,
        )

    def _tell_settled(self, group: JobGroup, outcome: JobOutcome) -> None:
        self._tell(JobLifeEventKind.SETTLED, group, outcome.worker, outcome=outcome)

    async def _reach_workers(
        self,
        group: JobGroup,
        registry: WorkerRegistry,
        payload: JobData | None,
        headers: JobHeaders,
    ) -> None:
        missing = [name for name in group.worker_names if name not in registry]
        if missing:
            group.note_known_workers([*registry.local_workers, *registry.remote_workers])
            bus = self._worker.bus
            if isinstance(bus, StartableBus):
                await group.until_bus_started(bus)
            await until_ready(registry, missing)
        for name in group.worker_names:
            if group.failed:
                break
            await self._send_request(group, name, payload, headers)

    async def _send_request(
        self, group: JobGroup, name: str, payload: JobData | None, headers: JobHeaders
    ) -> None:
        group.asks(name)
        if (reason := self._liveness.watch(name, group.job_id)) is not None:
            self._settle_lost(group, name, reason)
            return
        request = BusJobRequestMessage(
            source=self._worker.name,
            target=name,
            job_id=group.job_id,
            job_name=group.params.name,
            payload=payload,
        )
        set_headers(request, headers)
        if self._interceptors:
            self._tell(JobLifeEventKind.SENT, group, name)
        await self._worker.send_bus_message(request)

    async def request_update(self, job_id: str, worker_name: str) -> None:
        """Ask a worker how far it is."""
        group = self._groups.get(job_id)
        if not isinstance(group, JobGroup) or not group.awaits(worker_name):
            raise UnknownJobError(
                self._worker.name, job_id, ended=group is not None, open_jobs=self._groups
            )
        await self._worker.send_bus_message(
            BusJobUpdateRequestMessage(source=self._worker.name, target=worker_name, job_id=job_id)
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
            self._settle(group, message.source, OutcomeStatus.COMPLETED, message.response)
        else:
            self._settle_failed(group, message, OutcomeStatus(str(status)))
        self._hear(group, "on_job_response", message)

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
        self._settle(group, message.source, status, response, error, refusal=stated.refusal)

    def on_stream_end(self, message: BusJobStreamEndMessage) -> None:
        """Settle a job with the end of its stream, which is the response."""
        group = self._awaited(message)
        if group is None:
            self._ignored(message)
            return
        self._settle(group, message.source, OutcomeStatus.COMPLETED, message.data)
        group.push(JobGroupEvent(JobGroupEvent.STREAM_END, message.source, message.data))
        self._hear(group, "on_job_stream_end", message)

    def on_update(self, message: UpdateMessage) -> None:
        """Take a progress update."""
        event = JobGroupEvent(JobGroupEvent.UPDATE, message.source, message.update)
        self._on_event("on_job_update", message, event)

    def on_stream(self, message: StreamMessage) -> None:
        """Take the start or a chunk of a streamed answer."""
        if isinstance(message, BusJobStreamStartMessage):
            hook, kind = "on_job_stream_start", JobGroupEvent.STREAM_START
        else:
            hook, kind = "on_job_stream_data", JobGroupEvent.STREAM_DATA
        self._on_event(hook, message, JobGroupEvent(kind, message.source, message.data))

    def _on_event(
        self, hook: str, message: UpdateMessage | StreamMessage, event: JobGroupEvent
    ) -> None:
        group = self._awaited(message)
        if group is not None and self._interceptors:
            update = event.type == JobGroupEvent.UPDATE
            kind = JobLifeEventKind.UPDATE if update else JobLifeEventKind.STREAM
            self._tell(kind, group, message.source, data=event.data)
        if group is None or group.failed:
            self._hear_late(hook, message)
            return
        heard = not self._hooks.hears(hook) or self._is_heard_at_once(group, hook)
        group.push(event, heard=heard)
        self._hear(group, hook, message, event)

    def _hear(
        self,
        group: JobGroup,
        hook: str,
        message: JobMessage,
        event: JobGroupEvent | None = None,
    ) -> None:
        if self._is_heard_at_once(group, hook):
            self._hooks.announce(hook, message)
            self._conclude(group)
        elif self._hooks.hears(hook):
            self._steps_of(group).run(partial(self._fire, group, hook, message, event))

    def _is_heard_at_once(self, group: JobGroup, hook: str) -> bool:
        return not (self._steps_of(group).busy or self._hooks.overrides(hook))

    def _steps_of(self, group: JobGroup) -> Steps:
        if group.steps is None:
            group.steps = Steps(self._worker)
        return group.steps

    async def _fire(
        self, group: JobGroup, hook: str, message: JobMessage, event: JobGroupEvent | None
    ) -> None:
        await self._hooks.fire(hook, message)
        if event is not None:
            group.heard(event)
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
            f"Worker '{self._worker.name}': ignoring {describe(message)} for job "
            f"'{message.job_id}': it owes no answer from '{message.source}'"
        )

    def _unawaited(self, message: ResponseMessage) -> None:
        # Pipecat promises on_job_response the CANCELLED response to a cancel; the group has ended.
        self._fire_late("on_job_response", message, self._cancellation.acknowledge(message))

    def _hear_late(self, hook: str, message: UpdateMessage | StreamMessage) -> None:
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
        response: dict[str, object] | None = None,
        error: ErrorDetails | None = None,
        reason: str | None = None,
        cancel_reason: CancelReason | None = None,
        refusal: JobRefusal | None = None,
    ) -> None:
        self._liveness.unwatch(name, group.job_id)
        group.terminated.add(name)
        group.settle(name, status, response, error, reason, cancel_reason, refusal)

    def _conclude(self, group: JobGroup) -> None:
        """End a group once everything that arrived for it has been heard."""
        if group.concluded or not (group.failed or group.settled):
            return
        group.concluded = True
        if group.failed:
            self._steps_of(group).run(partial(self._fail, group))
            return
        self._groups.pop(group.job_id, None)
        if self._hooks.overrides("on_job_completed"):
            self._steps_of(group).run(partial(self._announce_completion, group))
            return
        if self._hooks.listens("on_job_completed"):
            self._hooks.announce("on_job_completed", self._result_of(group))
        group.complete()

    async def _fail(self, group: JobGroup) -> None:
        if group.failing is not None:
            await self._hooks.fire("on_job_error", group.failing)
        await self._cancellation.end(group, group.verdict, CancelReason.GROUP_FAILED)

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
        logger.warning(f"Worker '{self._worker.name}': lost '{name}': {reason}")
        error = ErrorDetails("WorkerLostError", reason)
        self._settle(group, name, OutcomeStatus.LOST, error=error, reason=reason)
        # In the name of the lost worker: hooks get the same message for every end.
        message = BusJobResponseMessage(
            source=name,
            target=self._worker.name,
            job_id=group.job_id,
            status=JobStatus.ERROR,
            response=error.to_response(),
        )
        group.failing = group.failing or message
        # The worker may only be out of reach, and would finish work that is not needed.
        start_task(
            self._worker,
            self._cancellation.send_cancels(group.job_id, [name], reason),
            "job_cancel",
        )
        self._hear(group, "on_job_response", message)

    # -- cancelling --------------------------------------------------------------------------

    async def cancel(self, job_id: str, reason: str | None) -> None:
        """Cancel a group."""
        group = self._groups.get(job_id)
        if isinstance(group, JobGroup):
            await self._cancellation.cancel(group, reason)

    async def end(self, group: PipecatJobGroup, reason: str) -> None:
        """Cancel a group through the worker's own ``cancel_job_group()``."""
        await self._cancellation.end(group, reason, CancelReason.REQUESTER_CANCELLED)

    async def stop(self) -> None:
        """Cancel every group, and refuse new ones: the worker stops."""
        self._stopped = True
        reason = f"worker '{self._worker.name}' stopped"
        for group in list(self._groups.values()):
            await self._cancellation.end(group, reason, CancelReason.REQUESTER_STOPPED)

    def _expired(self, group: JobGroup) -> None:
        if group.settled:
            logger.warning(f"Worker '{self._worker.name}': a hook of job '{group.job_id}' overran")
        else:
            group.note_blocked_loop([name for name in group.pending if self._shares_loop(name)])
            group.settle_pending(
                OutcomeStatus.TIMED_OUT, reason="timeout", cancel_reason=CancelReason.DEADLINE
            )
        if group.failed:
            group.concluded = True
            ending = self._cancellation.end(group, "timeout", CancelReason.DEADLINE)
            start_task(self._worker, ending, "job_timeout")
        else:
            self._groups.pop(group.job_id, None)
            group.complete()

    def _shares_loop(self, name: str) -> bool:
        return self._worker.worker_runner.get_worker(name) is not None
