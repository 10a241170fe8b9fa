"""Puts the debate into four processes."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipecat.bus.messages import BusJobUpdateMessage, BusJobUpdateUrgentMessage
from pipecat.services.llm_service import LLMService
from pipecat.workers.runner import WorkerRunner

from examples.debate.board import Board, State, count
from examples.debate.stage import Provider
from examples.debate.workers import MODERATOR, Moderator
from examples.distributed.loading import load_ahead
from pipecat_jobs.bus.redis import RedisStreamsBus

PROCESSES = 3
_DEBATERS = "examples.distributed.debaters"


class DistantModerator(Moderator):
    """A moderator that knows the process of each debater."""

    def __init__(self, llm: LLMService, board: Board):
        super().__init__(llm, board)
        self._distant = board
        self.pids: dict[str, int] = {}

    async def on_job_update(self, message: BusJobUpdateMessage | BusJobUpdateUrgentMessage) -> None:
        if not self._is_open(message.job_id):
            return
        assert message.update is not None
        self.pids[message.source] = message.update["pid"]
        if message.update["attempt"] > 1:
            # The job was reassigned to another process, which starts the text again.
            speaker = self._distant.debaters[message.source]
            speaker.text, speaker.tokens = f"(Process {message.update['pid']} takes over.) ", 0


class Stage:
    """The debate and its processes.

    Parameters:
        moderator: The moderator, which runs in this process.
        board: The state of the debate.
        provider: The LLM of all workers.
        url: The URL of the Redis server.
        lease: Seconds without a renewal after which a process counts as dead.
    """

    def __init__(
        self, moderator: DistantModerator, board: Board, provider: Provider, url: str, lease: float
    ):
        self.moderator = moderator
        self.board = board
        self._provider = provider
        self._arguments = (url, str(lease))
        self._started: list[Process] = []
        self._changed = asyncio.Condition()
        self.processes: list[Process] = []
        """The processes with debaters that live and are ready."""

    def describe(self) -> str:
        """Say how many processes live: the moderator's, and those with debaters."""
        living = f"{count(len(self.processes) + 1, 'process')} live"
        starting = PROCESSES - len(self.processes)
        return f"{living}, {starting} restarting" if starting else living

    def victim(self) -> tuple[str, Process] | None:
        """Find a debater that is in the middle of its text, the critic first, and its process."""
        for name in sorted(self.board.debaters, key=lambda name: name != "critic"):
            speaker = self.board.debaters[name]
            if speaker.state is State.SPEAKING and speaker.tokens > 5:
                for process in self.processes:
                    if process.pid == self.moderator.pids.get(name):
                        return name, process
        return None

    def kill(self) -> str:
        """Kill a process whose debater is speaking; return a sentence about it for the user."""
        victim = self.victim()
        if victim is None:
            return "nobody speaks just now"
        name, process = victim
        self.processes.remove(process)
        process.kill()
        return f"SIGKILL to process {process.pid}, in the middle of the {name}'s sentence"

    async def start(self) -> None:
        """Start all processes with debaters, and wait until they are ready."""
        starting = [await self._start() for _ in range(PROCESSES)]
        for process in starting:
            await self._wait_ready(process)

    async def restart(self) -> None:
        """Start another process whenever one has ended, until this is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for process in list(self.processes):
                tasks.create_task(self._replace(process))

    async def until_whole(self) -> None:
        """Wait until all processes live and are ready."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.processes) == PROCESSES)

    async def stop(self) -> None:
        """End all processes."""
        for process in self._started:
            if process.returncode is None:
                process.terminate()
        for process in self._started:
            await process.wait()

    async def _replace(self, process: Process) -> None:
        while True:
            await process.wait()
            if process in self.processes:
                self.processes.remove(process)
            process = await self._start()
            await self._wait_ready(process)

    async def _start(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _DEBATERS, *self._arguments),
            env=os.environ | self._provider.environment,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
            # Ctrl-C is for the moderator's process, which ends the others.
            start_new_session=True,
        )
        self._started.append(process)
        return process

    async def _wait_ready(self, process: Process) -> None:
        assert process.stdout is not None
        if await process.stdout.readline():
            self.processes.append(process)
            async with self._changed:
                self._changed.notify_all()


@asynccontextmanager
async def distributed(
    provider: Provider, lease: float, board: Board | None = None
) -> AsyncIterator[Stage]:
    """Run a Redis server, the moderator, and three processes with debaters.

    A process that is killed is replaced by another.

    Args:
        provider: The LLM of all workers.
        lease: Seconds without a renewal after which a process counts as dead.
        board: The state of the debate; None for a new one.
    """
    load_ahead()
    board = board or Board()
    bus = RedisStreamsBus(lease=lease)
    moderator = DistantModerator(provider.llm(MODERATOR), board)
    runner = WorkerRunner(bus=bus, handle_sigint=False)
    await runner.add_workers(moderator)
    ready = asyncio.Event()
    runner.add_event_handler("on_ready", lambda _: ready.set())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run(auto_end=False))
        await ready.wait()
        stage = Stage(moderator, board, provider, bus.url, lease)
        try:
            await stage.start()
            restarting = tasks.create_task(stage.restart())
            try:
                yield stage
            finally:
                restarting.cancel()
        finally:
            await stage.stop()
            await runner.cancel()
