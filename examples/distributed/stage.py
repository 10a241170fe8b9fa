"""Puts the debate into four processes."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pipecat.bus.messages import BusJobUpdateMessage, BusJobUpdateUrgentMessage
from pipecat.services.llm_service import LLMService
from pipecat.workers.runner import WorkerRunner

from examples.debate.board import Board, State
from examples.debate.stage import Provider
from examples.debate.workers import DEBATERS, MODERATOR, Moderator
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


@dataclass
class Stage:
    """The debate and its processes.

    Parameters:
        moderator: The moderator, which runs in this process.
        board: The state of the debate.
        processes: The processes with debaters that were not killed.
    """

    moderator: DistantModerator
    board: Board
    processes: list[Process] = field(default_factory=list)

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


@asynccontextmanager
async def distributed(provider: Provider, lease: float) -> AsyncIterator[Stage]:
    """Run a Redis server, the moderator, and three processes with debaters.

    Args:
        provider: The LLM of all workers.
        lease: Seconds without a renewal after which a process counts as dead.
    """
    load_ahead()
    board = Board(DEBATERS)
    bus = RedisStreamsBus(lease=lease)
    stage = Stage(DistantModerator(provider.llm(MODERATOR), board), board)
    started: list[Process] = []
    runner = WorkerRunner(bus=bus, handle_sigint=False)
    await runner.add_workers(stage.moderator)
    ready = asyncio.Event()
    runner.add_event_handler("on_ready", lambda _: ready.set())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run(auto_end=False))
        try:
            await ready.wait()
            for _ in range(PROCESSES):
                started.append(await _start(bus.url, lease, provider))
            for process in started:
                assert process.stdout is not None
                await process.stdout.readline()
            stage.processes.extend(started)
            yield stage
        finally:
            for process in started:
                if process.returncode is None:
                    process.terminate()
            for process in started:
                await process.wait()
            await runner.cancel()


async def _start(url: str, lease: float, provider: Provider) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", _DEBATERS, url, str(lease)),
        env=os.environ | provider.environment,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
        # Ctrl-C is for the moderator's process, which ends the others.
        start_new_session=True,
    )
