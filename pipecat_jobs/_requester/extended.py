"""Groups that go through the worker's own ``create_job_group_and_request_job()``."""

from dataclasses import dataclass
from typing import TypeGuard

from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from pipecat.pipeline.job_context import JobGroupParams as PipecatJobGroupParams
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._requester.cancellation import Cancellation
from pipecat_jobs.outcomes import CancelReason
from pipecat_jobs.params import JobGroupParams


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of a group before its worker's own method has made it.

    Parameters:
        params: How it is asked for, all of it checked.
        single: Whether one worker is asked on its own, with ``job()``.
        keeps_events: Whether its events are kept until ``async for`` reads them.
    """

    params: JobGroupParams
    single: bool = False
    keeps_events: bool = False


class ExtendedCalls:
    """The calls that are passing through a worker's own ``create_job_group_and_request_job()``."""

    def __init__(
        self, worker: BaseWorker, groups: dict[str, PipecatJobGroup], cancellation: Cancellation
    ):
        self._worker = worker
        self._groups = groups
        self._cancellation = cancellation
        self._calls: dict[str, Call] = {}

    async def dispatch(self, worker_names: list[str], call: Call) -> PipecatJobGroup:
        """Start a group through the worker's own method."""
        params = call.params
        assert params.job_id is not None
        job_id = params.job_id
        self._calls[job_id] = call
        try:
            return await self._worker.create_job_group_and_request_job(worker_names, params=params)
        except BaseException as error:
            # What extends the method may fail, or be cancelled, after the requests have gone out.
            group = self._groups.get(job_id)
            if group is not None:
                reason = f"dispatch cut off by {type(error).__name__}"
                await self._cancellation.end(group, reason, CancelReason.REQUESTER_CANCELLED)
            raise
        finally:
            self._calls.pop(job_id, None)

    def has_checked(self, params: PipecatJobGroupParams | None) -> TypeGuard[JobGroupParams]:
        """Tell whether parameters come from :meth:`dispatch`, and need no second check."""
        if not isinstance(params, JobGroupParams) or params.job_id is None:
            return False
        call = self._calls.get(params.job_id)
        return call is not None and call.params is params

    def take(self, job_id: str) -> Call | None:
        """Give what is known of a group that is now being made.

        Returns:
            The call, or None when the bot called the method itself.
        """
        return self._calls.pop(job_id, None)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._calls
