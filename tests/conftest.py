import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from pipecat.bus import WorkerBus
from pipecat.workers import runner

from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.bus.redis import RedisStreamsBus
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, harness

# For the examples. Last, so that an installed pipecat_jobs is tested, not the one beside them.
sys.path.append(str(Path(__file__).parent.parent))

pytest_plugins = ["pipecat_jobs.testing.fixtures"]


@pytest.fixture(autouse=True)
def default_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything that takes Pipecat's default bus on the one the environment names."""
    match os.environ.get("PIPECAT_JOBS_BUS"):
        case "routed":
            bus: Callable[[], WorkerBus] = RoutedBus
        case "redis":
            # A server of its own for each, and every message through it.
            bus = partial(RedisStreamsBus, through_server=True)
            monkeypatch.setattr(JobHarness, "settle", _settle_across(JobHarness.settle))
        case _:
            return
    monkeypatch.setattr(harness, "AsyncQueueBus", bus)
    monkeypatch.setattr(runner, "AsyncQueueBus", bus)


def _settle_across(
    settle: Callable[[JobHarness], Awaitable[None]],
) -> Callable[[JobHarness], Awaitable[None]]:
    """Have a harness wait for what is on its way to the server and back."""

    async def settle_across(harness: JobHarness) -> None:
        await settle(harness)
        bus = harness.bus
        if isinstance(bus, RedisStreamsBus) and bus._process is not None:
            received = -1
            while received != bus.stats.received:
                received = bus.stats.received + 1
                await bus._post.caught_up()
                await settle(harness)

    return settle_across


@pytest.fixture
async def server(scripted_llm: ScriptedLLMServer) -> ScriptedLLMServer:
    return scripted_llm


@pytest.fixture
async def client(server: ScriptedLLMServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="test", base_url=server.base_url) as client:
        yield client
