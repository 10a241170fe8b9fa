"""Takes what requesters tell this worker about its open jobs."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from loguru import logger
from pipecat.bus.messages import BusJobUpdateMessage, BusJobUpdateRequestMessage

from pipecat_jobs._executor.exchange import Exchange, Offer
from pipecat_jobs._executor.execution import Execution, ExecutionState, enter
from pipecat_jobs._executor.responses import Responses
from pipecat_jobs._protocol.exchange import (
    AnswerNote,
    QuestionNote,
    RequesterNote,
    SteeredNote,
    SteerNote,
    WithdrawnNote,
    make_worker_note_message,
)
from pipecat_jobs._protocol.hooks import Steps
from pipecat_jobs._protocol.runtime import JobRuntime
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs._protocol.text import describe
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.steering import JobSteer, SteerDecision, SteerState

#: The worker's ``on_job_steered()``.
SteerHook: TypeAlias = Callable[[JobSteer], Awaitable[None]]


class Exchanges:
    """The exchanges of one worker with the requesters of its jobs."""

    def __init__(self, runtime: JobRuntime, responses: Responses, on_steered: SteerHook):
        self._runtime = runtime
        self._responses = responses
        self._on_steered = on_steered

    def on_note(self, message: BusJobUpdateRequestMessage, note: RequesterNote) -> None:
        """Take a note from the requester of a job."""
        job = (message.source, message.job_id)
        execution = self._responses.get(message.job_id)
        if isinstance(note, AnswerNote):
            self._on_answer(execution, message, note)
        elif execution is None and job not in self._responses.recent:
            # Its request has not arrived; the requester sends the steer again.
            return
        elif execution is None:
            over = SteeredNote(note.id, "over", "the job has ended")
            reply = make_worker_note_message(self._runtime.name, *job, over)
            self._runtime.create_task(self._send(reply), "job_steered")
        elif execution.request.source == message.source:
            self._take(execution, note)
        else:
            logger.warning(
                f"Worker '{self._runtime.name}': ignoring {describe(message)}: job "
                f"'{message.job_id}' is not its sender's"
            )

    def _on_answer(
        self, execution: Execution | None, message: BusJobUpdateRequestMessage, note: AnswerNote
    ) -> None:
        if execution is None or execution.request.source != message.source:
            return
        exchange = Exchange.of(execution)
        if not exchange.take_answer(note):
            # It is the answer to a question of an earlier attempt, or comes too late.
            self._withdraw(execution, note.id)

    def _withdraw(self, execution: Execution, question_id: str) -> None:
        request, withdrawn = execution.request, WithdrawnNote(question_id)
        reply = make_worker_note_message(
            self._runtime.name, request.source, request.job_id, withdrawn
        )
        self._runtime.create_task(self._send(reply), "job_question_withdrawn")

    async def _send(self, reply: BusJobUpdateMessage) -> None:
        task = RunningTask()
        try:
            await self._runtime.send(reply)
        except BaseException as error:
            task.survive(error)
            log_raised(f"Worker '{self._runtime.name}': could not send a reply", error)

    def _take(self, execution: Execution, note: SteerNote) -> None:
        exchange = Exchange.of(execution)
        if exchange.is_new(note.id):
            decision = SteerDecision(partial(self._reply, execution, exchange, note))
            self._offer(execution, note.data, execution.request.source, decision)
        else:
            self._send_replies(execution, exchange)

    def _reply(
        self,
        execution: Execution,
        exchange: Exchange,
        note: SteerNote,
        state: SteerState,
        reason: str | None,
    ) -> None:
        if state == "over":
            # The response of the job says it.
            return
        exchange.add_reply(SteeredNote(note.id, state, reason))
        self._send_replies(execution, exchange)

    def _send_replies(self, execution: Execution, exchange: Exchange) -> None:
        sending = exchange.send_replies(self._runtime, execution.request)
        self._runtime.create_task(sending, "job_steered")

    # -- questions -----------------------------------------------------------------------------

    async def ask(self, execution: Execution, note: QuestionNote) -> AnswerNote:
        """Ask the requester of a job a question, and wait for the answer."""
        exchange, request = Exchange.of(execution), execution.request
        answered: asyncio.Future[AnswerNote] = asyncio.get_running_loop().create_future()
        exchange.questions[note.id] = answered
        try:
            await self._runtime.send(
                make_worker_note_message(self._runtime.name, request.source, request.job_id, note)
            )
            return await answered
        except BaseException:
            if execution.is_open and not execution.cancelled:
                self._withdraw(execution, note.id)
            raise
        finally:
            del exchange.questions[note.id]

    # -- steers --------------------------------------------------------------------------------

    async def steer(
        self, execution: Execution, data: JobData, requester: str
    ) -> tuple[SteerState, str | None]:
        """Steer a job of this worker, and wait until it is known what became of that."""
        decided: asyncio.Future[tuple[SteerState, str | None]]
        decided = asyncio.get_running_loop().create_future()

        def decide(state: SteerState, reason: str | None) -> None:
            if not decided.done():
                decided.set_result((state, reason))

        decision = SteerDecision(decide)
        self._offer(execution, data, requester, decision)
        try:
            return await decided
        finally:
            # So that a job that waits for its slot does not take it later.
            decision.decide("over")

    def _offer(
        self, execution: Execution, data: JobData, requester: str, decision: SteerDecision
    ) -> None:
        if not execution.is_open or execution.cancelled:
            decision.decide("over", "the job has ended")
            return
        offer = Offer(JobSteer(data, execution.request.job_id, requester, decision), decision)
        exchange = Exchange.of(execution)
        if exchange.is_read or execution.state is ExecutionState.WAITING:
            exchange.add(offer)
        else:
            self._call_hook(execution, offer)

    def begin(self, execution: Execution) -> None:
        """Have the steers that waited for a handler go to it, or to the hook."""
        # Later: by then the handler has run to its first await, and has said if it takes them.
        asyncio.get_running_loop().call_soon(self._give_waiting_to_hook, execution)

    def _give_waiting_to_hook(self, execution: Execution) -> None:
        exchange = Exchange.of(execution)
        if not exchange.is_read:
            offers, exchange.waiting = exchange.waiting, type(exchange.waiting)()
            for offer in offers:
                self._call_hook(execution, offer)

    def _call_hook(self, execution: Execution, offer: Offer) -> None:
        execution.steps = execution.steps or Steps(self._runtime)
        execution.steps.run(partial(self._run_hook, execution, offer))

    async def _run_hook(self, execution: Execution, offer: Offer) -> None:
        if not execution.is_open or execution.cancelled:
            offer.decision.decide("over", "the job has ended")
            return
        exchange = Exchange.of(execution)
        # A task of its own, which ends with the job.
        exchange.hook = hook = self._runtime.create_task(
            self._take_by_hook(execution, offer), "job_steered"
        )
        await asyncio.wait({hook})
        exchange.hook = None

    async def _take_by_hook(self, execution: Execution, offer: Offer) -> None:
        enter(execution)
        task = RunningTask()
        try:
            await self._on_steered(offer.steer)
        except BaseException as error:
            task.survive(error)
            log_raised(f"on_job_steered() of worker '{self._runtime.name}' raised", error)
            offer.decision.decide("refused", f"on_job_steered() raised {type(error).__name__}")
        else:
            offer.decision.decide("accepted")
