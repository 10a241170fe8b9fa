"""Cancel the requester, and every worker of its jobs stops.

A host requests a job from an editor, and the editor requests a job from a researcher, which reads
a long book. Then the user says "never mind": the host's task is cancelled, as Pipecat cancels an
LLM's tool when the user speaks. This cancels both jobs. The researcher stops reading, and both
workers can clean up in ``on_job_cancelled``.

Run it, without an API key or a network::

    python examples/cancellation.py
"""

import asyncio
import os

# Pipecat logs as it is imported, so the level is set before: only warnings and errors.
os.environ.setdefault("LOGURU_LEVEL", "WARNING")

from pipecat.bus.messages import BusJobCancelMessage
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, job

PAGES = 1000


class Tidy(BaseWorker):
    """A worker that cleans up after a cancelled job."""

    def __init__(self, name: str):
        super().__init__(name)
        self.tidied_up = asyncio.Event()

    async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
        # The handler has ended by now, and the package sends the CANCELLED response.
        print(f"{self.name}: my job was cancelled, tidying up")
        self.tidied_up.set()


class Researcher(Tidy):
    """Reads page after page."""

    def __init__(self, name: str):
        super().__init__(name)
        self.read_three_pages = asyncio.Event()

    @job
    async def read(self) -> int:
        page = 0
        try:
            while page < PAGES:
                await asyncio.sleep(0.1)
                page += 1
                print(f"researcher: page {page}")
                if page == 3:
                    self.read_three_pages.set()
        finally:
            print(f"researcher: stopped after {page} of {PAGES} pages")
        return page


class Editor(Tidy):
    """Requests a job from the researcher during its own job."""

    @job
    async def write(self) -> str:
        pages = await self.job("researcher", Researcher.read.request())
        return f"after {pages} pages: ..."


class Host(BaseWorker):
    """Requests a job from the editor for the user."""

    async def answer_user(self) -> None:
        try:
            text = await self.job("editor", Editor.write.request(), timeout=300)
        except asyncio.CancelledError:
            print("host: cancelled while the editor was at it")
            raise
        print(f"host: {text}")


async def main() -> None:
    """Run the three workers, and cancel the host's task after three pages."""
    runner = WorkerRunner()
    host, editor, researcher = Host("host"), Editor("editor"), Researcher("researcher")

    @runner.event_handler("on_ready")
    async def on_ready(runner: WorkerRunner) -> None:
        try:
            answering = asyncio.create_task(host.answer_user())
            await researcher.read_three_pages.wait()
            print(f"open jobs of the host: {len(host.open_jobs)}")
            print("user: never mind!")
            answering.cancel()
            await asyncio.wait({answering})
            await editor.tidied_up.wait()
            await researcher.tidied_up.wait()
            print(f"open jobs of the host: {len(host.open_jobs)}")
        finally:
            await runner.end()

    await runner.add_workers(host, editor, researcher)
    await runner.run()


if __name__ == "__main__":
    asyncio.run(main())
