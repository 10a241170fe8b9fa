"""Sends messages to the client of a worker, in order."""

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from pipecat.frames.frames import OutputTransportMessageUrgentFrame
from pipecat.pipeline.worker import PipelineWorker
from pydantic import BaseModel

from pipecat_jobs._worker.tasks import start_task

#: Sends a message to the client.
Send: TypeAlias = Callable[[BaseModel], None]


class Outbox:
    """Queues RTVI messages at the worker whose pipeline has the transport.

    Each frame takes the way of Pipecat's own RTVI messages, past the other processors and past a
    bridge. No context aggregator reads it.
    """

    def __init__(self, worker: PipelineWorker):
        self._worker = worker
        self._waiting: deque[BaseModel] = deque()
        self._sending = False

    def send(self, message: BaseModel) -> None:
        """Send a message after those before it; it does not wait."""
        if self._worker.has_finished():
            # Nobody would take what is queued.
            return
        self._waiting.append(message)
        if not self._sending:
            self._sending = True
            start_task(self._worker, self._drain(), "job_client")

    async def _drain(self) -> None:
        try:
            while self._waiting:
                written = self._waiting.popleft().model_dump(exclude_none=True)
                await self._worker.queue_frame(OutputTransportMessageUrgentFrame(message=written))
        finally:
            self._sending = False
