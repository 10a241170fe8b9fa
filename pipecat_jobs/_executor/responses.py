"""What a worker sends about its jobs: updates, streams and responses."""

from collections.abc import Awaitable
from copy import deepcopy

from loguru import logger
from pipecat.bus.messages import (
    BusDataMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobStreamDataMessage,
    BusJobStreamEndMessage,
    BusJobStreamStartMessage,
    BusJobUpdateMessage,
    BusJobUpdateUrgentMessage,
    BusSystemMessage,
)
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs._executor.exchange import Exchange
from pipecat_jobs._executor.execution import Execution
from pipecat_jobs._protocol.headers import find_window
from pipecat_jobs._protocol.messages import ResponseMessage
from pipecat_jobs._protocol.recent import Expiring, Recent
from pipecat_jobs._protocol.runtime import JobRuntime
from pipecat_jobs._protocol.statements import check_response
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError, UnknownJobError
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.params import check_data


class Responses:
    """The open jobs of a worker, and the one response of each."""

    def __init__(self, runtime: JobRuntime, active: dict[str, BusJobRequestMessage]):
        self._runtime = runtime
        self._active = active
        self._executions: dict[str, Execution] = {}
        #: By requester and job id: the id of the request message whose job has ended.
        self.recent: Recent[tuple[str, str], int] = Recent()
        #: By requester and job id: cancels whose requests have not arrived. Each of them stops a
        #: job from running, so their number is not bounded.
        self.early_cancels: Expiring[tuple[str, str], bool] = Expiring()

    # -- which jobs are open -----------------------------------------------------------------

    def open(self, execution: Execution) -> None:
        """Add an open job."""
        request = execution.request
        self._active[request.job_id] = request
        self._executions[request.job_id] = execution

    def get(self, job_id: str) -> Execution | None:
        """Look a job up.

        Returns:
            The job, or None when it is not open.
        """
        return self._executions.get(job_id)

    def all(self) -> list[Execution]:
        """List the open jobs."""
        return list(self._executions.values())

    def requested(self, job_id: str) -> BusJobRequestMessage | None:
        """Find the open request of a job id, whether or not the job is this package's.

        Returns:
            The request of the open job of that id, or None.
        """
        return self._active.get(job_id)

    def forget(self, execution: Execution) -> None:
        """Close a job, whether or not its response could be sent."""
        request = execution.request
        self._active.pop(request.job_id, None)
        self._executions.pop(request.job_id, None)
        self.recent.remember((request.source, request.job_id), request.id)
        execution.end()

    # -- what handlers send -----------------------------------------------------------------

    async def respond(
        self, job_id: str, response: object, *, status: JobStatus, urgent: bool
    ) -> None:
        """Respond to a job, which ends it."""
        execution = self._require(job_id)
        data = check_response(check_data("response", response))
        try:
            status = JobStatus(status)
        except ValueError as error:
            raise InvalidJobTypeError(f"status is {status!r}; give a JobStatus") from error
        await self._respond(execution, status, data, urgent=urgent)

    async def update(self, job_id: str, update: object, *, urgent: bool) -> None:
        """Report progress."""
        execution = self._require(job_id)
        data = check_response(check_data("update", update))
        message_class = BusJobUpdateUrgentMessage if urgent else BusJobUpdateMessage
        joined = execution.line.list_joined(execution) if execution.line is not None else ()
        # Copied first: the requester of the job itself may change what it gets.
        copies = [(job.request, deepcopy(data)) for job in joined]
        for request, each in ((execution.request, data), *copies):
            await self._runtime.send(
                message_class(
                    source=self._runtime.name,
                    target=request.source,
                    job_id=request.job_id,
                    update=each,
                )
            )
        execution.last_update = data

    async def stream(
        self,
        message_class: type[BusJobStreamStartMessage | BusJobStreamDataMessage],
        job_id: str,
        data: object,
    ) -> None:
        """Send the start or a chunk of a streamed response; a chunk waits for room."""
        execution = self._require_stream(job_id)
        chunk = message_class(
            source=self._runtime.name,
            target=execution.request.source,
            job_id=job_id,
            data=check_data("stream data", data),
        )
        if message_class is BusJobStreamDataMessage and execution.window is None:
            execution.window = find_window(execution.request)
        window = execution.window
        if window is None or message_class is BusJobStreamStartMessage:
            await self._runtime.send(chunk)
            return
        if window.full:
            await window.wait_for_room()
            self._require(job_id)
        window.under_way += 1
        try:
            await self._runtime.send(chunk)
        except BaseException:
            window.under_way -= 1
            raise

    async def stream_end(self, job_id: str, data: object) -> None:
        """End a streamed response, and with it the job."""
        execution = self._require_stream(job_id)
        end = BusJobStreamEndMessage(
            source=self._runtime.name,
            target=execution.request.source,
            job_id=job_id,
            data=check_response(check_data("stream data", data)),
        )
        await self._send(execution, end)

    def _require(self, job_id: str) -> Execution:
        execution = self._executions.get(job_id)
        if execution is None or not execution.is_open:
            ended = execution is not None or any(job_id == known for _, known in self.recent)
            raise UnknownJobError(
                self._runtime.name, job_id, ended=ended, open_jobs=list(self._executions)
            )
        return execution

    def _require_stream(self, job_id: str) -> Execution:
        execution = self._require(job_id)
        if execution.line is not None and not execution.line.streams:
            raise InvalidJobError(
                f"job '{job_id}' is of a handler with on_busy='join' and cannot stream: a job that "
                "joins would miss the beginning; send updates and one response"
            )
        return execution

    async def finish(
        self, execution: Execution, status: JobStatus, response: JobData | None
    ) -> None:
        """Respond in place of the handler, unless a response was sent or is being sent."""
        if not execution.is_open or (execution.cancelled and status is JobStatus.COMPLETED):
            logger.debug(f"{self}: dropping {status} of job '{execution.request.job_id}': it ended")
            return
        await self._respond(execution, status, response)

    async def share(self, leader: Execution, execution: Execution) -> None:
        """Respond to a job with the response to the one that it joined."""
        shared = leader.response
        if shared is not None and execution.is_open and not execution.cancelled:
            urgent = isinstance(shared, BusJobResponseUrgentMessage)
            data = deepcopy(shared.response)
            await self._respond(execution, JobStatus(shared.status), data, urgent=urgent)

    async def refuse(
        self, request: BusJobRequestMessage, status: JobStatus, response: JobData | None
    ) -> None:
        """Respond to a request that was refused."""
        await self._runtime.send(self._response(request, status, response))

    def _respond(
        self,
        execution: Execution,
        status: JobStatus,
        data: JobData | None,
        *,
        urgent: bool = False,
    ) -> Awaitable[None]:
        response = self._response(execution.request, status, data, urgent)
        if execution.line is not None and not execution.line.streams:
            # Copied first: the requester may change what it gets.
            execution.response = deepcopy(response)
        return self._send(execution, response)

    async def _send(
        self, execution: Execution, response: BusDataMessage | BusSystemMessage
    ) -> None:
        execution.begin_response()
        try:
            if execution.exchange is not None:
                await self._send_replies(execution, execution.exchange, response)
            await self._runtime.send(response)
        except BaseException:
            execution.fail_response()
            raise
        self.forget(execution)

    async def _send_replies(
        self,
        execution: Execution,
        exchange: Exchange,
        response: BusDataMessage | BusSystemMessage,
    ) -> None:
        """Send what the requester would not read any more after the response."""
        if not isinstance(response, ResponseMessage) or response.status is JobStatus.COMPLETED:
            exchange.accept_taken()
        await exchange.send_replies(self._runtime, execution.request)

    def _response(
        self,
        request: BusJobRequestMessage,
        status: JobStatus,
        response: JobData | None,
        urgent: bool = False,
    ) -> BusJobResponseMessage | BusJobResponseUrgentMessage:
        message_class = BusJobResponseUrgentMessage if urgent else BusJobResponseMessage
        return message_class(
            source=self._runtime.name,
            target=request.source,
            job_id=request.job_id,
            status=status,
            response=response,
        )

    def __str__(self) -> str:
        return f"Worker '{self._runtime.name}'"
