"""The reports of one worker: what waits, what is offered to the LLM, and what was said."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from typing import Any, Protocol

from pipecat.processors.aggregators.llm_context import LLMContextMessage, LLMSpecificMessage

from pipecat_jobs.conversation.floor import Floor, FloorHolder
from pipecat_jobs.conversation.receipt import Receipt
from pipecat_jobs.conversation.report import MOST_OFFERS, Report
from pipecat_jobs.conversation.states import ReportChange, ReportState
from pipecat_jobs.conversation.wording import make_message

#: Seconds of silence before a report is offered.
SETTLE = 0.7
#: The largest number of reports in one message.
MOST_TOGETHER = 10
#: Seconds from an offer to the run of the LLM; after that the offer is taken for lost.
_RUN_LIMIT = 10.0
#: What an urgent report may cut off.
_BOT = (FloorHolder.BOT, FloorHolder.LLM)


class Speaker(Protocol):
    """How reports reach the LLM and the user."""

    @property
    def can_speak(self) -> bool:
        """Whether the worker holds the conversation."""
        ...

    def holds_reports(self) -> bool:
        """Return whether the bot's own rule holds reports back."""
        ...

    async def hand_over(self) -> bool:
        """Give what waits to the worker that holds the conversation now, if that is known."""
        ...

    async def run_llm(self, message: LLMContextMessage) -> None:
        """Put a message into the context and run the LLM."""
        ...

    async def cut_bot(self) -> None:
        """Stop the LLM's run and the bot's speech."""
        ...

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task of the worker."""
        ...


class LLMRun(Protocol):
    """One run of the LLM, from its request to the end of the speech."""

    @property
    def text(self) -> str:
        """What the LLM has generated."""
        ...


#: Unique, because a worker hands its reports over to others.
_numbers = count(1)


class Reports:
    """The reports of one worker."""

    def __init__(
        self,
        worker: str,
        floor: Floor,
        speaker: Speaker,
        notify: Callable[[ReportChange], None],
    ):
        self._worker = worker
        self._floor = floor
        self._speaker = speaker
        self._notify = notify
        self.open: list[Report] = []
        """The reports that have not settled, the oldest first."""
        self._offered: list[Report] = []
        """The reports of the offer for which no run has begun."""
        self._offer_lost: asyncio.TimerHandle | None = None
        self._carried: dict[LLMRun, list[Report]] = {}
        """The reports that each run is to say, by run."""
        self._announced: set[LLMRun] = set()
        """The runs that were requested for their reports."""
        self._work: asyncio.Task[None] | None = None

    @property
    def is_offering(self) -> bool:
        """Whether an offer is on its way to the LLM."""
        return bool(self._offered)

    # -- asking ------------------------------------------------------------------------------

    def add(
        self,
        content: object,
        *,
        key: str | None = None,
        expires_after: float | None = None,
        expires_after_turns: int | None = None,
        urgent: bool = False,
        silent: bool = False,
    ) -> Receipt:
        """Add a report; return its receipt."""
        report = Report(
            str(next(_numbers)),
            content,
            self._worker,
            self._notify,
            key=key,
            turns_left=expires_after_turns,
            urgent=urgent,
            silent=silent,
        )
        report.begin()
        if expires_after is not None:
            loop = asyncio.get_running_loop()
            report.due = loop.call_later(expires_after, _run_out, report)
        if key is not None:
            self.supersede(key, f"by report {report.id}")
        self._take_up(report)
        return report.receipt

    def supersede(self, key: str, reason: str) -> None:
        """Have the reports of a key not be offered any more."""
        for report in list(self.open):
            if report.key == key:
                report.obsolete = reason
                self.end_if_obsolete(report)

    def withdraw(self, receipt: Receipt, reason: str) -> None:
        """Have one report not be offered any more."""
        for report in [report for report in self.open if report.receipt is receipt]:
            report.obsolete = reason
            self.end_if_obsolete(report)

    def note_heard(self, receipt: Receipt, heard: str) -> None:
        """Note what the user has heard of a report at another worker."""
        for report in self.open:
            if report.receipt is receipt:
                report.heard = heard

    def _take_up(self, report: Report) -> None:
        self.open.append(report)
        report.home = self
        if _cuts_in(report):
            self._stop_waiting()
        if not report.silent:
            self._go_on()

    def end_if_obsolete(self, report: Report) -> bool:
        """Settle a report that waits and is not to be offered again."""
        if not report.owed:
            return False
        if report.obsolete is not None:
            self._settle(report, ReportState.SUPERSEDED, report.obsolete)
        elif report.out_of_time:
            self._settle(report, ReportState.EXPIRED, "its time has run out")
        elif report.turns_left is not None and report.turns_left <= 0:
            self._settle(report, ReportState.EXPIRED, "its user turns have run out")
        elif report.offers >= MOST_OFFERS:
            self._settle(report, ReportState.EXPIRED, f"it was offered {report.offers} times")
        else:
            return False
        return True

    def _settle(self, report: Report, state: ReportState, reason: str | None = None) -> None:
        report.move(state, reason)
        self.open.remove(report)

    # -- offering ----------------------------------------------------------------------------

    def _list_owed(self) -> list[Report]:
        return [report for report in self.open if report.owed and not report.silent]

    def _list_silent(self) -> list[Report]:
        return [report for report in self.open if report.owed and report.silent]

    def _go_on(self) -> None:
        """Have the reports that wait offered, in a task that ends when none is left."""
        if self._work is None or self._work.done():
            self._work = self._speaker.start_task(self._offer_all(), "reports")

    def _stop_waiting(self) -> None:
        """End the task that offers, unless it is giving an offer to the LLM."""
        if self._work is not None and not self._offered:
            self._work.cancel()
            self._work = None

    async def _offer_all(self) -> None:
        clock = asyncio.get_running_loop().time
        while owed := self._list_owed():
            urgent = any(_cuts_in(report) for report in owed)
            if urgent:
                await self._floor.until_free_but_for(_BOT, 0.0)
            else:
                await self._floor.until_free(SETTLE)
            wait = min(report.not_before for report in owed) - clock()
            if wait > 0:
                await asyncio.sleep(wait)
            elif not self._may_speak():
                if self._speaker.can_speak or not await self._speaker.hand_over():
                    await asyncio.sleep(SETTLE)
            elif self._floor.is_held_by(*_BOT):
                await self._speaker.cut_bot()
                await self._floor.until_free()
            else:
                await self._offer([r for r in self._list_owed() if r.not_before <= clock()])

    def _may_speak(self) -> bool:
        return self._speaker.can_speak and not self._speaker.holds_reports()

    async def _offer(self, reports: list[Report]) -> None:
        """Give reports to the LLM in one message, and run it."""
        if not reports:
            return
        chosen = sorted(reports, key=_cuts_in, reverse=True)[:MOST_TOGETHER]
        # Before the first await, so that nothing else is offered meanwhile.
        self._await_run([*chosen, *self._list_silent()])
        await self._speaker.run_llm(self._give_all(self._offered))

    def _await_run(self, reports: list[Report]) -> None:
        """Hold the floor until the LLM runs on reports."""
        self._end_offer()
        self._floor.take(FloorHolder.REPORT)
        self._offered = reports
        loop = asyncio.get_running_loop()
        self._offer_lost = loop.call_later(_RUN_LIMIT, self._lose_offer, "the LLM was not run")

    def _end_offer(self) -> list[Report]:
        """Note that an offer has reached the LLM, or is lost; return its reports."""
        offered, self._offered = self._offered, []
        if self._offer_lost is not None:
            self._offer_lost.cancel()
            self._offer_lost = None
        self._floor.release(FloorHolder.REPORT)
        return offered

    def _lose_offer(self, reason: str) -> None:
        for report in self._end_offer():
            self._offer_again(report, reason)

    def _offer_again(self, report: Report, reason: str, *, heard: str = "") -> None:
        """Note that a report was not said; it is offered again, later each time."""
        if report.state.settled:
            return
        report.move(ReportState.INTERRUPTED, reason, heard=heard)
        wait = SETTLE * 2 ** (report.offers - 1)
        report.not_before = asyncio.get_running_loop().time() + wait
        if not self.end_if_obsolete(report):
            self._go_on()

    # -- what the LLM and the user do --------------------------------------------------------

    def on_run(
        self, run: LLMRun, messages: Sequence[LLMContextMessage] | None
    ) -> list[LLMContextMessage] | None:
        """Note that a run of the LLM begins, with the messages of its context.

        Args:
            run: The run.
            messages: The messages; None where they are not known, as with a realtime service.

        Returns:
            The messages that the context is to have instead; None to leave it as it is.
        """
        offered = self._end_offer()
        joined, context = list[Report](), None
        if messages is None:
            carried = offered
        else:
            carried = self._take_up_again(messages, offered)
            context = self._without_old(messages)
            joined = self._choose_joining(context)
            if joined:
                message = self._give_all(joined)
                context = [*context[:-1], message, context[-1]]
        if carried or joined:
            self._carried[run] = [*carried, *joined]
            if offered:
                self._announced.add(run)
        return context

    def _take_up_again(
        self, messages: Sequence[LLMContextMessage], offered: list[Report]
    ) -> list[Report]:
        """Find the reports that a run is to say because of the messages in its context."""
        under_way = {report for reports in self._carried.values() for report in reports}
        carried = [
            report for report in self.open if report not in under_way and report.is_new_in(messages)
        ]
        for report in offered:
            if report not in carried:
                self._offer_again(report, "another run of the LLM began first")
        for report in carried:
            if report.state is ReportState.INTERRUPTED:
                report.move(ReportState.OFFERED, "it is still the last word in the context")
        return carried

    def _without_old(self, messages: Sequence[LLMContextMessage]) -> list[LLMContextMessage]:
        """Leave out the messages of reports that are to be offered again, or were.

        An LLM that reads the context again would say such a report in its answer to the user, and
        a second time in the silence. So does one that is to answer the user while the bot says the
        report.
        """
        old = [message for report in self.open for message in report.old_messages]
        if messages and _is_of_user(messages[-1]):
            # The user spoke without an interruption. The answer that is spoken is not written yet.
            old += [m for run in self._carried for r in self._carried[run] for m in r.messages]
        return _leave_out(old, messages)

    def hide_reports(self, messages: Sequence[LLMContextMessage]) -> list[LLMContextMessage]:
        """Leave out the messages of all reports that have not settled."""
        return _leave_out([m for report in self.open for m in report.messages], messages)

    def _choose_joining(self, messages: Sequence[LLMContextMessage]) -> list[Report]:
        """Choose what waits and goes into a run that answers the user."""
        if not messages or not _is_of_user(messages[-1]) or not self._may_speak():
            return []
        if self._floor.is_held_by(FloorHolder.CODE):
            return []
        # What was cut off with some of it heard waits for a silence.
        unheard = [report for report in self._list_owed() if not report.heard]
        return [*unheard[:MOST_TOGETHER], *self._list_silent()]

    def _give_all(self, reports: list[Report]) -> LLMContextMessage:
        """Make one message of reports for the LLM."""
        message = make_message(reports)
        for report in reports:
            report.messages.append(message)
            report.offers += 1
            report.move(ReportState.OFFERED)
        return message

    def on_speech(self, run: LLMRun) -> None:
        """Note that the bot speaks the answer of a run."""
        for report in self._carried.get(run, ()):
            if report.state is ReportState.OFFERED:
                report.move(ReportState.SPEAKING)

    def on_spoken(self, run: LLMRun) -> None:
        """Note that the answer of a run was spoken to its end."""
        announced = run in self._announced
        for report in self._forget(run):
            if announced and not report.silent:
                self._settle(report, ReportState.SAID)
            else:
                self._settle(report, ReportState.COVERED, "it was in the context of an answer")

    def on_unspoken(self, run: LLMRun, reason: str) -> None:
        """Note that a run ended without an answer that was spoken."""
        for report in self._forget(run):
            self._offer_again(report, reason)

    def on_called(self, run: LLMRun) -> None:
        """Note that a run has called a function for which the conversation waits.

        What the LLM says beside the call, such as "one moment", need not have the reports that have
        joined the run. They are left to the run on the function's result, or to a silence.
        """
        if run in self._announced or run not in self._carried:
            return
        carried = self._carried[run]
        self._carried[run] = [report for report in carried if report.silent]
        for report in carried:
            if not report.silent:
                report.heard = f"{report.heard} {run.text}".strip()
                self._offer_again(report, "the LLM called a function first")

    def on_cut(self, run: LLMRun, heard: str, *, whole: bool) -> None:
        """Note that the answer of a run was cut off, with the words that were heard."""
        if whole:
            self.on_spoken(run)
            return
        for report in self._forget(run):
            if heard and report.silent:
                self._settle(report, ReportState.COVERED, "it was in the context of an answer")
            else:
                report.heard = f"{report.heard} {heard}".strip()
                self._offer_again(report, "the answer was cut off", heard=heard)

    def _forget(self, run: LLMRun) -> list[Report]:
        self._announced.discard(run)
        return [report for report in self._carried.pop(run, ()) if not report.state.settled]

    def on_interruption(self) -> None:
        """Note an interruption, which drops an offer on its way to the LLM."""
        if self._offered:
            self._lose_offer("it was interrupted before the LLM had it")

    def on_user_turn(self) -> None:
        """Count a turn of the user."""
        for report in list(self.open):
            if report.turns_left is not None:
                report.turns_left -= 1
                self.end_if_obsolete(report)

    # -- a hand-over -------------------------------------------------------------------------

    def adopt(self, other: "Reports") -> None:
        """Take over what is open at a worker that no longer holds the conversation."""
        other._stop_waiting()
        offered = other._end_offer()
        self._carried |= other._carried
        self._announced |= other._announced
        adopted, other.open = other.open, []
        other._carried, other._announced = {}, set()
        if offered:
            self._await_run(offered)
        for report in adopted:
            self._take_up(report)

    def lend(self, report: Report, worker: str) -> None:
        """Note that the worker of another process, which holds the conversation, has a report."""
        report.move(ReportState.OFFERED, f"worker '{worker}' holds the conversation and has it")

    def take_back(self, report: Report, state: ReportState | None, reason: str | None) -> None:
        """Note what became of a report at that worker; None if that is not known."""
        if report.state.settled:
            return
        if state is None:
            self._offer_again(report, reason or "the other worker could not say it")
            return
        if state in (ReportState.SUPERSEDED, ReportState.EXPIRED):
            report.move(ReportState.INTERRUPTED)
        self._settle(report, state, reason)

    # -- the end -----------------------------------------------------------------------------

    def drop_owed(self, reason: str) -> None:
        """Drop the reports that are not being spoken: the session ends."""
        for report in list(self.open):
            if report.owed:
                self._settle(report, ReportState.DROPPED, reason)

    def drop_all(self, reason: str) -> None:
        """Drop every report: the session has ended."""
        self._end_offer()
        if self._work is not None:
            self._work.cancel()
        for report in list(self.open):
            self._settle(report, ReportState.DROPPED, reason)


def _leave_out(
    old: Sequence[LLMContextMessage], messages: Sequence[LLMContextMessage]
) -> list[LLMContextMessage]:
    return [message for message in messages if message not in old] if old else list(messages)


def _cuts_in(report: Report) -> bool:
    """Return whether a report may cut the bot's speech off: once, at its first offer."""
    return report.urgent and not report.offers


def _run_out(report: Report) -> None:
    report.out_of_time = True
    if report.home is not None:
        report.home.end_if_obsolete(report)


def _is_of_user(message: LLMContextMessage) -> bool:
    return not isinstance(message, LLMSpecificMessage) and message.get("role") == "user"
