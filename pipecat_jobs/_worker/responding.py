"""The methods by which a worker responds to jobs."""

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
        """Respond to a job, which ends it.

        Args:
            job_id: The id of a job that is open at this worker.
            response: What the requester gets as ``response``; None for an empty one.
            status: How the job ended; any other than COMPLETED raises at the requester.
            urgent: Whether the response overtakes other messages on the bus.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the response is not a dict.

        Example::

            class Desk(BaseWorker):
                async def on_job_request(self, message):
                    self.asked = message

                async def decide(self, seat):
                    await self.send_job_response(self.asked.job_id, {"seat": seat})
        """
        await self._job_responses.respond(job_id, response, status=status, urgent=urgent)

    async def send_job_update(
        self, job_id: str, update: JobData | None = None, *, urgent: bool = False
    ) -> None:
        """Report progress on a job.

        Args:
            job_id: The id of a job that is open at this worker.
            update: The progress, e.g. ``{"percent": 40}``.
            urgent: Whether the update overtakes other messages.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the update is not a dict.

        Example::

            class Importer(BaseWorker):
                @job(name="import")
                async def import_files(self, message):
                    await self.send_job_update(message.job_id, {"percent": 40})
                    return {"imported": 12}
        """
        await self._job_responses.update(job_id, update, urgent=urgent)

    async def send_job_stream_start(self, job_id: str, data: JobData | None = None) -> None:
        """Begin a streamed response. A handler that is an async generator does it by itself.

        Args:
            job_id: The id of a job that is open at this worker.
            data: What to say of the stream, e.g. its content type.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the data is not a dict.

        Example::

            class Writer(BaseWorker):
                async def on_job_request(self, message):
                    await self.send_job_stream_start(message.job_id, {"format": "text"})
                    await self.send_job_stream_data(message.job_id, {"text": "Once upon a time"})
                    await self.send_job_stream_end(message.job_id, {"words": 4})
        """
        await self._job_responses.stream(BusJobStreamStartMessage, job_id, data)

    async def send_job_stream_data(self, job_id: str, data: JobData | None = None) -> None:
        """Send a chunk of a streamed response.

        It waits while the requester has as many unread chunks as its ``unread_limit``.

        Args:
            job_id: The id of a job that is open at this worker.
            data: The chunk.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the data is not a dict.
        """
        await self._job_responses.stream(BusJobStreamDataMessage, job_id, data)

    async def send_job_stream_end(self, job_id: str, data: JobData | None = None) -> None:
        """End a streamed response, which ends the job as COMPLETED.

        Args:
            job_id: The id of a job that is open at this worker.
            data: What the requester gets as ``response``; None for an empty one.

        Raises:
            UnknownJobError: If the job is not open here.
            InvalidJobTypeError: If the data is not a dict.
        """
        await self._job_responses.stream_end(job_id, data)
