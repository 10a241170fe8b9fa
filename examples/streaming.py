"""Get messages from a worker during its job: a streamed response, and progress updates.

A poet streams a poem: its handler is an async generator, and each dict that it yields arrives as a
chunk. A printer sends its progress as updates, for which it takes the request's message beside the
payload's fields, and responds at the end. In both cases the requester
loops over the job with ``async for``, which ends when the job does.

Run it, without an API key or a network::

    python examples/streaming.py
"""

import asyncio
import os
from collections.abc import AsyncIterator

# Pipecat logs as it is imported, so the level is set before: only warnings and errors.
os.environ.setdefault("LOGURU_LEVEL", "WARNING")

from pipecat.bus.messages import BusJobRequestMessage
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, JobEvent, job


class Poet(BaseWorker):
    """Streams its response line by line."""

    @job
    async def recite(self) -> AsyncIterator[dict[str, str]]:
        for line in ("A word was sent,", "a word came back,", "and nobody was left to wait."):
            await asyncio.sleep(0.1)
            yield {"line": line}


class Printer(BaseWorker):
    """Sends updates during the work, and responds at the end."""

    @job
    async def print_pages(self, message: BusJobRequestMessage, pages: int) -> int:
        for page in range(1, pages + 1):
            await asyncio.sleep(0.1)
            await self.send_job_update(message.job_id, {"page": page, "of": pages})
        return pages


class Publisher(BaseWorker):
    """Reads the stream and the updates."""

    async def publish(self) -> None:
        lines = 0
        async with self.job("poet", Poet.recite.request(), timeout=5) as j:
            async for event in j:
                # The start and the end of the stream are events too.
                if event.type == JobEvent.STREAM_DATA:
                    lines += 1
                    print(f"poet: {event.data['line']}")
        print(f"publisher: {lines} lines, that will do")

        request = Printer.print_pages.request(pages=3)
        async with self.job("printer", request, timeout=5) as j:
            async for event in j:
                if event.type == JobEvent.UPDATE:
                    print(f"printer: page {event.data['page']} of {event.data['of']}")
        print(f"publisher: {j.response} pages printed")


async def main() -> None:
    """Run the three workers until the book is printed."""
    runner = WorkerRunner()
    publisher = Publisher("publisher")

    @runner.event_handler("on_ready")
    async def on_ready(runner: WorkerRunner) -> None:
        try:
            await publisher.publish()
        finally:
            await runner.end()

    await runner.add_workers(publisher, Poet("poet"), Printer("printer"))
    await runner.run()


if __name__ == "__main__":
    asyncio.run(main())
