"""Cancelling a job: first for the requester that waits, then at the workers still to respond."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from loguru import logger
from pipecat.bus.messages import BusJobCancelMessage
from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs._protocol.hooks import Steps, guarded
from pipecat_jobs._protocol.messages import JobMessage, ResponseMessage, response_status
from pipecat_jobs._protocol.recent import Expiring
from pipecat_jobs._protocol.runtime import JobRuntime
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs._requester.group import JobGroup
from pipecat_jobs._requester.liveness import Liveness
from pipecat_jobs.outcomes import CancelReason, ErrorDetails, OutcomeStatus

#: The worker's own ``cancel_job_group()``: takes a job id and a reason.
CancelGroup: TypeAlias = Callable[[str, str], Awaitable[None]]

#: Seconds to wait until the bus has taken the cancels; then the requester goes on without.
CANCEL_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class _Cancelled:
    """The workers of a group that were cancelled, and what runs its hooks in order."""

    names: set[str]
    steps: Steps


class Cancellation:
    """Ends the groups of a worker that do not complete."""

    def __init__(
        self,
        runtime: JobRuntime,
        groups: dict[str, PipecatJobGroup],
        liveness: Liveness,
        cancel_group: CancelGroup,
    ):
        self._runtime = runtime
        self._groups = groups
        self._liveness = liveness
        self._cancel_group = cancel_group
        #: By job id: the workers whose response to the cancel has not come.
        self._unacknowledged: Expiring[str, _Cancelled] = Expiring()

    async def end(self, group: PipecatJobGroup, reason: str, cancel_reason: CancelReason) -> None:
        """Cancel a group through the worker's own method.

        Workers override ``cancel_job_group()``: a ``UIWorker`` closes its cards there. What the
        override does changes nothing about the end.
        """
        if group.is_done:
            return
        if isinstance(group, JobGroup):
            # The worker's own method is only given the sentence.
            group.ending = cancel_reason
        try:
            # A group still being dispatched is unknown to the override.
            if not isinstance(group, JobGroup) or group.dispatcher is None:
                await guarded(
                    f"cancel_job_group() of worker '{self._runtime.name}'",
                    lambda: self._cancel_group(group.job_id, reason),
                )
        finally:
            if isinstance(group, JobGroup):
                await self.cancel(group, reason)

    async def cancel(self, group: JobGroup, reason: str | None) -> None:
        """Cancel a group as it stands."""
        group.abandon_pending(OutcomeStatus.CANCELLED, reason=reason, cancel_reason=group.ending)
        await self._close(group, reason)

    async def fail(self, group: JobGroup, error: ErrorDetails) -> None:
        """End a group whose requests could not be sent."""
        status = OutcomeStatus.FAILED if error.for_llm else OutcomeStatus.ERROR
        group.abandon_pending(status, error=error)
        await self._close(group, None)

    async def _close(self, group: JobGroup, reason: str | None) -> None:
        group.concluded = True
        self._groups.pop(group.job_id, None)
        group.complete()
        await self.cancel_abandoned(group, reason)

    async def cancel_abandoned(self, group: JobGroup, reason: str | None) -> None:
        """Cancel the workers that do not know that their job has an outcome."""
        names = group.take_abandoned()
        if not names:
            return
        for name in names:
            self._liveness.unwatch(name, group.job_id)
        cancelled = self._unacknowledged.get(group.job_id)
        if cancelled is None:
            steps = group.steps or Steps(self._runtime)
            self._unacknowledged.remember(group.job_id, _Cancelled(set(names), steps))
        else:
            cancelled.names.update(names)
        sending = self._runtime.create_task(
            self.send_cancels(group.job_id, names, reason), "job_cancel"
        )
        # Waiting on the task leaves it alone when this call is itself cancelled.
        await asyncio.wait({sending}, timeout=CANCEL_GRACE)
        if not sending.done():
            logger.warning(
                f"Worker '{self._runtime.name}': the bus has not taken the cancel of job "
                f"'{group.job_id}' for {CANCEL_GRACE:g} s; going on without"
            )

    async def send_cancels(self, job_id: str, names: Sequence[str], reason: str | None) -> None:
        """Send a cancel to each worker, whether or not sending it to another failed."""
        task = RunningTask()
        for name in names:
            cancel = BusJobCancelMessage(
                source=self._runtime.name, target=name, job_id=job_id, reason=reason
            )
            try:
                await self._runtime.send(cancel)
            except BaseException as error:
                task.survive(error)
                log_raised(
                    f"Worker '{self._runtime.name}': could not cancel job '{job_id}' at '{name}'",
                    error,
                )

    def steps_after_end(self, message: JobMessage) -> Steps | None:
        """Give what runs the hooks of a job that has ended for a worker that cleans up after it.

        Returns:
            What runs the hooks, or None when the sender was not cancelled, or has acknowledged
            that it was.
        """
        cancelled = self._unacknowledged.get(message.job_id)
        return (
            cancelled.steps if cancelled is not None and message.source in cancelled.names else None
        )

    def acknowledge(self, message: ResponseMessage) -> Steps | None:
        """Note a worker's CANCELLED response to a cancel.

        Returns:
            What runs the hooks for it, or None when it is not the first CANCELLED response of a
            worker that was cancelled.
        """
        cancelled = self._unacknowledged.get(message.job_id)
        if (
            cancelled is None
            or message.source not in cancelled.names
            or response_status(message) is not JobStatus.CANCELLED
        ):
            return None
        cancelled.names.discard(message.source)
        if not cancelled.names:
            self._unacknowledged.take(message.job_id)
        return cancelled.steps
