"""The open jobs that a worker does for others, for ``open_jobs``."""

from collections.abc import Iterable, Iterator, Mapping

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._executor.execution import Execution, ExecutionState
from pipecat_jobs._protocol.clock import find_epoch
from pipecat_jobs._protocol.handlers import HandlerSpec
from pipecat_jobs._protocol.headers import find_time_left
from pipecat_jobs.open_jobs import OpenJob, OpenJobState

_STATES = {
    ExecutionState.WAITING: OpenJobState.QUEUED,
    ExecutionState.RUNNING: OpenJobState.RUNNING,
    ExecutionState.RETURNED: OpenJobState.RUNNING,
    ExecutionState.CANCELLING: OpenJobState.CANCELLING,
    ExecutionState.RESPONDING: OpenJobState.RESPONDING,
}


_RUNS = (ExecutionState.RUNNING, ExecutionState.RETURNED)


def _find_state(execution: Execution) -> OpenJobState:
    asks = execution.exchange is not None and execution.exchange.questions
    if asks and execution.state in _RUNS:
        return OpenJobState.WAITING_FOR_INPUT
    return _STATES[execution.state]


def list_held(
    worker: str, executions: Iterable[Execution], handlers: Mapping[str, HandlerSpec]
) -> Iterator[OpenJob]:
    """List the jobs without a response."""
    epoch = find_epoch()
    for execution in executions:
        request = execution.request
        since, time_left = epoch + execution.since, find_time_left(request)
        yield OpenJob(
            id=request.job_id,
            role="held",
            name=request.job_name,
            requester=request.source,
            worker=worker,
            state=_find_state(execution),
            since=since,
            deadline=None if time_left is None else since + time_left,
            last_update=execution.last_update,
            key=_find_key(request, handlers),
        )


def _find_key(request: BusJobRequestMessage, handlers: Mapping[str, HandlerSpec]) -> object:
    spec = handlers.get(request.job_name or "")
    if spec is None or spec.key is None:
        return None
    values = [(request.payload or {}).get(field) for field in spec.key.fields]
    return values[0] if len(values) == 1 else tuple(values)
