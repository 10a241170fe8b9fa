"""Cancelling a job: first for the requester that waits, then at the workers still to respond."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
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
class Cancelled:
    """The workers of a group that were cancelled, and what runs its hooks in order."""

    job_id: str
    steps: Steps
    names: set[str] = field(default_factory=set)
    attempt_ids: set[str] = field(default_factory=set)


class Cancellation:
    """Ends the groups of a worker that do not complete."""

    def __init__(
        self,
        runtime: JobRuntime,
        groups: dict[str, PipecatJobGroup],
        later_attempts: dict[str, JobGroup],
        liveness: Liveness,
        cancel_group: CancelGroup,
    ):
        self._runtime = runtime
        self._groups = groups
        self._later_attempts = later_attempts
        self._liveness = liveness
        self._cancel_group = cancel_group
        #: By the id of the attempt: the workers whose response to the cancel has not come.
        self._unacknowledged: Expiring[str, Cancelled] = Expiring()

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
        to_cancel: list[tuple[str, str]] = []
        for handle in group.find_abandoned():
            ids = handle.release()
            to_cancel += [(attempt_id, handle.worker) for attempt_id in ids]
            if handle.outcome is None or not handle.outcome.completed:
                self._await_response(group, handle.worker, ids)
        if not to_cancel:
            return
        for attempt_id, name in to_cancel:
            self._liveness.unwatch(name, attempt_id)
            self._later_attempts.pop(attempt_id, None)
        sending = self._runtime.create_task(self.send_cancels(to_cancel, reason), "job_cancel")
        # Waiting on the task leaves it alone when this call is itself cancelled.
        await asyncio.wait({sending}, timeout=CANCEL_GRACE)
        if not sending.done():
            logger.warning(
                f"Worker '{self._runtime.name}': the bus has not taken the cancel of job "
                f"'{group.job_id}' for {CANCEL_GRACE:g} s; going on without"
            )

    def _await_response(self, group: JobGroup, name: str, attempt_ids: Sequence[str]) -> None:
        cancelled = None
        for attempt_id in attempt_ids:
            cancelled = cancelled or self._unacknowledged.get(attempt_id)
            if cancelled is None:
                cancelled = Cancelled(group.job_id, group.find_steps(self._runtime))
            cancelled.names.add(name)
            cancelled.attempt_ids.add(attempt_id)
            self._unacknowledged.remember(attempt_id, cancelled)

    async def send_cancels(self, attempts: Sequence[tuple[str, str]], reason: str | None) -> None:
        """Send a cancel for each attempt at a worker, whether or not sending another failed."""
        task = RunningTask()
        for attempt_id, name in attempts:
            cancel = BusJobCancelMessage(
                source=self._runtime.name, target=name, job_id=attempt_id, reason=reason
            )
            try:
                await self._runtime.send(cancel)
            except BaseException as error:
                task.survive(error)
                log_raised(
                    f"Worker '{self._runtime.name}': could not cancel job '{attempt_id}' "
                    f"at '{name}'",
                    error,
                )

    def find_cancelled(self, message: JobMessage) -> Cancelled | None:
        """Find the group of a message from a worker that cleans up after a cancel.

        Returns:
            The group, or None when the sender was not cancelled, or has acknowledged that it was.
        """
        cancelled = self._unacknowledged.get(message.job_id)
        return cancelled if cancelled is not None and message.source in cancelled.names else None

    def acknowledge(self, message: ResponseMessage) -> Cancelled | None:
        """Note a worker's CANCELLED response to a cancel.

        Returns:
            The group, or None when it is not the first CANCELLED response of a worker that was
            cancelled.
        """
        cancelled = self.find_cancelled(message)
        if cancelled is None or response_status(message) is not JobStatus.CANCELLED:
            return None
        cancelled.names.discard(message.source)
        if not cancelled.names:
            for attempt_id in cancelled.attempt_ids:
                self._unacknowledged.take(attempt_id)
        return cancelled
