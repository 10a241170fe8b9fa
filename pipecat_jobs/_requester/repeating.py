"""Beginning the attempts at a job after the first, and following which one decides."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import TypeAlias

from loguru import logger

from pipecat_jobs._protocol.runtime import JobRuntime
from pipecat_jobs._requester.cancellation import Cancellation
from pipecat_jobs._requester.group import JobGroup
from pipecat_jobs._requester.handle import OTHER_ATTEMPT, JobHandle, OutcomeFacts
from pipecat_jobs._requester.liveness import Liveness
from pipecat_jobs._requester.policy import OPEN
from pipecat_jobs.outcomes import CancelReason, OutcomeStatus

#: Begins an attempt at a job: waits for the worker, and sends a request.
Ask: TypeAlias = Callable[[JobGroup, JobHandle], Awaitable[None]]


class Repeating:
    """Begins the further attempts at the jobs of a worker with ``retry`` or ``hedge_after``."""

    def __init__(
        self,
        runtime: JobRuntime,
        later_attempts: dict[str, JobGroup],
        liveness: Liveness,
        cancellation: Cancellation,
        ask: Ask,
    ):
        self._runtime = runtime
        self._later_attempts = later_attempts
        self._liveness = liveness
        self._cancellation = cancellation
        self._ask = ask

    def note_begun(self, group: JobGroup, handle: JobHandle, attempt_id: str) -> None:
        """Note an attempt whose request is about to be sent."""
        attempts = handle.attempts
        assert attempts is not None
        if attempt_id != group.job_id:
            self._later_attempts[attempt_id] = group
        if attempts.hedge_after is not None and attempts.may_hedge:
            attempts.waiting = self._runtime.create_task(
                self._hedge(group, handle, attempts.hedge_after), "job_hedge"
            )

    def goes_on(
        self,
        group: JobGroup,
        handle: JobHandle,
        attempt_id: str,
        status: OutcomeStatus,
        facts: OutcomeFacts,
    ) -> bool:
        """Take the end of an attempt.

        Returns:
            Whether another attempt is open or is to begin; False when this is the job's end.
        """
        attempts = handle.attempts
        assert attempts is not None
        attempt = attempts.open.pop(attempt_id)
        self._later_attempts.pop(attempt_id, None)
        if status is not OutcomeStatus.COMPLETED:
            now = self._runtime.clock()()
            outcome = handle.end_attempt(attempt, now, status, facts)
            if attempts.open:
                return True
            time_left = group.deadline.left if group.deadline is not None else None
            wait = attempts.find_wait(outcome, time_left) if group.verdict is OPEN else None
            if wait is not None:
                logger.info(
                    f"Worker '{self._runtime.name}': attempt {len(attempts.made)} at job "
                    f"'{group.job_id}' at '{handle.worker}' ended ({outcome.cause}); "
                    f"the next begins in {wait:.3f} s"
                )
                self._retry(group, handle, wait)
                return True
        attempts.made.remove(attempt)
        return False

    def _retry(self, group: JobGroup, handle: JobHandle, wait: float) -> None:
        attempts = handle.attempts
        assert attempts is not None
        handle.wait_for_next()
        attempts.streaming = None
        # What the ended attempt has sent and is not read does not count for the next one.
        group.events.forget_window(handle.worker)
        attempts.stop_waiting()
        attempts.waiting = self._runtime.create_task(
            self._ask_after(wait, group, handle), "job_retry"
        )

    async def _ask_after(self, wait: float, group: JobGroup, handle: JobHandle) -> None:
        await asyncio.sleep(wait)
        await self._ask(group, handle)

    async def _hedge(self, group: JobGroup, handle: JobHandle, hedge_after: float) -> None:
        await asyncio.sleep(hedge_after)
        attempts = handle.attempts
        assert attempts is not None
        if attempts.may_hedge:
            await self._ask(group, handle)

    def follow_stream(self, group: JobGroup, handle: JobHandle, attempt_id: str) -> None:
        """Keep to the first attempt that streams: chunks of two would be mixed up."""
        attempts = handle.attempts
        assert attempts is not None
        if attempts.streaming is not None:
            return
        attempts.streaming = attempt_id
        now = self._runtime.clock()()
        others = [attempt for attempt in attempts.open.values() if attempt.id != attempt_id]
        facts = OutcomeFacts(reason=OTHER_ATTEMPT, cancel_reason=CancelReason.NOT_NEEDED)
        for other in others:
            del attempts.open[other.id]
            self._later_attempts.pop(other.id, None)
            self._liveness.unwatch(handle.worker, other.id)
            handle.end_attempt(other, now, OutcomeStatus.CANCELLED, facts)
        if others:
            cancels = [(other.id, handle.worker) for other in others]
            sending = self._cancellation.send_cancels(cancels, OTHER_ATTEMPT)
            self._runtime.create_task(sending, "job_cancel")

    def take_turns(self, group: JobGroup, hedge_after: float) -> None:
        """Ask the workers of a group after the first, each when the one before is slow or failed.

        They are started as `RFC 8305 <https://www.rfc-editor.org/rfc/rfc8305>`_ starts connections.
        """
        turns = self._runtime.create_task(self._take_turns(group, hedge_after), "job_turns")
        group.waiting = (*group.waiting, turns)

    async def _take_turns(self, group: JobGroup, hedge_after: float) -> None:
        for before, handle in pairwise(list(group.handles.values())):
            with suppress(TimeoutError):
                async with asyncio.timeout(hedge_after):
                    await before.wait()
            if handle.outcome is None and handle.attempts is not None:
                # A task of its own: its worker may not be ready, and then the next is asked.
                asking = self._ask_after(0.0, group, handle)
                handle.attempts.waiting = self._runtime.create_task(asking, "job_turn")
