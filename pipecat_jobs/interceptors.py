"""One place to watch or wrap every job of a worker: what it asks of others and what it is asked."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._protocol.headers import JobHeaders
from pipecat_jobs.outcomes import ErrorDetails, JobData, JobOutcome


class JobLifeEventKind(StrEnum):
    """What has happened to a job.

    Parameters:
        ASKED: At the requester: ``job()`` or one of the others was called for the worker.
        SENT: At the requester: the request goes out; the worker is ready.
        UPDATE: At the requester: the worker reported progress.
        STREAM: At the requester: the worker streamed the start or a chunk of its response.
        SETTLED: At the requester: the job has its outcome, whatever that is.
        BEGUN: At the worker: the handler begins.
        HANDLER_ENDED: At the worker: the handler has returned, raised, or ended after a cancel.
    """

    ASKED = "asked"
    SENT = "sent"
    UPDATE = "update"
    STREAM = "stream"
    SETTLED = "settled"
    BEGUN = "begun"
    HANDLER_ENDED = "handler_ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLifeEvent:
    """One event in the life of one job at one worker. A group has each event once per worker.

    Parameters:
        kind: What has happened.
        job_id: The job's id.
        job_name: The name of the job, or None for a job of ``on_job_request``.
        requester: The name of the worker that asked.
        worker: The name of the worker that was asked.
        time: When, in seconds since the epoch, as ``time.time()`` gives it.
        data: What the worker sent, of an UPDATE or a STREAM; None otherwise.
        outcome: How the job ended, of a SETTLED; None otherwise.
        error: What the handler raised, of a HANDLER_ENDED; None when it returned, and otherwise.
    """

    kind: JobLifeEventKind
    job_id: str
    job_name: str | None
    requester: str
    worker: str
    time: float
    data: JobData | None = None
    outcome: JobOutcome | None = None
    error: ErrorDetails | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCall:
    """One call of ``job()``, ``job_group()`` or one of the others, before anything is sent.

    Parameters:
        job_id: The id of the job or the group.
        job_name: The name of the job, or None for a job of ``on_job_request``.
        requester: The name of the worker that asks.
        worker_names: The workers that are asked, in the order they were given.
        timeout: Seconds for the whole job, or None.
        payload: What the job is about. An interceptor may replace it.
        headers: What travels beside each request. An interceptor may replace it.
    """

    job_id: str
    job_name: str | None
    requester: str
    worker_names: tuple[str, ...]
    timeout: float | None
    payload: JobData | None
    headers: JobHeaders


#: Goes on with a call: the next interceptor's ``ask()``, and at last the requests are sent.
ProceedToAsk: TypeAlias = Callable[[JobCall], Awaitable[None]]
#: Goes on with a request: the next interceptor's ``handle()``, and at last the handler runs.
ProceedToHandle: TypeAlias = Callable[[BusJobRequestMessage], Awaitable[JobData | None]]


class JobInterceptor:
    """Watches and wraps the jobs of a worker. Override what you need; the rest does nothing.

    List interceptors in a worker class's ``job_interceptors``, or give one to
    ``worker.add_job_interceptor()``. Those of the class come first, and the first is the outermost.
    One object may serve many workers. The design follows the interceptors of `Temporal's SDK
    <https://python.temporal.io/temporalio.client.Interceptor.html>`_.

    Example::

        class Timing(JobInterceptor):
            def on_event(self, event):
                if event.kind is JobLifeEventKind.SETTLED:
                    print(f"{event.job_name} at {event.worker}: {event.outcome.ran:.3f} s")


        class Host(BaseWorker):
            job_interceptors = (Timing(),)
    """

    async def ask(self, call: JobCall, proceed: ProceedToAsk) -> None:
        """Wrap a call at the requester: the wait for its workers and the sending of its requests.

        It returns once the requests are sent; the outcome comes to :meth:`on_event`. The call's
        timeout runs meanwhile.

        Args:
            call: The call.
            proceed: Goes on. Await it once, with the call or with a copy of it that has another
                payload or other headers (``dataclasses.replace(call, payload=...)``).

        Raises:
            Exception: Whatever refuses the call. The job then ends as ERROR for each worker, and
                the requester gets a ``JobError`` with the exception as its cause.
        """
        await proceed(call)

    async def handle(
        self, request: BusJobRequestMessage, proceed: ProceedToHandle
    ) -> JobData | None:
        """Wrap a handler at the worker: a ``@job`` method or an ``on_job_request()`` override.

        It runs in the handler's task and slot, and is cancelled with it.

        Args:
            request: The request.
            proceed: Goes on, with the request or with a copy of it that has another payload
                (``dataclasses.replace(request, payload=...)``). It gives what the handler returned,
                None for one that streams or responds itself. It raises what the handler raised.

        Returns:
            The response of the job, or None when the handler streamed or responds itself. One that
            does not proceed gives a dict.

        Raises:
            Exception: Whatever refuses the request; it ends the job as an exception of the handler
                would.
        """
        return await proceed(request)

    def on_event(self, event: JobLifeEvent) -> None:
        """Take notice of an event in a job's life.

        It is called in place and must not block. What it raises is logged and changes nothing.

        Args:
            event: The event.
        """
