"""The messages that a turn is given, and the stream of its text to a job's requester."""

import copy
from collections.abc import Sequence

from pipecat.processors.aggregators.llm_context import LLMContextMessage, LLMSpecificMessage

from pipecat_jobs._worker.mixin import WorkerJobs
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError


def check_messages(messages: str | Sequence[LLMContextMessage]) -> list[LLMContextMessage]:
    """Refuse messages that an LLM context cannot have; return copies of the others."""
    if isinstance(messages, str):
        empty = not messages.strip()
        messages = [{"role": "user", "content": str(messages)}]
    elif isinstance(messages, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        empty = not messages
    else:
        raise InvalidJobTypeError(
            f"messages is {messages!r}; give a text, or give a list of context messages"
        )
    if empty:
        raise InvalidJobError("messages is empty; give a text, or give a list of context messages")
    for message in messages:
        if not isinstance(message, dict | LLMSpecificMessage):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidJobTypeError(
                f"a message is {message!r}; give {{'role': ..., 'content': ...}}"
            )
    # Copies, because a turn removes its messages by identity, and two turns may have the same one.
    return [copy.copy(message) for message in messages]


class TextSender:
    """Streams an LLM's text to a job's requester; the first text starts the stream."""

    def __init__(self, worker: WorkerJobs, job_id: str):
        self._worker = worker
        self._job_id = job_id
        self._started = False

    async def __call__(self, text: str) -> None:
        """Send a part of the text."""
        if not self._started:
            self._started = True
            await self._worker.send_job_stream_start(self._job_id)
        await self._worker.send_job_stream_data(self._job_id, {"text": text})
