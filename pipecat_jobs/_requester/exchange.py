"""What this worker and the workers of its open jobs tell each other: steers and questions."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

from pipecat_jobs._protocol.exchange import (
    AnswerNote,
    QuestionNote,
    RequesterNote,
    SteeredNote,
    SteerNote,
    WithdrawnNote,
    make_note_message,
)
from pipecat_jobs._protocol.runtime import JobRuntime
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs._requester.handle import JobHandle
from pipecat_jobs.interceptors import JobLifeEventKind
from pipecat_jobs.outcomes import JobData, JobOutcome
from pipecat_jobs.questions import JobQuestion
from pipecat_jobs.steering import SteerOutcome

#: Seconds after which a steer without a reply is sent again: it may have overtaken its request, no
#: process may have had the job yet, or the process that had it was lost. A worker takes each once.
_SEND_AGAIN_AFTER = 1.0
#: Is told of a question or its answer: the kind of event, of which job, and its data.
NoteQuestion: TypeAlias = Callable[[JobLifeEventKind, JobHandle, JobData], None]
#: The worker's ``on_job_question()``: gives the answer, or None when it comes later.
QuestionHook: TypeAlias = Callable[[JobQuestion], Awaitable[object]]
#: Sends an answer.
SendAnswer: TypeAlias = Callable[[AnswerNote], Awaitable[None]]
#: Is told what became of a steer: of which job, what was given, and the outcome.
NoteSteered: TypeAlias = Callable[[JobHandle, JobData, SteerOutcome], None]


class AskedJob(NamedTuple):
    """The job whose worker asks a question, and how its requester calls it."""

    handle: JobHandle
    name: str | None
    label: str | None


@dataclass(slots=True, eq=False)
class SentSteer:
    """A steer that was given, and whose outcome is awaited."""

    note: SteerNote
    outcome: asyncio.Future[SteerOutcome]
    #: Is told the outcome.
    on_settled: Callable[[SteerOutcome], None]

    def settle(self, outcome: SteerOutcome) -> None:
        """Record what became of it. Does nothing the second time."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)
            self.on_settled(outcome)


class OpenQuestion:
    """A question of a worker, and the way back for its answer."""

    __slots__ = ("_exchange", "_send", "attempt_id", "hook", "id")

    def __init__(self, note: QuestionNote, attempt_id: str, exchange: "Exchange", send: SendAnswer):
        self.id = note.id
        #: The attempt at the job that asks.
        self.attempt_id = attempt_id
        #: The task that calls the worker's ``on_job_question()``, while that runs.
        self.hook: asyncio.Task[None] | None = None
        self._exchange = exchange
        self._send = send

    @property
    def is_open(self) -> bool:
        """Whether the worker waits for the answer."""
        return self._exchange.questions.get(self.id) is self

    async def send(self, value: object, refused: str | None) -> None:
        """Send the answer, or why there is none."""
        del self._exchange.questions[self.id]
        try:
            await self._send(AnswerNote(self.id, value, refused))
        except BaseException:
            # It may be given again: the worker waits.
            self._exchange.questions[self.id] = self
            raise
        self._stop_hook()

    def close(self) -> None:
        """Note that the worker does not wait any more."""
        self._exchange.questions.pop(self.id, None)
        self._stop_hook()

    def _stop_hook(self) -> None:
        """Stop the code that looks for an answer."""
        if self.hook is not None and self.hook is not asyncio.current_task():
            self.hook.cancel()


@dataclass(slots=True)
class Exchange:
    """What was said about one job at one worker; the first steer or question makes it."""

    steers: dict[str, SentSteer] = field(default_factory=dict[str, SentSteer])
    #: For the attempts that begin later, which start from the request.
    accepted: list[SteerNote] = field(default_factory=list[SteerNote])
    #: The questions that are open, by id.
    questions: dict[str, OpenQuestion] = field(default_factory=dict[str, OpenQuestion])
    #: The ids of all questions, so that a message that comes twice is recognized.
    asked: set[str] = field(default_factory=set[str])

    def end_attempt(self, attempt_id: str) -> None:
        """Close the questions of an attempt that has ended."""
        for question in list(self.questions.values()):
            if question.attempt_id == attempt_id:
                question.close()

    def end(self, outcome: JobOutcome) -> None:
        """Settle what is open: the job has its outcome."""
        self.accepted.clear()
        for sent in self.steers.values():
            sent.settle(_over(outcome))
        for question in list(self.questions.values()):
            question.close()


class Exchanges:
    """Sends what one requester says about its jobs, and takes the replies."""

    def __init__(
        self,
        runtime: JobRuntime,
        note_steered: NoteSteered,
        note_question: NoteQuestion,
        on_question: QuestionHook,
    ):
        self._runtime = runtime
        self._note_steered = note_steered
        self._note_question = note_question
        self._on_question = on_question

    # -- steers --------------------------------------------------------------------------------

    async def steer(self, handle: JobHandle, data: JobData) -> SteerOutcome:
        """Steer one job, and wait until it is known what became of that."""
        if handle.outcome is not None:
            return _over(handle.outcome)
        note_steered = partial(self._note_steered, handle, data)
        problem = self._runtime.workers.find_note_problem(handle.worker)
        if problem is not None:
            refused = SteerOutcome("refused", handle.worker, problem)
            note_steered(refused)
            return refused
        exchange = handle.exchange = handle.exchange or Exchange()
        note = SteerNote(uuid.uuid4().hex, data)
        sent = SentSteer(note, asyncio.get_running_loop().create_future(), note_steered)
        # Before it is sent: the reply may come within the call. A job that has no open attempt gets
        # it with the next one.
        exchange.steers[note.id] = sent
        try:
            while not sent.outcome.done():
                for attempt_id in handle.open_ids:
                    await self._send(handle.worker, attempt_id, note)
                await asyncio.wait({sent.outcome}, timeout=_SEND_AGAIN_AFTER)
            outcome = sent.outcome.result()
        finally:
            del exchange.steers[note.id]
        return outcome

    def repeat(self, handle: JobHandle, attempt_id: str) -> None:
        """Have a new attempt at a job get the steers that were accepted or are undecided."""
        exchange = handle.exchange
        assert exchange is not None
        notes = [*exchange.accepted, *(sent.note for sent in exchange.steers.values())]
        if notes:
            repeating = self._repeat(handle, attempt_id, notes)
            self._runtime.create_task(repeating, "job_steer")

    async def _repeat(self, handle: JobHandle, attempt_id: str, notes: list[SteerNote]) -> None:
        for note in notes:
            if handle.awaits(attempt_id):
                await self._send(handle.worker, attempt_id, note)

    async def _send(self, worker: str, attempt_id: str, note: RequesterNote) -> None:
        await self._runtime.send(make_note_message(self._runtime.name, worker, attempt_id, note))

    def on_steered(self, handle: JobHandle, note: SteeredNote) -> None:
        """Settle a steer with its worker's reply."""
        exchange = handle.exchange
        sent = exchange.steers.get(note.id) if exchange is not None else None
        if exchange is None or sent is None or sent.outcome.done():
            return
        if handle.attempts is not None:
            if note.state == "over":
                # Another attempt may still take it.
                return
            if note.state == "accepted":
                exchange.accepted.append(sent.note)
        sent.settle(SteerOutcome(note.state, handle.worker, note.reason))

    # -- questions -----------------------------------------------------------------------------

    def on_question(self, job: AskedJob, attempt_id: str, note: QuestionNote) -> None:
        """Take a question of a worker, and call the hook for it."""
        handle = job.handle
        exchange = handle.exchange = handle.exchange or Exchange()
        if note.id in exchange.asked:
            return
        exchange.asked.add(note.id)

        async def send(answer: AnswerNote) -> None:
            await self._send(handle.worker, attempt_id, answer)
            refused = answer.refused
            what = {"answer": answer.value} if refused is None else {"refused": refused}
            self._note_question(JobLifeEventKind.ANSWERED, handle, {"text": note.text, **what})

        question = OpenQuestion(note, attempt_id, exchange, send)
        exchange.questions[note.id] = question
        data = {"text": note.text, "schema": note.schema, "problem": note.problem}
        self._note_question(JobLifeEventKind.QUESTION, handle, data)
        asked = JobQuestion(
            text=note.text,
            schema=note.schema,
            job_id=handle.job_id,
            worker=handle.worker,
            job_name=job.name,
            label=job.label,
            problem=note.problem,
            reply=question,
        )
        question.hook = self._runtime.create_task(self._run_hook(asked, question), "job_question")

    async def _run_hook(self, asked: JobQuestion, question: OpenQuestion) -> None:
        task = RunningTask()
        try:
            value = await self._on_question(asked)
            if value is not None and question.is_open:
                await asked.answer(value)
        except BaseException as error:
            task.survive(error)
            where = f"on_job_question() of worker '{self._runtime.name}' raised"
            log_raised(where, error)
            if question.is_open:
                await question.send(None, f"{where} {type(error).__name__}")
        finally:
            # A task that has ended is not cancelled.
            question.hook = None

    def on_withdrawn(self, handle: JobHandle, note: WithdrawnNote) -> None:
        """Close a question for whose answer the worker does not wait any more."""
        exchange = handle.exchange = handle.exchange or Exchange()
        # It may overtake its question.
        exchange.asked.add(note.id)
        if (question := exchange.questions.get(note.id)) is not None:
            question.close()


def _over(outcome: JobOutcome) -> SteerOutcome:
    return SteerOutcome("over", outcome.worker, f"the job has ended: {outcome.status}")
