"""Ask one worker, use its answer, and see what a failure looks like.

A reader asks a librarian about two books. The first job is answered with a dict. The second fails,
and the error names the worker, the job and the cause. The same goes for a worker that breaks, stops
or is too slow: a job always ends, and ``except JobError`` catches every end but an answer.

Run it (no key and no network needed)::

    python examples/single_job.py
"""

import asyncio
import os

# Of Pipecat's log, only warnings and errors. It says hello on import, so this comes before.
os.environ.setdefault("LOGURU_LEVEL", "WARNING")

from pipecat.bus.messages import BusJobRequestMessage
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, JobError, JobStatus, job

SHELVES = {"Emma": "Jane Austen", "Dracula": "Bram Stoker"}


class Librarian(BaseWorker):
    """Knows who wrote what."""

    @job(name="find_author")
    async def find_author(self, message: BusJobRequestMessage) -> dict | None:
        title = message.payload["title"]
        if title in SHELVES:
            # What a handler returns is the answer.
            return {"title": title, "author": SHELVES[title]}
        # Not a broken worker, only a request it cannot fulfil: it says so itself. An exception
        # would reach the reader as well, and leave its traceback in the log.
        await self.send_job_response(
            message.job_id, {"error": f"no book is called '{title}'"}, status=JobStatus.FAILED
        )
        return None


class Reader(BaseWorker):
    """Wants to know."""

    async def read_about(self, title: str) -> None:
        print(f"reader: who wrote '{title}'?")
        try:
            async with self.job(
                "librarian", name="find_author", payload={"title": title}, timeout=5
            ) as j:
                pass  # The answer is awaited here, on the way out.
        except JobError as error:
            print(f"reader: no answer. {error}")
            outcome = error.outcomes["librarian"]
            print(f"        status: {outcome.status}, cause: {outcome.cause}")
        else:
            print(f"reader: {j.response['author']} did.")


async def main() -> None:
    """Run the two workers until the reader has asked everything."""
    runner = WorkerRunner()
    reader = Reader("reader")

    @runner.event_handler("on_ready")
    async def on_ready(runner: WorkerRunner) -> None:
        try:
            await reader.read_about("Emma")
            await reader.read_about("Ema")
        finally:
            await runner.end()

    await runner.add_workers(reader, Librarian("librarian"))
    await runner.run()


if __name__ == "__main__":
    asyncio.run(main())
