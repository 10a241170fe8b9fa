"""Request a job from one worker, use its response, and catch the error of a failure.

A reader asks a librarian about two books. The response to the first job is what the librarian's
handler returns. The second job fails, and the error names the worker, the job and the cause. A
worker that breaks, stops or is too slow also causes an error: a job always ends, and ``except
JobError`` catches every end that is not a success.

Run it, without an API key or a network::

    python examples/single_job.py
"""

import asyncio
import os

# Pipecat logs as it is imported, so the level is set before: only warnings and errors.
os.environ.setdefault("LOGURU_LEVEL", "WARNING")

from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, JobError, JobToolError, job

SHELVES = {"Emma": "Jane Austen", "Dracula": "Bram Stoker"}


class Librarian(BaseWorker):
    """Knows the authors of books."""

    @job
    async def find_author(self, title: str) -> str:
        if title not in SHELVES:
            # The worker is not broken, it only cannot do this job. Any other exception would reach
            # the reader as well, but its traceback would be in the log.
            raise JobToolError(f"no book is called '{title}'")
        return SHELVES[title]


class Reader(BaseWorker):
    """Wants to know the authors."""

    async def read_about(self, title: str) -> None:
        print(f"reader: who wrote '{title}'?")
        try:
            request = Librarian.find_author.request(title=title)
            author = await self.job("librarian", request, timeout=5)
        except JobError as error:
            print(f"reader: no answer. {error}")
            outcome = error.outcomes["librarian"]
            print(f"        status: {outcome.status}, cause: {outcome.cause}")
        else:
            print(f"reader: {author} did.")


async def main() -> None:
    """Run the two workers until the reader has asked both questions."""
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
