"""What this worker asked of others."""

import asyncio
from dataclasses import dataclass

from loguru import logger
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobStreamEndMessage,
    BusJobStreamStartMessage,
    BusJobUpdateRequestMessage,
)
from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from pipecat.pipeline.job_context import JobGroupEvent, JobGroupResponse, JobStatus
from pipecat.registry import WorkerRegistry
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs.deadline import Deadline
from pipecat_jobs.errors import InvalidJobError, UnknownJobError
from pipecat_jobs.groups import JobGroup
from pipecat_jobs.hooks import REQUESTER_EVENTS, Hooks, Steps, guarded
from pipecat_jobs.liveness import Liveness, WhenStopped
from pipecat_jobs.messages import (
    JobMessage,
    ResponseMessage,
    StreamMessage,
    UpdateMessage,
    answered_status,
)
from pipecat_jobs.outcomes import ErrorDetails, OutcomeStatus
from pipecat_jobs.params import JobGroupParams
from pipecat_jobs.readiness import until_ready
from pipecat_jobs.recent import Recent

#: Seconds that the workers' cancels may take to be sent before the caller goes on without them.
CANCEL_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a context says of the group it is about to dispatch."""

    events: asyncio.Queue[JobGroupEvent | None]
    single: bool


class Requester:
    """The asking half of a worker: its job groups, from the call to the outcome.

    Args:
        worker: The worker that asks.
        hooks: Its hooks.
        when_stopped: See :class:`~pipecat_jobs.liveness.Liveness`.
    """

    def __init__(
        self,
        worker: BaseWorker,
        hooks: Hooks,
        when_stopped: WhenStopped,
    ):
        self._worker = worker
        self._hooks = hooks
        self._liveness = Liveness(worker, self.lost, when_stopped)
        # The worker's own ``job_groups``: Pipecat's workers look their groups up there.
        self._groups: dict[str, PipecatJobGroup] = worker.job_groups
        self._expected: dict[str, _Expected] = {}
        self._unacknowledged: Recent[str, set[str]] = Recent()
        self._used: Recent[str, None] = Recent()
        self._in_place = not hooks.overrides(*REQUESTER_EVENTS)
        self._stopped = False

    # -- asking ------------------------------------------------------------------------------

    def expect(self, job_id: str, *, single: bool) -> asyncio.Queue[JobGroupEvent | None]:
        """Announce a group that a context is about to dispatch, to miss none of its events.

        Args:
            job_id: The id it will have.
            single: Whether one worker is asked on its own, with ``job()``.

        Returns:
            Where the events will arrive; None after the last.
        """
        self._check_id(job_id)
        if job_id in self._expected:
            raise self._refused_id(job_id, "is in use")
        events: asyncio.Queue[JobGroupEvent | None] = asyncio.Queue()
        self._expected[job_id] = _Expected(events, single)
        return events

    def unexpect(self, job_id: str) -> None:
        """Forget :meth:`expect`, whether or not the dispatch came to something.

        Args:
            job_id: The id that was given.
        """
        self._expected.pop(job_id, None)

    async def dispatch(self, worker_names: list[str], params: JobGroupParams) -> PipecatJobGroup:
        """Start a group through the worker's own method, which workers extend.

        Args:
            worker_names: Whom to ask.
            params: How, its ``job_id`` included.

        Returns:
            The group.
        """
        assert params.job_id is not None
        before = self._groups.get(params.job_id)
        try:
            return await self._worker.create_job_group_and_request_job(worker_names, params=params)
        except BaseException as error:
            # What extends the method may fail, or be cancelled, after the requests have gone out.
            group = self._groups.get(params.job_id)
            if group is not None and group is not before:
                await self.end(group, f"dispatch cut off by {type(error).__name__}")
            raise

    def _check_id(self, job_id: str) -> None:
        if job_id in self._groups:
            raise self._refused_id(job_id, "is in use")
        if job_id in self._used:
            # What is still under way for the earlier job would be taken for this one's.
            raise self._refused_id(job_id, "was used before")

    def _refused_id(self, job_id: str, why: str) -> InvalidJobError:
        return InvalidJobError(
            f"job id '{job_id}' {why} by worker '{self._worker.name}'; give another one"
        )

    async def ask(self, worker_names: list[str], params: JobGroupParams) -> JobGroup:
        """Wait for workers to be ready and send each its request.

        Args:
            worker_names: Checked names.
            params: Checked parameters.

        Returns:
            The group, dispatched.

        Raises:
            JobError: If it ended before every request was sent.
            InvalidJobError: If the job id is in use.
        """
        assert params.job_id is not None
        job_id = params.job_id
        self._check_id(job_id)
        registry = self._worker.registry
        expected = self._expected.get(job_id)
        single = expected is not None and expected.single
        group = JobGroup(job_id, worker_names, params, single=single)
        group.steps = Steps(
            self._worker, in_place=self._in_place, held=True, then=lambda: self._conclude(group)
        )
        if self._stopped:
            group.fail(f"worker '{self._worker.name}' has stopped")
            raise group.failure()
        if expected is not None:
            group.event_queue = expected.events
        self._groups[job_id] = group
        self._used.remember(job_id, None)
        group.deadline = Deadline(params.timeout, lambda: self._expired(group))
        try:
            await self._reach_workers(group, registry)
        except asyncio.CancelledError:
            await self._close(group, OutcomeStatus.CANCELLED, reason="caller cancelled")
            raise
        except Exception as error:
            await self._close(group, OutcomeStatus.ERROR, error=ErrorDetails.from_exception(error))
            raise group.failure() from error
        finally:
            group.dispatched = not group.is_done
            group.steps.release()
        if group.is_done and group.failed:
            raise group.failure()
        return group

    async def _reach_workers(self, group: JobGroup, registry: WorkerRegistry) -> None:
        try:
            async with asyncio.timeout(None) as group.cut_off:
                missing = [name for name in group.worker_names if name not in registry]
                if missing:
                    known = [*registry.local_workers, *registry.remote_workers]
                    group.note_known_workers(known)
                    await until_ready(registry, missing)
                for name in group.worker_names:
                    if group.failed:
                        break
                    await self._send_request(group, name)
        except TimeoutError:
            if not group.is_done:
                raise
        finally:
            group.cut_off = None

    async def _send_request(self, group: JobGroup, name: str) -> None:
        group.asks(name)
        if (reason := self._liveness.gone(name)) is not None:
            self._worker.create_task(self._settle_lost(group, name, reason), "job_lost")
            return
        self._liveness.watch(name, group.job_id)
        await self._worker.send_bus_message(
            BusJobRequestMessage(
                source=self._worker.name,
                target=name,
                job_id=group.job_id,
                job_name=group.params.name,
                payload=group.params.payload,
            )
        )

    async def request_update(self, job_id: str, worker_name: str) -> None:
        """Ask a worker how far it is.

        Args:
            job_id: An open group.
            worker_name: A worker of it that has not ended.

        Raises:
            UnknownJobError: If the group, or that worker's part of it, is not open.
        """
        group = self._groups.get(job_id)
        if not isinstance(group, JobGroup) or not group.awaits(worker_name):
            raise UnknownJobError(
                self._worker.name, job_id, ended=group is not None, open_jobs=self._groups
            )
        await self._worker.send_bus_message(
            BusJobUpdateRequestMessage(source=self._worker.name, target=worker_name, job_id=job_id)
        )

    # -- what comes back ---------------------------------------------------------------------

    async def on_response(self, message: ResponseMessage) -> None:
        """Take a worker's answer.

        Args:
            message: The answer, well formed.
        """
        group = self._awaited(message)
        if group is None:
            await self._acknowledged(message)
            return
        status = OutcomeStatus(str(answered_status(message)))
        if status is OutcomeStatus.COMPLETED:
            self._settle(group, message.source, status, message.response)
        elif status is OutcomeStatus.CANCELLED:
            reason = (message.response or {}).get("reason")
            text = reason if isinstance(reason, str) else f"worker '{message.source}' cancelled it"
            self._settle(group, message.source, status, reason=text)
        else:
            group.failing = group.failing or message
            error = ErrorDetails.from_response(message.response)
            self._settle(group, message.source, status, message.response, error)
        await self._hear(group, "on_job_response", message)

    async def on_stream_end(self, message: BusJobStreamEndMessage) -> None:
        """Take the end of a streamed answer, which is the answer.

        Args:
            message: The end, well formed.
        """
        group = self._awaited(message)
        if group is None:
            self._ignored(message)
            return
        self._settle(group, message.source, OutcomeStatus.COMPLETED, message.data)
        group.push(JobGroupEvent(JobGroupEvent.STREAM_END, message.source, message.data))
        await self._hear(group, "on_job_stream_end", message)

    async def on_update(self, message: UpdateMessage) -> None:
        """Take a progress update.

        Args:
            message: The update, well formed.
        """
        await self._on_event("on_job_update", JobGroupEvent.UPDATE, message, message.update)

    async def on_stream(self, message: StreamMessage) -> None:
        """Take the start or a chunk of a streamed answer.

        Args:
            message: The stream message, well formed.
        """
        if isinstance(message, BusJobStreamStartMessage):
            hook, kind = "on_job_stream_start", JobGroupEvent.STREAM_START
        else:
            hook, kind = "on_job_stream_data", JobGroupEvent.STREAM_DATA
        await self._on_event(hook, kind, message, message.data)

    async def _on_event(
        self,
        hook: str,
        kind: str,
        message: UpdateMessage | StreamMessage,
        data: dict[str, object] | None,
    ) -> None:
        group = self._awaited(message)
        if group is None or group.failed:
            self._ignored(message)
            return
        group.push(JobGroupEvent(kind, message.source, data))
        await self._hear(group, hook, message)

    async def _hear(self, group: JobGroup, hook: str, message: JobMessage) -> None:
        await group.steps.run(lambda: self._hooks.fire(hook, message))

    def _awaited(self, message: JobMessage) -> JobGroup | None:
        group = self._groups.get(message.job_id)
        if isinstance(group, JobGroup) and group.awaits(message.source):
            return group
        return None

    def _ignored(self, message: JobMessage) -> None:
        logger.debug(
            f"Worker '{self._worker.name}': ignoring {message} for job '{message.job_id}': "
            f"it owes no answer from '{message.source}'"
        )

    async def _acknowledged(self, message: ResponseMessage) -> None:
        # Pipecat promises the hook the CANCELLED answer to a cancel, which by then ends nothing.
        told = self._unacknowledged.get(message.job_id)
        if (
            told is None
            or message.source not in told
            or answered_status(message) is not JobStatus.CANCELLED
        ):
            self._ignored(message)
            return
        told.discard(message.source)
        if not told:
            self._unacknowledged.take(message.job_id)
        await Steps(self._worker, in_place=self._in_place).run(
            lambda: self._hooks.fire("on_job_response", message)
        )

    def _settle(
        self,
        group: JobGroup,
        name: str,
        status: OutcomeStatus,
        response: dict[str, object] | None = None,
        error: ErrorDetails | None = None,
        reason: str | None = None,
    ) -> None:
        self._liveness.unwatch(name, group.job_id)
        group.terminated.add(name)
        group.settle(name, status, response, error, reason)

    async def _conclude(self, group: JobGroup) -> None:
        """End a group once everything that arrived for it has been heard."""
        if group.concluded or (group.pending and not group.failed):
            return
        group.concluded = True
        if group.failed:
            if group.failing is not None:
                await self._hooks.fire("on_job_error", group.failing)
            await self.end(group, group.verdict)
            return
        self._groups.pop(group.job_id, None)
        result = JobGroupResponse(job_id=group.job_id, responses=group.responses)
        await self._hooks.fire("on_job_completed", result)
        group.complete()

    # -- workers that went away --------------------------------------------------------------

    def lost(self, name: str, reason: str) -> None:
        """End every job that a worker still owes.

        Args:
            name: The worker that is gone.
            reason: How that is known.
        """
        for group in list(self._groups.values()):
            if isinstance(group, JobGroup) and group.awaits(name):
                self._worker.create_task(self._settle_lost(group, name, reason), "job_lost")

    async def _settle_lost(self, group: JobGroup, name: str, reason: str) -> None:
        if not group.awaits(name):
            return
        logger.warning(f"Worker '{self._worker.name}': lost '{name}': {reason}")
        error = ErrorDetails("WorkerLostError", reason)
        self._settle(group, name, OutcomeStatus.LOST, error=error, reason=reason)
        # In the name of the one who cannot: hooks learn of every end the same way.
        message = BusJobResponseMessage(
            source=name,
            target=self._worker.name,
            job_id=group.job_id,
            status=JobStatus.ERROR,
            response=error.to_response(),
        )
        group.failing = group.failing or message
        # It may only be out of reach, and should not work on for nobody.
        self._worker.create_task(self._tell(group.job_id, [name], reason), "job_cancel")
        await self._hear(group, "on_job_response", message)

    # -- giving up ---------------------------------------------------------------------------

    async def cancel(self, job_id: str, reason: str | None) -> None:
        """Call a group off.

        Args:
            job_id: The group; one that is not open is left alone.
            reason: Why, for the workers and the caller.
        """
        group = self._groups.get(job_id)
        if isinstance(group, JobGroup):
            await self._close(group, OutcomeStatus.CANCELLED, reason=reason)

    async def stop(self) -> None:
        """Call every group off, for good: the worker stops."""
        self._stopped = True
        reason = f"worker '{self._worker.name}' stopped"
        for group in list(self._groups.values()):
            await self.end(group, reason)

    def _expired(self, group: JobGroup) -> None:
        if group.pending:
            group.give_up(OutcomeStatus.TIMED_OUT, reason="timeout")
        else:
            logger.warning(f"Worker '{self._worker.name}': a hook of job '{group.job_id}' overran")
        if group.failed:
            group.concluded = True
            self._worker.create_task(self.end(group, "timeout"), "job_timeout")
        else:
            self._groups.pop(group.job_id, None)
            group.complete()

    async def end(self, group: PipecatJobGroup, reason: str) -> None:
        """Call a group off through the worker's own method.

        Workers override ``cancel_job_group()``: a ``UIWorker`` closes its cards there. What the
        override does changes nothing about the end.

        Args:
            group: The group; one that has ended is left alone.
            reason: Why, for the workers and the caller.
        """
        if group.is_done:
            return
        try:
            # A group still being dispatched is unknown to the override.
            if not isinstance(group, JobGroup) or group.dispatched:
                await guarded(
                    f"cancel_job_group() of worker '{self._worker.name}'",
                    lambda: self._worker.cancel_job_group(group.job_id, reason=reason),
                )
        finally:
            if isinstance(group, JobGroup):
                await self._close(group, OutcomeStatus.CANCELLED, reason=reason)

    async def _close(
        self,
        group: JobGroup,
        status: OutcomeStatus,
        *,
        error: ErrorDetails | None = None,
        reason: str | None = None,
    ) -> None:
        """End a group as it stands: first for the caller, then for its workers."""
        group.concluded = True
        group.give_up(status, error=error, reason=reason)
        self._groups.pop(group.job_id, None)
        group.complete()
        owing, group.owing = group.owing, []
        for name in owing:
            self._liveness.unwatch(name, group.job_id)
        if not owing:
            return
        self._unacknowledged.remember(group.job_id, set(owing))
        telling = self._worker.create_task(self._tell(group.job_id, owing, reason), "job_cancel")
        # Waiting on the task leaves it alone when this call is itself cancelled.
        await asyncio.wait({telling}, timeout=CANCEL_GRACE)
        if not telling.done():
            logger.warning(
                f"Worker '{self._worker.name}': the bus has not taken the cancel of job "
                f"'{group.job_id}' for {CANCEL_GRACE:g} s; going on without"
            )

    async def _tell(self, job_id: str, names: list[str], reason: str | None) -> None:
        for name in names:
            await self._worker.send_bus_message(
                BusJobCancelMessage(
                    source=self._worker.name, target=name, job_id=job_id, reason=reason
                )
            )
