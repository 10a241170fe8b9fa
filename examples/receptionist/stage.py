"""Sets up the receptionist, and the workers that she asks."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.workers.runner import WorkerRunner

from examples.receptionist.bot import Bar, Bookings, Branch, Kitchen, Receptionist
from pipecat_jobs import BaseWorker, ReportChange, ReportState


def make_receptionist(
    llm: LLMService[Any],
    context: LLMContextAggregatorPair,
    *,
    ears: Sequence[FrameProcessor] = (),
    mouth: Sequence[FrameProcessor] = (),
) -> Receptionist:
    """Make the receptionist, who hears and speaks with these processors, or reads and writes."""
    pipeline = Pipeline([*ears, context.user(), llm, *mouth, context.assistant()])
    return Receptionist("receptionist", llm=llm, pipeline=pipeline, active=True)


def make_others(folder: str, *, pace: float) -> list[BaseWorker]:
    """Make the other workers; the kitchen cooks a dish in ``pace`` seconds."""
    return [
        Bookings(Path(folder, "bookings.db")),
        Branch("north", {"north 1": 2, "north 2": 4}),
        Branch("harbour", {"harbour 1": 2, "harbour 2": 6}, takes=0.2),
        Branch("castle", {"castle 1": 12}, takes=9),
        Bar("bar"),
        Kitchen("kitchen", pace=pace),
    ]


@asynccontextmanager
async def running(receptionist: Receptionist, *, pace: float = 1.0) -> AsyncGenerator[None, None]:
    """Run all workers while the block runs, with a new book of bookings."""
    runner = WorkerRunner(handle_sigint=False)
    with TemporaryDirectory() as folder:
        await runner.add_workers(receptionist, *make_others(folder, pace=pace))
        ready = asyncio.Event()
        receptionist.add_event_handler("on_activated", lambda *_: ready.set())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(runner.run(auto_end=False))
            try:
                await ready.wait()
                # The tools reach the context with a frame.
                await receptionist.flush_pipeline()
                yield
            finally:
                await runner.cancel()


class Reports:
    """What becomes of the reports of the receptionist, and when."""

    def __init__(self, receptionist: Receptionist) -> None:
        receptionist.add_event_handler("on_report_changed", self._note)
        #: The lines of the transcript about them, with the times on the event loop's clock.
        self.lines: list[tuple[float, str]] = []
        self._changes = asyncio.Queue[ReportState]()

    async def _note(self, _: object, change: ReportChange) -> None:
        now = asyncio.get_running_loop().time()
        self.lines.append((now, f"    [{_name(change.content)}: {change.state}]"))
        self._changes.put_nowait(change.state)

    async def until(self, state: ReportState) -> None:
        """Wait until a report has a state."""
        while await self._changes.get() is not state:
            pass

    async def until_told(self, number: int) -> None:
        """Wait until the guest has been told a number of reports, or will not be."""
        while number:
            number -= (await self._changes.get()).settled


def _name(content: object) -> object:
    """Name what a report is about: the result of a tool, or a question."""
    match content:
        case {"tool": tool}:
            return tool
        case _:
            return "question"
