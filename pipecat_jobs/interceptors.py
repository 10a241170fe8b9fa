"""Interceptors: one place to watch or wrap every job that a worker requests or handles."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._protocol.headers import JobHeaders
from pipecat_jobs.outcomes import ErrorDetails, JobData, JobOutcome
from pipecat_jobs.questions import JobQuestion
from pipecat_jobs.steering import SteerOutcome


class JobLifeEventKind(StrEnum):
    """The kinds of events in a job's life.

    Attributes:
        ASKED: At the requester: ``job()``, ``job_group()`` or one of the other methods that request
            a job was called.
        SENT: At the requester: the worker is ready, and the request is sent.
        UPDATE: At the requester: the worker reported progress.
        STREAM: At the requester: the worker started a stream, or streamed a chunk.
        STEERED: At the requester: it is known what became of a steer.
        QUESTION: At the requester: the worker asks a question, and waits for the answer.
        ANSWERED: At the requester: a question was answered or refused.
        SETTLED: At the requester: the job has its outcome. It is the job's last event there.
        BEGUN: At the worker: the handler begins.
        HANDLER_ENDED: At the worker: the handler has returned, raised, or ended after a cancel.

    Example::

        class CountJobs(JobInterceptor):
            open = 0

            def on_event(self, event):
                self.open += event.kind is JobLifeEventKind.ASKED
                self.open -= event.kind is JobLifeEventKind.SETTLED
    """

    ASKED = "asked"
    SENT = "sent"
    UPDATE = "update"
    STREAM = "stream"
    STEERED = "steered"
    QUESTION = "question"
    ANSWERED = "answered"
    SETTLED = "settled"
    BEGUN = "begun"
    HANDLER_ENDED = "handler_ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLifeEvent:
    """One event in the life of one job at one worker. A group has each event once per worker.

    Parameters:
        kind: The kind of event.
        job_id: The job's id.
        job_name: The name of the job, or None for a job of ``on_job_request``.
        requester: Name of the worker that requested the job.
        worker: Name of the worker that the job is for.
        time: The time of the event, in seconds since the epoch (``time.time()``).
        data: The update, the chunk or the steer, for UPDATE, STREAM and STEERED. For QUESTION, a
            dict with "text" and "schema", and with the "problem" of the last answer or None. For
            ANSWERED, a dict with the "text" of the question, and with its "answer" or why it was
            "refused". None for the other kinds.
        outcome: The outcome, for SETTLED; None for the other kinds.
        error: The exception of the handler, for HANDLER_ENDED; None when the handler returned, and
            for the other kinds.
        steered: What became of the steer, for STEERED; None for the other kinds.

    Example::

        class LogFailures(JobInterceptor):
            def on_event(self, event):
                if event.outcome is not None and not event.outcome.completed:
                    print(f"{event.job_name} at {event.worker}: {event.outcome.cause}")


        self.add_job_interceptor(LogFailures())
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
    steered: SteerOutcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCall:
    """One call of ``job()``, ``job_group()`` or a similar method, before a request is sent.

    Parameters:
        job_id: The id of the job or the group.
        job_name: The name of the job, or None for a job of ``on_job_request``.
        requester: Name of the worker that requests the job.
        worker_names: Names of the workers that the job is for, in the order of the call.
        timeout: Seconds for the whole job, its own or what is left of the deadline that it
            inherits; None for no deadline.
        payload: The data for the handler, or None. An interceptor may replace it, unless there are
            ``payloads``.
        payloads: The data for the handler of each worker, by worker, when the call gave
            ``payloads``; None otherwise. An interceptor may replace it by one for the same workers.
        headers: The headers of each request. An interceptor may replace them.

    Example::

        from dataclasses import replace


        class AddLanguage(JobInterceptor):
            async def ask(self, call, proceed):
                await proceed(replace(call, payload={**(call.payload or {}), "language": "en"}))
    """

    job_id: str
    job_name: str | None
    requester: str
    worker_names: tuple[str, ...]
    timeout: float | None
    payload: JobData | None
    headers: JobHeaders
    payloads: Mapping[str, JobData] | None = None


#: Continues a call with the next interceptor's ``ask()``; after the last one, sends the requests.
ProceedToAsk: TypeAlias = Callable[[JobCall], Awaitable[None]]
#: Continues a request with the next interceptor's ``handle()``; after the last one, runs the
#: handler.
ProceedToHandle: TypeAlias = Callable[[BusJobRequestMessage], Awaitable[JobData | None]]
#: Continues a question with the next interceptor's ``answer()``; after the last one, calls the
#: worker's ``on_job_question()``.
ProceedToAnswer: TypeAlias = Callable[[JobQuestion], Awaitable[object]]


class JobInterceptor:
    """Watches and wraps the jobs of a worker. Override the methods you need; the others do nothing.

    List interceptors in ``job_interceptors`` of a worker's class, or give one to
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

        It returns once the requests are sent; :meth:`on_event` gets the outcome. The call's timeout
        includes the time it takes.

        Args:
            call: The call.
            proceed: Continues the call. Await it once, with the call or with a copy of it that has
                another payload, other payloads or other headers (``dataclasses.replace(call,
                payload=...)``).

        Raises:
            Exception: Any exception refuses the call. The job then ends as ERROR for each worker,
                as FAILED if it is a ``JobToolError``, and the requester gets a ``JobError`` with
                the exception as its ``__cause__``.

        Example::

            class NeedTopic(JobInterceptor):
                async def ask(self, call, proceed):
                    if not (call.payload or {}).get("topic"):
                        raise ValueError(f"{call.job_name} needs a topic")
                    await proceed(call)
        """
        await proceed(call)

    async def handle(
        self, request: BusJobRequestMessage, proceed: ProceedToHandle
    ) -> JobData | None:
        """Wrap a handler at the worker: a ``@job`` method or an ``on_job_request()`` override.

        It runs in the handler's task and slot, and is cancelled with it.

        Args:
            request: The request.
            proceed: Runs the handler. Await it with the request or with a copy of it that has
                another payload (``dataclasses.replace(request, payload=...)``). It returns the
                handler's response, or None if the handler streams or calls
                ``send_job_response()``. It raises the handler's exception.

        Returns:
            The response of the job, a dict; None if the handler streamed, or calls
            ``send_job_response()``. An interceptor that does not call ``proceed`` returns a dict.

        Raises:
            Exception: Any exception ends the job as an exception of the handler does.

        Example::

            class Cache(JobInterceptor):
                def __init__(self):
                    self.found = {}

                async def handle(self, request, proceed):
                    topic = request.payload["topic"]
                    if topic not in self.found:
                        self.found[topic] = await proceed(request)
                    return self.found[topic]
        """
        return await proceed(request)

    async def answer(self, question: JobQuestion, proceed: ProceedToAnswer) -> object:
        """Wrap a question at the requester: the worker's ``on_job_question()``.

        It runs in the task of the question, which is cancelled when the question closes unanswered.

        Args:
            question: The question of a job's worker.
            proceed: Calls ``on_job_question()``. Await it with the question. It returns the answer,
                or None if that comes later.

        Returns:
            The answer, or None to answer later with ``question.answer()``. An interceptor that
            answers need not call ``proceed``.

        Raises:
            Exception: Any exception refuses the question.

        Example::

            class AnswerYes(JobInterceptor):
                async def answer(self, question, proceed):
                    if question.schema.get("type") == "boolean":
                        return True
                    return await proceed(question)
        """
        return await proceed(question)

    def on_event(self, event: JobLifeEvent) -> None:
        """Get an event in a job's life.

        It is called in place and must not block. An exception is logged and changes nothing.

        Args:
            event: The event.

        Example::

            class PrintEvents(JobInterceptor):
                def on_event(self, event):
                    print(f"{event.time:.3f} {event.kind} {event.job_name} at {event.worker}")
        """
