"""The open jobs that a worker asked of others, for ``open_jobs``."""

from collections.abc import Iterable, Iterator

from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup

from pipecat_jobs._protocol.clock import find_epoch
from pipecat_jobs._requester.group import JobGroup
from pipecat_jobs._requester.handle import HandleState, JobHandle
from pipecat_jobs.open_jobs import OpenJob, OpenJobState

_STATES = {
    HandleState.UNSENT: OpenJobState.UNREADY,
    HandleState.OPEN: OpenJobState.SENT,
    HandleState.WAITING: OpenJobState.RETRYING,
}


def list_asked(requester: str, groups: Iterable[PipecatJobGroup]) -> Iterator[OpenJob]:
    """List the jobs without an outcome, one for each worker of a group."""
    epoch = find_epoch()
    for group in groups:
        if isinstance(group, JobGroup):
            for handle in group.handles.values():
                if handle.outcome is None:
                    yield _describe(requester, group, handle, epoch)


def _find_state(handle: JobHandle) -> OpenJobState:
    if handle.exchange is not None and handle.exchange.questions:
        return OpenJobState.WAITING_FOR_INPUT
    return _STATES[handle.state]


def _describe(requester: str, group: JobGroup, handle: JobHandle, epoch: float) -> OpenJob:
    return OpenJob(
        id=group.job_id,
        role="asked",
        name=group.asked.name,
        requester=requester,
        worker=handle.worker,
        state=_find_state(handle),
        since=epoch + handle.asked_at,
        deadline=epoch + group.deadline.when if group.deadline is not None else None,
        label=group.label,
        last_update=group.last_updates.get(handle.worker),
        metadata=group.asked.metadata or {},
        cancellable=group.cancellable,
    )
