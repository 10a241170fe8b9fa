"""The steers of a job, as user messages for an LLM turn of that job."""

import json

from pipecat.processors.aggregators.llm_context import LLMContextMessage

from pipecat_jobs._executor.exchange import Exchange
from pipecat_jobs._executor.execution import Execution
from pipecat_jobs._llm.context_value import to_context_value
from pipecat_jobs.outcomes import JobData


class TurnSteers:
    """Gives the steers of a job to a turn of it, between two runs of the LLM."""

    def __init__(self, job: Execution):
        self._exchange = exchange = Exchange.of(job)
        exchange.is_read = True

    @property
    def are_waiting(self) -> bool:
        """Whether there are steers that have not entered the context."""
        return self._exchange.has_waiting

    def take(self) -> list[LLMContextMessage]:
        """Accept the steers that wait, and write them as messages."""
        messages: list[LLMContextMessage] = []
        while (steer := self._exchange.take()) is not None:
            messages.append({"role": "user", "content": _write(steer.data)})
        self._exchange.accept_taken()
        return messages


def _write(data: JobData) -> str:
    match data:
        case {"text": str(text)} if len(data) == 1:
            return text
        case _:
            return json.dumps(to_context_value(data), ensure_ascii=False)
