"""The states of a report."""

from dataclasses import dataclass
from enum import StrEnum


class ReportState(StrEnum):
    """The state of a report; ``docs/how-to/reports.md`` draws the transitions.

    Attributes:
        WAITING: The report waits for a silence.
        OFFERED: The LLM has the report, and has not begun to speak.
        SPEAKING: The bot speaks the LLM's answer to it.
        INTERRUPTED: The answer was cut off, or did not come. The report is offered again.
        SAID: The end: the answer to it was spoken to its end.
        COVERED: The end: the LLM had it when it answered something else, and that answer was
            spoken to its end.
        SUPERSEDED: The end: a newer report of the same key came before it was said.
        EXPIRED: The end: its time, its user turns or its offers have run out.
        DROPPED: The end: the session ended before it was said.

    Example::

        class Host(LLMWorker):
            async def tell(self, order: int):
                receipt = await self.report({"order": order, "status": "ready"})
                if await receipt.until_settled() is not ReportState.SAID:
                    print(f"order {order} was not announced")
    """

    WAITING = "waiting"
    OFFERED = "offered"
    SPEAKING = "speaking"
    INTERRUPTED = "interrupted"
    SAID = "said"
    COVERED = "covered"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    DROPPED = "dropped"

    @property
    def settled(self) -> bool:
        """Whether it is the report's last state."""
        return not TRANSITIONS[self]


#: The states that may follow each state.
TRANSITIONS: dict[ReportState, frozenset[ReportState]] = {
    ReportState.WAITING: frozenset(
        {
            ReportState.OFFERED,
            ReportState.SUPERSEDED,
            ReportState.EXPIRED,
            ReportState.DROPPED,
        }
    ),
    ReportState.OFFERED: frozenset(
        {
            ReportState.SPEAKING,
            ReportState.SAID,
            ReportState.COVERED,
            ReportState.INTERRUPTED,
            ReportState.DROPPED,
        }
    ),
    ReportState.SPEAKING: frozenset(
        {
            ReportState.SAID,
            ReportState.COVERED,
            ReportState.INTERRUPTED,
            ReportState.DROPPED,
        }
    ),
    ReportState.INTERRUPTED: frozenset(
        {
            ReportState.OFFERED,
            ReportState.SUPERSEDED,
            ReportState.EXPIRED,
            ReportState.DROPPED,
        }
    ),
    ReportState.SAID: frozenset(),
    ReportState.COVERED: frozenset(),
    ReportState.SUPERSEDED: frozenset(),
    ReportState.EXPIRED: frozenset(),
    ReportState.DROPPED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportChange:
    """One change of the state of a report.

    Parameters:
        report_id: The id of the report.
        state: The new state.
        time: The time of the change, in seconds since the epoch (``time.time()``).
        reason: Why, in a few words; None where the state says it.
        content: What the report says.
        key: The key of the report, or None.
        worker: Name of the worker that reports.
        heard: The words of the bot that the user had heard when the answer was cut off; empty for
            other states.

    Example::

        class Host(LLMWorker):
            async def on_report_changed(self, change):
                if change.state is ReportState.INTERRUPTED:
                    print(f"cut off after '{change.heard}'")
    """

    report_id: str
    state: ReportState
    time: float
    reason: str | None
    content: object
    key: str | None
    worker: str
    heard: str = ""
