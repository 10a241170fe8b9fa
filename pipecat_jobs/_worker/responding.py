"""The methods of a worker that answer jobs."""

from pipecat.bus.messages import BusJobStreamDataMessage, BusJobStreamStartMessage
from pipecat.pipeline.job_context import JobStatus
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._executor.responses import Responses
from pipecat_jobs.outcomes import JobData


class Responding(BaseWorker):
    """The part of :class:`~pipecat_jobs.JobsMixin` that handlers call."""

    _job_responses: Responses

    async def send_job_response(
        self,
        job_id: str,
        response: JobData | None = None,
        *,
        status: JobStatus = JobStatus.COMPLETED,
        urgent: bool = False,
    ) -> None:
        """Answer a job, which ends it.

        Args:
            job_id: A job this worker holds.
            response: The answer.
            status: How it went.
            urgent: Whether the answer overtakes other messages.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the response is not a dict.
        """
        await self._job_responses.respond(job_id, response, status=status, urgent=urgent)

    async def send_job_update(
        self, job_id: str, update: JobData | None = None, *, urgent: bool = False
    ) -> None:
        """Report progress on a job.

        Args:
            job_id: A job this worker holds.
            update: The progress.
            urgent: Whether the update overtakes other messages.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the update is not a dict.
        """
        await self._job_responses.update(job_id, update, urgent=urgent)

    async def send_job_stream_start(self, job_id: str, data: JobData | None = None) -> None:
        """Begin a streamed answer.

        Args:
            job_id: A job this worker holds.
            data: What to say of the stream, e.g. its content type.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the data is not a dict.
        """
        await self._job_responses.stream(BusJobStreamStartMessage, job_id, data)

    async def send_job_stream_data(self, job_id: str, data: JobData | None = None) -> None:
        """Send a chunk of a streamed answer.

        Args:
            job_id: A job this worker holds.
            data: The chunk.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the data is not a dict.
        """
        await self._job_responses.stream(BusJobStreamDataMessage, job_id, data)

    async def send_job_stream_end(self, job_id: str, data: JobData | None = None) -> None:
        """End a streamed answer, which ends the job.

        Args:
            job_id: A job this worker holds.
            data: The answer.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the data is not a dict.
        """
        await self._job_responses.stream_end(job_id, data)
