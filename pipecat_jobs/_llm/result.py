"""What an LLM turn gives: its text, its function calls, and why the provider stopped."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pipecat_jobs._protocol.text import TravelsAsText


@dataclass(frozen=True, slots=True)
class LLMTurnCall:
    """One function call of an LLM turn.

    Parameters:
        name: The name of the function.
        arguments: The arguments that the LLM gave.
        result: What the function returned, as it was given to the LLM; ``"CANCELLED"`` if the call
            was cancelled, and None while the call has no result.
    """

    name: str
    arguments: Mapping[str, Any]
    result: Any = None


class LLMTurn(TravelsAsText):
    """The answer of an LLM turn: a ``str`` that also knows how the turn came to it.

    A pickle or JSON of it, and a bus between processes, carry the text alone.

    Attributes:
        calls: The function calls that the turn made, in order: each has a ``name``, ``arguments``
            and a ``result``.
        stop_reason: Why the provider ended the last run, in the provider's own word: ``"stop"``
            (Chat Completions), ``"completed"`` (Responses), ``"end_turn"`` (Anthropic), ``"STOP"``
            (Google). None if the provider gave no reason, or its service is not one that this
            package observes.
        runs: How many times the LLM ran: once, and again on the results of functions.

    Example::

        class Librarian(LLMContextWorker):
            @job(name="answer")
            async def answer(self, message):
                turn = await self.llm_turn(message.payload["question"])
                looked_up = [call.arguments for call in turn.calls if call.name == "find_book"]
                return {"text": turn, "looked_up": looked_up}
    """

    calls: tuple[LLMTurnCall, ...]
    stop_reason: str | None
    runs: int

    def __new__(
        cls,
        text: str,
        *,
        calls: Iterable[LLMTurnCall] = (),
        stop_reason: str | None = None,
        runs: int = 1,
    ) -> Self:
        """Make a text with the facts of the turn."""
        turn = super().__new__(cls, text)
        turn.calls = tuple(calls)
        turn.stop_reason = stop_reason
        turn.runs = runs
        return turn
