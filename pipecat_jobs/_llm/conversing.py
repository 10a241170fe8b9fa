"""The conversation of a worker's LLM: its floor, and its reports to the user."""

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import InterruptionFrame, LLMMessagesAppendFrame
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContextMessage
from pipecat.services.llm_service import LLMService
from pipecat.workers.base_worker import WorkerActivationArgs

from pipecat_jobs._llm.context_value import to_context_value
from pipecat_jobs._llm.parts import find_llms, find_only_llm
from pipecat_jobs._llm.questions import UserQuestions
from pipecat_jobs._llm.runs import Run
from pipecat_jobs._llm.turns import LLMTurns
from pipecat_jobs._llm.watch import LLMWatch, watch
from pipecat_jobs._pipecat import is_speech_to_speech, start_event_handlers, takes_messages
from pipecat_jobs._protocol.checks import (
    check_count,
    check_encodable,
    check_flag,
    check_seconds,
)
from pipecat_jobs._protocol.handlers import job
from pipecat_jobs._protocol.hooks import guarded
from pipecat_jobs._worker.mixin import WorkerJobs
from pipecat_jobs._worker.tasks import start_task
from pipecat_jobs.conversation.floor import Floor, FloorHolder
from pipecat_jobs.conversation.receipt import Receipt
from pipecat_jobs.conversation.report import Report
from pipecat_jobs.conversation.reports import Reports
from pipecat_jobs.conversation.states import ReportChange, ReportState
from pipecat_jobs.errors import InvalidJobError, JobError
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.questions import JobQuestion

#: Seconds until a report expires if it is not said, unless it says so itself.
EXPIRES_AFTER = 60.0
#: Seconds without a worker that sees the frames, after which it is not known whether the user
#: still speaks.
_GAP = 1.0
#: The job with which a worker has another process say a report.
REPORT_JOB = "pipecat_jobs_report"
_EVENT = "on_report_changed"


class Conversation:
    """What the worker of an LLM reports to the user. It begins with the first report."""

    def __init__(self, worker: PipelineWorker, llm: LLMService[Any]):
        self.worker = worker
        self._llm = llm
        self._watch: LLMWatch = watch(llm)
        self._changes: deque[ReportChange] = deque()
        self._telling: asyncio.Task[None] | None = None
        self.reports = Reports(worker.name, self.floor, self, self._tell)
        self._watch.runs.listener = self
        self._watch.on_interruption = self.reports.on_interruption
        self._watch.on_user_turn = self.reports.on_user_turn
        self._watch.endings.add(self._end)
        self.questions = UserQuestions(cast("WorkerJobs", worker), self.reports)
        self._watch.change_tools = self.questions.change_tools

    @property
    def floor(self) -> Floor:
        """Who may speak now."""
        return self._watch.floor

    @property
    def is_open(self) -> bool:
        """Whether a report has not settled, or a question has no answer."""
        return bool(self.reports.open) or self.questions.any_open

    async def _end(self) -> None:
        self.reports.drop_owed("the session ended")

    def close(self) -> None:
        """Drop every report: the worker stops."""
        self._watch.unfollow()
        self._watch.endings.discard(self._end)
        self.reports.drop_all("the session ended")
        # The LLM is the key of an entry that refers to it, and would be kept.
        _conversations.pop(self._llm, None)

    # -- how reports reach the LLM -----------------------------------------------------------

    @property
    def can_speak(self) -> bool:
        """Whether the worker holds the conversation."""
        worker = self.worker
        return bool(worker.started_at) and (worker.active or not worker.bridged)

    def holds_reports(self) -> bool:
        """Return whether the bot's own rule holds reports back."""
        worker = self.worker
        return isinstance(worker, Conversing) and worker.holds_reports()

    async def hand_over(self) -> bool:
        """Give the reports to the worker that holds the conversation now, if that is known."""
        worker = self.worker
        successor = worker.find_successor() if isinstance(worker, Conversing) else None
        if successor is None:
            return False
        if isinstance(successor, PipelineWorker):
            self.hand_over_to(successor)
        else:
            await self.questions.refuse_all(
                f"worker '{successor}' of another process holds the conversation now, and its LLM "
                "cannot pass an answer on; let a worker of the same process take the conversation "
                "over, or end the job first"
            )
            for report in [report for report in self.reports.open if report.owed]:
                self.reports.lend(report, successor)
                self.start_task(self._lend(report, successor), "report_lent")
        return True

    def hand_over_to(self, successor: PipelineWorker) -> None:
        """Give the reports to a worker of this process."""
        other = converse(successor, find_only_llm(successor))
        other._watch.runs.adopt(self._watch.runs)
        other.reports.adopt(self.reports)
        other.questions.adopt(self.questions)

    async def _lend(self, report: Report, name: str) -> None:
        """Have a worker of another process say a report."""
        job = cast("WorkerJobs", self.worker).job(
            name,
            name=REPORT_JOB,
            payload={
                "content": report.content,
                "heard": report.heard,
                "key": report.key,
                "expires_after": report.time_left,
                "expires_after_turns": report.turns_left,
                "urgent": report.urgent,
                "silent": report.silent,
            },
        )
        try:
            ended = await job
        except JobError as error:
            self.reports.take_back(report, None, str(error))
        else:
            state = next((state for state in ReportState if state == ended.get("state")), None)
            self.reports.take_back(report, state, ended.get("reason"))

    async def run_llm(self, message: LLMContextMessage) -> None:
        """Put a message into the context and run the LLM."""
        # At the LLM itself: a realtime service reads messages only here. The assistant aggregator
        # behind it, which may be on the other side of a bridge, writes the context.
        await self._llm.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))

    async def cut_bot(self) -> None:
        """Stop the LLM's run and the bot's speech."""
        await self._llm.queue_frame(InterruptionFrame())

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task of the worker."""
        return start_task(self.worker, work, name)

    # -- what the LLM does -------------------------------------------------------------------

    def on_run(
        self, run: Run, messages: Sequence[LLMContextMessage] | None
    ) -> list[LLMContextMessage] | None:
        """Note that a run begins; return other messages for its context, None for the same."""
        turns = find_turns(self.worker)
        if turns is not None and turns.runs_for_job:
            return None
        announced = self.reports.is_offering
        context = self.reports.on_run(run, messages)
        if announced and self.floor.is_held_by(FloorHolder.USER):
            # The user began to speak while the offer was on its way.
            self.start_task(self.cut_bot(), "report_cut")
        return context

    def hide_reports(self, messages: list[LLMContextMessage]) -> list[LLMContextMessage]:
        """Leave out the messages of the reports of which the user has not heard all."""
        return self.reports.hide_reports(messages)

    def on_speech(self, run: Run) -> None:
        """Note that the bot speaks the text of a run."""
        self.reports.on_speech(run)

    def on_spoken(self, run: Run) -> None:
        """Note that the text of a run was spoken to its end."""
        self.reports.on_spoken(run)

    def on_unspoken(self, run: Run, reason: str) -> None:
        """Note that a run ended without a text that was spoken."""
        self.reports.on_unspoken(run, reason)

    def on_called(self, run: Run) -> None:
        """Note that a run has called a function for which the conversation waits."""
        self.reports.on_called(run)

    def on_cut(self, run: Run, heard: str, *, whole: bool) -> None:
        """Note that a run was cut off, with the words that were heard."""
        self.reports.on_cut(run, heard, whole=whole)

    # -- telling the bot ---------------------------------------------------------------------

    def _tell(self, change: ReportChange) -> None:
        self._changes.append(change)
        if self._telling is None or self._telling.done():
            self._telling = self.start_task(self._tell_all(), "report_hooks")

    async def _tell_all(self) -> None:
        worker = self.worker
        while self._changes:
            change = self._changes.popleft()
            if not isinstance(worker, Conversing):
                continue
            where = f"{_EVENT}() of worker '{worker.name}'"
            await guarded(where, partial(worker.on_report_changed, change))
            start_event_handlers(worker, _EVENT, change)


def find_turns(worker: PipelineWorker) -> LLMTurns | None:
    """Find the LLM turns of a worker."""
    turns = getattr(worker, "_llm_turns", None)
    return turns if isinstance(turns, LLMTurns) else None


_conversations: WeakKeyDictionary[LLMService[Any], Conversation] = WeakKeyDictionary()


def converse(worker: PipelineWorker, llm: LLMService[Any]) -> Conversation:
    """Return the conversation of an LLM, which begins with the first call for that LLM."""
    found = _conversations.get(llm)
    if found is None:
        found = _conversations[llm] = Conversation(worker, llm)
    return found


def _can_report(worker: PipelineWorker) -> bool:
    """Return whether a worker has one LLM, and that one takes reports."""
    llms = find_llms(worker)
    return len(llms) == 1 and takes_messages(llms[0])


def find_conversations(worker: PipelineWorker) -> list[Conversation]:
    """Find the conversations of a worker."""
    return [found for found in _conversations.values() if found.worker is worker]


#: The workers of this process.
_conversing: "WeakSet[Conversing]" = WeakSet()


class Conversing(WorkerJobs):
    """The part of the workers with a pipeline that reports to the user."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._register_event_handler(_EVENT)
        self.__successor: str | None = None
        self.__left: tuple[float, bool] | None = None
        """When this worker left the conversation, and whether the user had a turn then."""
        _conversing.add(self)

    @property
    def floor(self) -> Floor:
        """Who may speak now in the conversation of this worker's LLM.

        Raises:
            InvalidJobError: If the pipeline does not have exactly one LLM.

        Example::

            class Host(LLMWorker):
                async def play_music(self):
                    await self.floor.until_free(2)
        """
        return self.__find_watch().floor

    async def report(
        self,
        content: object,
        *,
        key: str | None = None,
        expires_after: float | None = EXPIRES_AFTER,
        expires_after_turns: int | None = None,
        urgent: bool = False,
        silent: bool = False,
    ) -> Receipt:
        """Have the LLM tell the user something when nobody speaks, and know whether it was said.

        The LLM gets the report in a silence, together with the others that wait: as one message,
        for one run. When the user speaks first, the run that answers the user gets it as well. What
        the user interrupts is offered again in a later silence, at most five times.

        Args:
            content: What to tell, of any type that can be written as JSON; other values are
                written as text.
            key: What the report is about. A newer report of the same key takes its place, unless
                it is being said.
            expires_after: Seconds after which it is not offered any more; None for no limit.
            expires_after_turns: User turns after which it is not offered any more; None for no
                limit.
            urgent: Whether it stops the bot's speech, and is offered as soon as the user is silent.
            silent: Whether the LLM only gets to know it, with its next run, and need not tell it.

        Returns:
            The receipt; see :class:`~pipecat_jobs.Receipt`.

        Raises:
            InvalidJobError: If an argument cannot be used, or the pipeline does not have exactly
                one LLM, or that is a realtime service which does not take messages.

        Example::

            class Waiter(LLMWorker):
                async def announce(self, order: int):
                    receipt = await self.report(
                        {"order": order, "status": "ready"}, key=f"order-{order}"
                    )
                    print(await receipt.until_settled())
        """
        if content is None:
            raise InvalidJobError("content is None; give what the LLM is to tell the user")
        if key is not None:
            check_encodable("key", key, "what the report is about, as a string, or None")
        if expires_after is not None:
            check_seconds("expires_after", expires_after)
        if expires_after_turns is not None:
            check_count("expires_after_turns", expires_after_turns, "user turns, or None")
        for name, flag in (("urgent", urgent), ("silent", silent)):
            check_flag(name, flag)
        if urgent and silent:
            raise InvalidJobError("urgent=True and silent=True exclude each other; give one")
        llm = find_only_llm(self.__check())
        if not takes_messages(llm):
            raise InvalidJobError(
                f"{llm} of worker '{self.name}' is a realtime service that takes no message while "
                "the conversation goes on, in this version of Pipecat, so it cannot tell the user "
                "a report; use a newer Pipecat, another service, or push a TTSSpeakFrame"
            )
        conversation = converse(self.__check(), llm)
        receipt = conversation.reports.add(
            to_context_value(content),
            key=key,
            expires_after=expires_after,
            expires_after_turns=expires_after_turns,
            urgent=urgent,
            silent=silent,
        )
        if self._job_departure.stopped:
            conversation.close()
        return receipt

    async def on_job_question(self, question: JobQuestion) -> object:
        """Have the user answer a question of the worker of a job; override it to answer yourself.

        The LLM asks the user in a silence, with a report, and passes the user's words on with a
        tool that is made for the question. When the user does not want to answer, it cancels the
        job. A question about a job that was requested in the handler of another job goes to the
        requester of that one. A question of a job for whose result the LLM waits is refused.

        Args:
            question: The question.

        Returns:
            None: the answer is given with ``question.answer()``.
        """
        llm = self.__find_asking_llm(question)
        if llm is None:
            return await super().on_job_question(question)
        if question.job_id in watch(llm).awaited_jobs:
            await question.refuse(
                f"the LLM of worker '{self.name}' waits for the result of this job and cannot ask "
                "the user meanwhile; give its tool cancel_on_interruption=False"
            )
            return None
        await self.__converse().questions.ask(question)
        return None

    def can_ask_user(self, question: JobQuestion) -> bool:
        """Return whether the LLM can ask the user a question. This package calls it."""
        llm = self.__find_asking_llm(question)
        return llm is not None and question.job_id not in watch(llm).awaited_jobs

    def __find_asking_llm(self, question: JobQuestion) -> LLMService[Any] | None:
        """Find the LLM whose user a question is for."""
        llms = find_llms(self.__check())
        if len(llms) != 1 or is_speech_to_speech(llms[0]) or self._find_outer_job(question):
            return None
        return llms[0]

    async def activate_worker(
        self,
        worker_name: str,
        *,
        args: WorkerActivationArgs | None = None,
        deactivate_self: bool = False,
    ) -> None:
        """Activate another worker. If this one is deactivated, its reports go to the other.

        Args:
            worker_name: The name of the worker.
            args: What the worker gets with its activation.
            deactivate_self: Whether to deactivate this worker first.
        """
        if deactivate_self:
            self.__successor = worker_name
        await super().activate_worker(worker_name, args=args, deactivate_self=deactivate_self)

    async def on_activated(self, args: dict[str, Any] | None) -> None:
        """Begin to hold the conversation. Pipecat calls this.

        Args:
            args: What was given with the activation.
        """
        self.__successor = self.__left = None
        if self.__can_converse():
            self.__take_over()
        await super().on_activated(args)

    async def on_deactivated(self) -> None:
        """Cease to hold the conversation. Pipecat calls this."""
        self.__leave()
        await super().on_deactivated()
        for conversation in find_conversations(self.__check()):
            if conversation.is_open:
                await conversation.hand_over()

    def find_successor(self) -> "PipelineWorker | str | None":
        """Find the worker that holds the conversation after this one. This package calls it.

        Returns:
            The worker if it runs in this process, otherwise its name; None if it is not known.
        """
        try:
            runner = self.worker_runner
        except RuntimeError:
            return None
        if self.__successor is not None:
            found = runner.get_worker(self.__successor)
            if not isinstance(found, PipelineWorker):
                return self.__successor
            return found if _can_report(found) else None
        active = [worker for worker in self.__find_others() if worker.active]
        return cast("PipelineWorker", active[0]) if len(active) == 1 else None

    def __find_others(self) -> "list[Conversing]":
        """Find the other workers of this process that may hold the conversation."""
        runner = self.worker_runner
        return [
            worker
            for worker in _conversing
            if worker is not self
            and worker.started_at
            and worker.worker_runner is runner
            and worker.__can_converse()
        ]

    def __can_converse(self) -> bool:
        return self.__check().bridged and _can_report(self.__check())

    def __take_over(self) -> None:
        """Take over who speaks, and the reports, from those who held the conversation."""
        now, own = asyncio.get_running_loop().time(), self.__find_watch()
        for other in self.__find_others():
            if other.active:
                continue
            since, in_user_turn = other.__leave()
            if in_user_turn and now - since < _GAP:
                own.take_over_turn()
            own.runs.adopt(other.__find_watch().runs)
            for conversation in find_conversations(other.__check()):
                conversation.hand_over_to(self.__check())

    @job(name=REPORT_JOB)
    async def say_report(self, message: BusJobRequestMessage) -> JobData:
        """Say a report of a worker in another process, which held the conversation before.

        Args:
            message: The request; its payload has the arguments of :meth:`report`.

        Returns:
            ``{"state": ..., "reason": ...}``, once the report has settled.
        """
        given = dict(message.payload or {})
        heard = given.pop("heard", None)
        receipt = await self.report(given.pop("content", None), **given)
        reports = self.__converse().reports
        reports.note_heard(receipt, heard if isinstance(heard, str) else "")
        try:
            state = await receipt.until_settled()
        except asyncio.CancelledError:
            reports.withdraw(receipt, "the worker that reports has stopped")
            raise
        return {"state": str(state), "reason": receipt.history[-1].reason}

    def holds_reports(self) -> bool:
        """Return whether reports have to wait, by a rule of the bot's own. Override it.

        It is asked before each offer, and several times a second while it returns True.

        Returns:
            False. An override returns True to hold the reports back.

        Example::

            class Bank(LLMWorker):
                reading_pin = False

                def holds_reports(self) -> bool:
                    return self.reading_pin
        """
        return False

    async def on_report_changed(self, change: ReportChange) -> None:
        """Get a change of the state of one of this worker's reports. Override it.

        The event handlers of ``on_report_changed`` get it too.

        Args:
            change: The change.

        Example::

            class Host(LLMWorker):
                async def on_report_changed(self, change):
                    print(change.report_id, change.state)
        """

    def __leave(self) -> tuple[float, bool]:
        """Note whether the user speaks, and forget it: an inactive worker does not see the frames.

        Returns:
            When the worker left the conversation, and whether the user had a turn then.
        """
        if self.__left is None:
            in_user_turn = self.__can_converse() and self.__find_watch().leave()
            self.__left = asyncio.get_running_loop().time(), in_user_turn
        return self.__left

    def __converse(self) -> Conversation:
        worker = self.__check()
        return converse(worker, find_only_llm(worker))

    def __find_watch(self) -> LLMWatch:
        return watch(find_only_llm(self.__check()))

    def __check(self) -> PipelineWorker:
        return cast("PipelineWorker", self)
