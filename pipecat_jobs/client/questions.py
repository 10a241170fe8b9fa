"""The questions to one worker, which its client sees and may answer."""

import asyncio
import time
import uuid
from dataclasses import dataclass, field

from pipecat_jobs._llm.conversing import Conversing
from pipecat_jobs._worker.mixin import WorkerJobs
from pipecat_jobs.client.data import to_client_value, to_milliseconds
from pipecat_jobs.client.messages import make_event
from pipecat_jobs.client.outbox import Send
from pipecat_jobs.client.rules import Rules, decide
from pipecat_jobs.interceptors import (
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    ProceedToAnswer,
)
from pipecat_jobs.questions import JobQuestion


@dataclass(slots=True, eq=False)
class _ShownQuestion:
    question: JobQuestion
    at: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class ShownQuestions(JobInterceptor):
    """Sends each question to the client as well as to the worker's own ``on_job_question()``."""

    def __init__(self, worker: WorkerJobs, rules: Rules, send: Send):
        self._worker = worker
        self._rules = rules
        self._send = send
        self._open: dict[str, _ShownQuestion] = {}

    def find(self, question_id: str) -> JobQuestion | None:
        """Find an open question by the id that the client knows."""
        shown = self._open.get(question_id)
        return shown.question if shown is not None else None

    def show_open(self) -> None:
        """Send the open questions once more."""
        for shown in self._open.values():
            self._show(shown)

    async def answer(self, question: JobQuestion, proceed: ProceedToAnswer) -> object:
        """Show a question until it closes, whoever answers it."""
        if not decide(lambda: self._rules.shows_question(question), "shows_question", False):
            return await proceed(question)
        shown = _ShownQuestion(question, to_milliseconds(time.time()))
        self._open[shown.id] = shown
        self._show(shown)
        try:
            value = await proceed(question) if self._asks_worker(question) else None
            if value is None and question.is_open:
                # A question that closes unanswered cancels this task.
                await shown.closed.wait()
        finally:
            self._close(shown)
        return value

    def _asks_worker(self, question: JobQuestion) -> bool:
        # The methods of the package refuse what they cannot pass on; the client may answer that.
        worker = self._worker
        method = type(worker).on_job_question
        if isinstance(worker, Conversing) and method is Conversing.on_job_question:
            return worker.can_ask_user(question)
        return method is not WorkerJobs.on_job_question

    def on_event(self, event: JobLifeEvent) -> None:
        """Close the questions that were answered or refused."""
        if event.kind is JobLifeEventKind.ANSWERED:
            for shown in list(self._open.values()):
                if not shown.question.is_open:
                    self._close(shown)

    def _close(self, shown: _ShownQuestion) -> None:
        shown.closed.set()
        if self._open.pop(shown.id, None) is not None:
            at = to_milliseconds(time.time())
            self._send(make_event("question_closed", id=shown.id, at=at))

    def _show(self, shown: _ShownQuestion) -> None:
        question = shown.question
        self._send(
            make_event(
                "question",
                id=shown.id,
                worker=question.worker,
                job_id=question.job_id,
                label=question.label or question.job_name,
                text=question.text,
                schema=to_client_value(question.schema),
                problem=question.problem,
                at=shown.at,
            )
        )
