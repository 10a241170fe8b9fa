"""One turn of an LLM: its state, and what it put into the context.

A *turn* is everything an LLM does for one request: the run that answers it, the function calls of
that run, the runs that follow on their results, and the last words in the context.
"""

import asyncio
from enum import StrEnum

from pipecat.processors.aggregators import async_tool_messages
from pipecat.processors.aggregators.llm_context import (
    LLMContext,
    LLMContextMessage,
    LLMSpecificMessage,
)

from pipecat_jobs._executor.execution import Execution
from pipecat_jobs.errors import LLMTurnError


class TurnState(StrEnum):
    """Where a turn is in its life; ``docs/llm.md`` draws the transitions."""

    ASKED = "asked"
    """A run of the LLM is asked for, or the words of one are on their way to the context."""
    RUNNING = "running"
    """The LLM generates for it."""
    CALLING = "calling"
    """It waits for the results of its function calls alone."""
    OWED = "owed"
    """Pipecat has put off its next run until all speech ends or more results arrive."""
    STOPPING = "stopping"
    """It failed or was cancelled. A run of it that still begins is interrupted."""
    DONE = "done"
    """It ended well, and nothing of it is left in the pipeline."""
    STOPPED = "stopped"
    """It failed or was cancelled, and nothing of it is left in the pipeline."""


#: In these a turn may still end well.
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
    """One turn of an LLM, of a job (``job``), of ``llm_turn()`` (``awaited``) or of neither."""

    def __init__(self, job: Execution | None = None, *, awaited: bool = False):
        self.job = job
        self.awaited = awaited
        """Whether ``llm_turn()`` waits for it, and raises its failure."""
        self.state = TurnState.ASKED
        self.failure: LLMTurnError | None = None
        """Why it did not end well."""
        self.text = ""
        """What the latest run has said so far."""
        self.tokens: asyncio.Queue[str | None] = asyncio.Queue()
        """What every run says, as it is said; None at the end."""
        self.runs = 0
        """Runs that were requested and whose words are not in the context."""
        self.calls: set[str] = set()
        """Ids of its function calls that have no result."""
        self.error: str | None = None
        """The provider's last error in the latest run."""
        self.messages: list[LLMContextMessage] = []
        """What it put into the context, its function calls aside."""
        self.dropped_others = False
        """Whether stopping it has dropped runs of other turns, which have to be asked for again."""
        self._made_calls: set[str] = set()
        self._closed = asyncio.Event()

    @property
    def owned(self) -> bool:
        """Whether it fails when it is interrupted; a user's own turn goes on as Pipecat has it."""
        return self.awaited or self.job is not None

    @property
    def is_well(self) -> bool:
        """Whether it is neither over, failed nor cancelled."""
        return self.state in _WELL

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left in the pipeline."""
        return not TRANSITIONS[self.state]

    def move(self, state: TurnState) -> None:
        """Change the state, to one that the table allows or to the same."""
        if state is not self.state:
            assert state in TRANSITIONS[self.state], f"a turn went from {self.state} to {state}"
            self.state = state

    def stop(self) -> None:
        """See that nothing more is generated for it."""
        if self.is_well:
            self.move(TurnState.STOPPING)

    def fail(self, failure: LLMTurnError) -> None:
        """Record why it did not end well, which stops it."""
        self.stop()
        self.failure = failure
        self.tokens.put_nowait(None)

    def close(self) -> None:
        """Record that nothing of it is left in the pipeline."""
        self.runs = 0
        if self.is_well:
            self.move(TurnState.DONE)
        elif self.state is TurnState.STOPPING:
            self.move(TurnState.STOPPED)
        self.tokens.put_nowait(None)
        self._closed.set()

    async def until_closed(self) -> None:
        """Wait until nothing of it is left in the pipeline."""
        await self._closed.wait()

    def note_call(self, call: str) -> None:
        """Note a function call that it makes."""
        self.calls.add(call)
        self._made_calls.add(call)

    def take_out(self, context: LLMContext) -> None:
        """Take what it put into a context out of it, and nothing else."""
        own = {id(message) for message in self.messages}
        context.set_messages(
            [
                message
                for message in context.messages
                if id(message) not in own and not self._is_of_its_calls(message)
            ]
        )

    def _is_of_its_calls(self, message: LLMContextMessage) -> bool:
        """Tell whether a message is one of its function calls, or the result of one."""
        if isinstance(message, LLMSpecificMessage):
            return False
        calls = {call.get("id") for call in message.get("tool_calls") or ()}
        calls.add(message.get("tool_call_id"))
        if message.get("role") == "developer" and (
            update := async_tool_messages.parse_message(message)
        ):
            calls.add(update.tool_call_id)
        return not self._made_calls.isdisjoint(calls)
