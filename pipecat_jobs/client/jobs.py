"""``ClientJobs``: shows jobs, reports and questions to the client of a bot."""

from typing import Self

from loguru import logger
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frameworks.rtvi.models import (
    ClientMessage,
    UICancelJobGroupMessage,
    UIEventMessage,
    UISnapshotMessage,
)
from pipecat.processors.frameworks.rtvi.processor import RTVIProcessor

from pipecat_jobs._llm.conversing import Conversing
from pipecat_jobs._llm.mixin import JobsMixin
from pipecat_jobs._pipecat.loaded import is_of_loaded_class
from pipecat_jobs._protocol.checks import check_instance, check_seconds
from pipecat_jobs._protocol.tasks import log_raised
from pipecat_jobs.client.cards import Cards, find_asked
from pipecat_jobs.client.messages import (
    NAME,
    AnswerRequest,
    CancelRequest,
    ClientRequest,
    RefusedRequestError,
    make_error_response,
    make_response,
    read_request,
)
from pipecat_jobs.client.outbox import Outbox
from pipecat_jobs.client.questions import ShownQuestions
from pipecat_jobs.client.reports import ShownReports
from pipecat_jobs.client.streams import ShownStreams
from pipecat_jobs.conversation import ReportChange
from pipecat_jobs.errors import InvalidJobError
from pipecat_jobs.open_jobs import OpenJob
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.questions import JobQuestion


class ClientJobs:
    """Shows the jobs of workers to the client of a bot, over RTVI; the client may cancel them.

    Give it the worker whose pipeline has the transport, and let it follow the workers that ask for
    jobs. The client gets a card for each job or group, in the messages of Pipecat's ``UIWorker``,
    the reports of the workers, and the questions of handlers, which it may answer. Nothing of it
    enters an LLM's context. Make one for each client, before the client connects.

    Override the four methods ``shows_job()``, ``select_data()``, ``shows_report()`` and
    ``shows_question()`` to limit what the client sees. All messages are in
    ``docs/how-to/client.md``.

    Example::

        from pipecat.pipeline.pipeline import Pipeline

        bot = PipelineWorker(Pipeline([]), name="bot")
        ClientJobs(bot).follow(bot)
    """

    def __init__(
        self,
        worker: PipelineWorker,
        *,
        update_interval: float = 0.5,
        stream_interval: float | None = None,
    ):
        """Initialize without a worker to follow.

        Args:
            worker: The worker whose pipeline has the transport. It has Pipecat's RTVI processor
                unless it was made with ``enable_rtvi=False``.
            update_interval: Seconds from one update of a job to the next that the client gets from
                the same worker. In between, a newer update replaces the one that waits; the last
                one is never left out.
            stream_interval: Seconds from one message with chunks of a stream to the next that the
                client gets of the same job and worker. The chunks in between are joined; none is
                left out. None, the default, sends no chunks.

        Raises:
            InvalidJobTypeError: If an argument has the wrong type.
            InvalidJobError: If the worker has no RTVI processor, or an interval is not above zero.

        Example::

            from pipecat.pipeline.pipeline import Pipeline

            bot = PipelineWorker(Pipeline([]), name="bot")
            ClientJobs(bot, stream_interval=0.1).follow(bot)
        """
        wanted = "the PipelineWorker whose pipeline has the transport"
        check_instance("worker", worker, PipelineWorker, wanted)
        self._interval = check_seconds("update_interval", update_interval)
        self._stream_interval = stream_interval
        if stream_interval is not None:
            self._stream_interval = check_seconds("stream_interval", stream_interval)
        self._outbox = Outbox(worker)
        self._workers: list[JobsMixin] = []
        self._cards: list[Cards] = []
        self._streams: list[ShownStreams] = []
        self._reports: list[ShownReports] = []
        self._questions: list[ShownQuestions] = []
        rtvi = _find_rtvi(worker)
        rtvi.add_event_handler("on_client_ready", self._on_client_ready)
        rtvi.add_event_handler("on_client_message", self._on_client_message)
        rtvi.add_event_handler("on_ui_message", self._on_ui_message)

    def follow(self, *workers: JobsMixin) -> Self:
        """Show what workers ask of others, from the next job on.

        A worker that is followed already is left alone. A ``UIWorker`` shows its own jobs, and is
        followed for what it does not show.

        Args:
            *workers: Workers in the process of the transport, of this package's classes or with
                its mixin.

        Returns:
            This object.

        Raises:
            InvalidJobTypeError: If one is not such a worker.

        Example::

            from pipecat.pipeline.pipeline import Pipeline

            bot = PipelineWorker(Pipeline([]), name="bot")
            waiter = BaseWorker("waiter")
            ClientJobs(bot).follow(bot, waiter)
        """
        wanted = "workers of pipecat_jobs, or with JobsMixin among their bases"
        for worker in workers:
            check_instance("follow()", worker, JobsMixin, wanted)
            if worker in self._workers:
                continue
            self._workers.append(worker)
            if self._stream_interval is not None:
                # Before the cards: the last chunks are sent before the card says that it ended.
                streams = ShownStreams(worker, self, self._stream_interval, self._outbox.send)
                worker.add_job_interceptor(streams)
                self._streams.append(streams)
            if not _shows_own_jobs(worker):
                cards = Cards(worker, self, self._interval, self._outbox.send)
                worker.add_job_interceptor(cards)
                self._cards.append(cards)
            questions = ShownQuestions(worker, self, self._outbox.send)
            worker.add_job_interceptor(questions)
            self._questions.append(questions)
            if isinstance(worker, Conversing):
                self._reports.append(ShownReports(worker, self, self._outbox.send))
        return self

    def shows_job(self, job: OpenJob) -> bool:
        """Decide whether the client sees a job and may cancel it. Every job, unless overridden.

        Args:
            job: The job; of a group, the job at its first worker.

        Returns:
            Whether the client sees it.

        Example::

            class LabelledJobs(ClientJobs):
                def shows_job(self, job):
                    return job.label is not None
        """
        return True

    def select_data(self, job: OpenJob, data: JobData) -> object:
        """Choose what the client gets of an update, a chunk or a response. All, unless overridden.

        The client never gets the payload of a job, nor the text of an exception that is not a
        ``JobToolError``.

        Args:
            job: The job; of a group, the job at its first worker.
            data: The data of the update, of a chunk of a stream, or of the response.

        Returns:
            The data for the client, of any type, or None. A chunk that is None is not sent.

        Example::

            class ProgressAlone(ClientJobs):
                def select_data(self, job, data):
                    return {"percent": data["percent"]} if "percent" in data else None
        """
        return data

    def shows_report(self, change: ReportChange) -> bool:
        """Decide whether the client sees a change of a report. Every change, unless overridden.

        Args:
            change: The change of the report's state.

        Returns:
            Whether the client sees it.

        Example::

            class WithoutKeys(ClientJobs):
                def shows_report(self, change):
                    return change.key is None
        """
        return True

    def shows_question(self, question: JobQuestion) -> bool:
        """Decide whether the client sees a question and may answer it. It does, unless overridden.

        The worker's own ``on_job_question()`` gets the question in any case, and the first answer
        counts. Where the worker's class has none, the client alone gets a question that it sees.

        Args:
            question: The question of a handler to a worker that is followed.

        Returns:
            Whether the client sees it.

        Example::

            class YesOrNo(ClientJobs):
                def shows_question(self, question):
                    return question.schema.get("type") == "boolean"
        """
        return True

    # -- what the client sends ---------------------------------------------------------------

    async def _on_client_ready(self, _: RTVIProcessor) -> None:
        for shown in (*self._cards, *self._streams, *self._reports, *self._questions):
            shown.show_open()

    async def _on_client_message(self, _: RTVIProcessor, message: ClientMessage) -> None:
        if message.type != NAME:
            return
        done = await self._try_request(message.msg_id, message.data)
        if done is not None:
            self._outbox.send(make_response(message.msg_id, done))

    async def _on_ui_message(
        self,
        _: RTVIProcessor,
        message: UIEventMessage | UISnapshotMessage | UICancelJobGroupMessage,
    ) -> None:
        # A UIWorker, which the bot may have as well, takes the message for its own jobs.
        if isinstance(message, UICancelJobGroupMessage) and any(
            find_asked(cards.worker, message.data.job_id) for cards in self._cards
        ):
            # Pipecat's clients wait for no response to it.
            data = {"action": "cancel", **message.data.model_dump()}
            await self._try_request(message.id, data)

    async def _try_request(self, message_id: str, data: object) -> object | None:
        """Do what the client asks; None when it is refused, which the client is told."""
        try:
            return await self._serve(read_request(data))
        except RefusedRequestError as refused:
            why = str(refused)
            logger.debug(f"Refusing a request of the client: {why}")
        except Exception as error:
            why = "the bot had an internal error"
            log_raised(f"A request of the client raised {type(error).__name__}", error)
        self._outbox.send(make_error_response(message_id, why))
        return None

    async def _serve(self, request: ClientRequest) -> object:
        match request:
            case CancelRequest():
                return await self._cancel(request)
            case AnswerRequest():
                return await self._answer(request)

    async def _cancel(self, request: CancelRequest) -> object:
        job_id, reason = request.job_id, request.reason or "cancelled by the user"
        for worker in self._workers:
            jobs = find_asked(worker, job_id)
            if not jobs or not self.shows_job(jobs[0]):
                continue
            if not await worker.request_cancel_job_group(job_id, reason=reason):
                raise RefusedRequestError(f"job '{job_id}' cannot be cancelled")
            return {"cancelled": job_id}
        raise RefusedRequestError(
            f"there is no open job '{job_id}': it has ended, or the id is wrong"
        )

    async def _answer(self, request: AnswerRequest) -> object:
        question_id = request.question_id
        for questions in self._questions:
            question = questions.find(question_id)
            if question is not None and question.is_open:
                await question.answer(request.value)
                return {"answered": question_id}
        raise RefusedRequestError(
            f"there is no open question '{question_id}': it was answered, its job has ended, or "
            "the id is wrong"
        )


def _find_rtvi(worker: PipelineWorker) -> RTVIProcessor:
    try:
        return worker.rtvi
    except Exception as error:
        # Pipecat has no other way to ask, and raises a bare Exception.
        raise InvalidJobError(
            f"worker '{worker.name}' has no RTVI processor; give ClientJobs the worker whose "
            "pipeline has the transport, made without enable_rtvi=False"
        ) from error


def _shows_own_jobs(worker: JobsMixin) -> bool:
    return is_of_loaded_class(
        worker, "pipecat.workers.ui.ui_worker", "UIWorker"
    ) or is_of_loaded_class(worker, "pipecat.workers.base_ui_worker", "BaseUIWorker")
