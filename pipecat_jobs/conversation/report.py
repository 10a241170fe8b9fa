"""One report: what it says, its limits, and its state."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipecat.processors.aggregators.llm_context import LLMContextMessage, LLMSpecificMessage

from pipecat_jobs.conversation.receipt import Receipt
from pipecat_jobs.conversation.states import TRANSITIONS, ReportChange, ReportState

#: How often a report is offered to the LLM before it expires.
MOST_OFFERS = 5
#: The states of a report that waits for an offer.
OWED = frozenset({ReportState.WAITING, ReportState.INTERRUPTED})


class Home(Protocol):
    """The reports of the worker that is to say a report."""

    def end_if_obsolete(self, report: "Report") -> bool:
        """Settle a report that waits and is not to be offered again."""
        ...


@dataclass(eq=False, slots=True)
class Report:
    """One report of a worker."""

    id: str
    content: object
    worker: str
    notify: Callable[[ReportChange], None]
    key: str | None = None
    turns_left: int | None = None
    """User turns until it expires; None for no limit."""
    urgent: bool = False
    silent: bool = False
    receipt: Receipt = field(init=False)
    offers: int = 0
    not_before: float = 0.0
    """The earliest time of the next offer, on the event loop's clock."""
    heard: str = ""
    """What the user heard of it before it was cut off."""
    messages: list[LLMContextMessage] = field(default_factory=list[LLMContextMessage])
    """The messages with which the LLM got it, the latest last."""
    obsolete: str | None = None
    """What has taken its place."""
    due: asyncio.TimerHandle | None = None
    """When its time runs out; None for no limit."""
    out_of_time: bool = False
    home: "Home | None" = None
    """The reports of the worker that is to say it."""

    def __post_init__(self) -> None:
        self.receipt = Receipt(self.id)

    @property
    def state(self) -> ReportState:
        """The present state."""
        return self.receipt.state

    @property
    def owed(self) -> bool:
        """Whether it waits for an offer."""
        return self.state in OWED

    @property
    def time_left(self) -> float | None:
        """Seconds until its time runs out; None for no limit."""
        if self.due is None:
            return None
        return max(0.001, self.due.when() - asyncio.get_running_loop().time())

    def move(self, state: ReportState, reason: str | None = None, *, heard: str = "") -> None:
        """Change the state to one that the table allows."""
        assert state in TRANSITIONS[self.state], f"a report went from {self.state} to {state}"
        self._note(state, reason, heard)
        if state.settled and self.due is not None:
            self.due.cancel()

    def begin(self) -> None:
        """Record that it waits, which is its first state."""
        self._note(ReportState.WAITING, None, "")

    def _note(self, state: ReportState, reason: str | None, heard: str) -> None:
        change = ReportChange(
            report_id=self.id,
            state=state,
            time=time.time(),
            reason=reason,
            content=self.content,
            key=self.key,
            worker=self.worker,
            heard=heard,
        )
        self.receipt.note(change)
        self.notify(change)

    @property
    def old_messages(self) -> list[LLMContextMessage]:
        """The messages in the context that no run is to answer any more."""
        if self.state is ReportState.INTERRUPTED and self.heard:
            return self.messages
        return self.messages[:-1]

    def is_new_in(self, messages: Sequence[LLMContextMessage]) -> bool:
        """Return whether a context has it, and the assistant has said nothing since."""
        if not self.messages:
            return False
        latest = self.messages[-1]
        for message in reversed(messages):
            if message == latest:
                return True
            if _is_said(message):
                return False
        return False


def _is_said(message: LLMContextMessage) -> bool:
    """Return whether a message holds words of the assistant."""
    if isinstance(message, LLMSpecificMessage):
        return False
    return message.get("role") == "assistant" and bool(message.get("content"))
