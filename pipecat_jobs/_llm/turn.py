"""One turn of an LLM: its state, and its messages in the context.

A *turn* is all work of an LLM for one request: the first run, the function calls of that run, the
runs on their results, and the text that enters the context at the end.
"""

import asyncio
from dataclasses import replace
from enum import StrEnum
from typing import Any

from pipecat.frames.frames import FunctionCallFromLLM
from pipecat.processors.aggregators import async_tool_messages
from pipecat.processors.aggregators.llm_context import (
    LLMContext,
    LLMContextMessage,
    LLMSpecificMessage,
)

from pipecat_jobs._executor.execution import Execution
from pipecat_jobs._llm.result import LLMTurn, LLMTurnCall
from pipecat_jobs._llm.steers import TurnSteers
from pipecat_jobs.errors import LLMTurnError


class TurnState(StrEnum):
    """The state of a turn; ``docs/how-to/llm.md`` draws the transitions."""

    ASKED = "asked"
    """A run of the LLM is requested, or the text of a run is on its way to the context."""
    RUNNING = "running"
    """The LLM generates for the turn."""
    CALLING = "calling"
    """The turn waits only for the results of its function calls."""
    OWED = "owed"
    """Pipecat has put off the next run until all speech ends or more results arrive."""
    STOPPING = "stopping"
    """The turn failed or was cancelled. A run of it that still begins is interrupted."""
    DONE = "done"
    """The turn succeeded, and nothing of it is left in the pipeline."""
    STOPPED = "stopped"
    """The turn failed or was cancelled, and nothing of it is left in the pipeline."""


#: A turn in one of these states may still succeed.
_WELL = frozenset({TurnState.ASKED, TurnState.RUNNING, TurnState.CALLING, TurnState.OWED})
_ENDS = frozenset({TurnState.STOPPING, TurnState.DONE})

#: The states that may follow each state.
TRANSITIONS: dict[TurnState, frozenset[TurnState]] = {
    **{state: (_WELL - {state}) | _ENDS for state in _WELL},
    TurnState.STOPPING: frozenset({TurnState.STOPPED}),
    TurnState.DONE: frozenset(),
    TurnState.STOPPED: frozenset(),
}


class Turn:
    """One turn of an LLM, which a job or ``llm_turn()`` (``awaited``) may have started."""

    def __init__(
        self,
        job: Execution | None = None,
        *,
        awaited: bool = False,
        heard: bool = False,
        max_runs: int | None = None,
        steers: TurnSteers | None = None,
    ):
        self.job = job
        self.awaited = awaited
        """Whether ``llm_turn()`` or ``hear()`` waits for it, and raises its failure."""
        self.heard = heard
        """Whether a text beside calls in the background is an answer, as in a conversation."""
        self.max_runs = max_runs
        """How many runs of the LLM it may have; None for no limit."""
        self.steers = steers
        """The steers of its job, if it takes them."""
        self.state = TurnState.ASKED
        self.failure: LLMTurnError | None = None
        """Why it failed."""
        self.text = ""
        """The text of the latest run so far."""
        self.tokens: asyncio.Queue[str | None] = asyncio.Queue()
        """The text of every run, in parts as it is generated; None at the end."""
        self.runs = 0
        """Number of runs that were requested and whose text has not reached the context."""
        self.texts = 0
        """Number of its texts that are on their way to the context."""
        self.begun = 0
        """Number of runs that the LLM has begun."""
        self.stop_reason: str | None = None
        """Why the provider ended the latest run, where that is known."""
        self.calls: set[str] = set()
        """Ids of its function calls that have no result."""
        self.background: set[str] = set()
        """Ids of its function calls for which the conversation does not wait."""
        self.error: str | None = None
        """The provider's last error in the latest run."""
        self.messages: list[LLMContextMessage] = []
        """Its messages in the context, without its function calls."""
        self.dropped_others = False
        """Whether stopping it has dropped runs of other turns, which have to be requested again."""
        self._made_calls: dict[str, LLMTurnCall] = {}

    @property
    def owned(self) -> bool:
        """Whether an interruption makes it fail; a user's own turn goes on as in Pipecat."""
        return self.awaited or self.job is not None

    @property
    def is_well(self) -> bool:
        """Whether it is neither over, failed nor cancelled."""
        return self.state in _WELL

    @property
    def is_at_its_last_run(self) -> bool:
        """Whether it may have no run after the one that the LLM has begun."""
        return self.max_runs is not None and self.begun >= self.max_runs

    @property
    def is_steered(self) -> bool:
        """Whether it needs one more run, for the steers that wait."""
        return (
            self.steers is not None
            and self.steers.are_waiting
            and self.is_well
            and not self.is_at_its_last_run
        )

    @property
    def is_answered(self) -> bool:
        """Whether it has an answer, and waits for nothing but calls in the background."""
        return self.heard and self.calls <= self.background and bool(self.text.strip())

    def release(self) -> None:
        """End the wait for it: it goes on as a turn of the user's conversation."""
        self.awaited = self.heard = False
        self.tokens.put_nowait(None)

    @property
    def result(self) -> LLMTurn:
        """What it gives once it is done."""
        return LLMTurn(
            self.text,
            calls=self._made_calls.values(),
            stop_reason=self.stop_reason,
            runs=self.begun,
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left in the pipeline."""
        return not TRANSITIONS[self.state]

    def move(self, state: TurnState) -> None:
        """Change the state to one that the table allows, or keep it."""
        if state is not self.state:
            assert state in TRANSITIONS[self.state], f"a turn went from {self.state} to {state}"
            self.state = state

    def stop(self) -> None:
        """Record that it is to be stopped, if it has not ended."""
        if self.is_well:
            self.move(TurnState.STOPPING)

    def fail(self, failure: LLMTurnError) -> None:
        """Record why it failed, and that it is to be stopped."""
        self.stop()
        self.failure = failure
        self.tokens.put_nowait(None)

    def close(self) -> None:
        """Record that nothing of it is left in the pipeline."""
        self.runs = self.texts = 0
        if self.is_well:
            self.move(TurnState.DONE)
        elif self.state is TurnState.STOPPING:
            self.move(TurnState.STOPPED)
        self.tokens.put_nowait(None)

    def note_call(self, call: FunctionCallFromLLM) -> None:
        """Record a function call that it makes."""
        self.calls.add(call.tool_call_id)
        self._made_calls[call.tool_call_id] = LLMTurnCall(call.function_name, call.arguments)

    def note_result(self, call: str, result: Any) -> None:
        """Record the last result of one of its function calls."""
        self.calls.discard(call)
        self._made_calls[call] = replace(self._made_calls[call], result=result)

    def put_in_steers(self, context: LLMContext) -> None:
        """Append the steers that wait to a context that the LLM is about to run on."""
        if self.steers is not None and (messages := self.steers.take()):
            self.messages.extend(messages)
            context.add_messages(messages)

    def take_out(self, context: LLMContext) -> None:
        """Remove its messages from a context."""
        own = {id(message) for message in self.messages}
        context.set_messages(
            [
                message
                for message in context.messages
                if id(message) not in own and not self._is_of_its_calls(message)
            ]
        )

    def _is_of_its_calls(self, message: LLMContextMessage) -> bool:
        """Return whether a message is a function call of this turn, or the result of one."""
        if isinstance(message, LLMSpecificMessage):
            return False
        calls = {call.get("id") for call in message.get("tool_calls") or ()}
        calls.add(message.get("tool_call_id"))
        if message.get("role") == "developer" and (
            update := async_tool_messages.parse_message(message)
        ):
            calls.add(update.tool_call_id)
        return not calls.isdisjoint(self._made_calls)
