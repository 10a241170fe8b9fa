import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from pipecat.bus import WorkerBus
from pipecat.workers import runner
from support import peers
from support.buses import (
    NOT_OVER,
    PubSubBuses,
    server_of_a_session,
    settle_on_pubsub,
    settle_on_streams,
    start_on_pubsub,
    streams_bus,
)

from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.bus.redis import embedded
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, harness

# For the examples. Last, so that an installed pipecat_jobs is tested, not the one beside them.
sys.path.append(str(Path(__file__).parent.parent))

pytest_plugins = ["pipecat_jobs.testing.fixtures"]


_MODE = os.environ.get("PIPECAT_JOBS_BUS", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = NOT_OVER.get(_MODE, {})
    for item in items:
        reason = reasons.get(item.name.partition("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"not over {_MODE}: {reason}"))


@pytest.fixture(scope="session")
def pubsub_server() -> Iterator[str]:
    with server_of_a_session() as url:
        yield url


@pytest.fixture
async def pubsub_buses(pubsub_server: str) -> AsyncIterator[PubSubBuses]:
    buses = PubSubBuses(pubsub_server)
    yield buses
    await buses.close()


@pytest.fixture(autouse=True)
def redis_executable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tests on the Redis or Valkey server that the environment names, if it does."""
    executable = os.environ.get("PIPECAT_JOBS_REDIS_SERVER")
    if executable:
        monkeypatch.setattr(embedded, "find_server", lambda: executable)


@pytest.fixture(autouse=True)
def default_bus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything that takes Pipecat's default bus on the one the environment names."""
    match _MODE:
        case "routed":
            bus: Callable[[], WorkerBus] = RoutedBus
        case "redis":
            bus = streams_bus
            monkeypatch.setattr(JobHarness, "settle", settle_on_streams(JobHarness.settle))
        case "redis-pubsub":
            bus = request.getfixturevalue("pubsub_buses").new
            monkeypatch.setattr(JobHarness, "settle", settle_on_pubsub(JobHarness.settle))
            monkeypatch.setattr(JobHarness, "start", start_on_pubsub(JobHarness.start))
            monkeypatch.setattr(peers, "AsyncQueueBus", bus)
        case _:
            return
    monkeypatch.setattr(harness, "AsyncQueueBus", bus)
    monkeypatch.setattr(runner, "AsyncQueueBus", bus)


@pytest.fixture
async def server(scripted_llm: ScriptedLLMServer) -> ScriptedLLMServer:
    return scripted_llm


@pytest.fixture
async def client(server: ScriptedLLMServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="test", base_url=server.base_url) as client:
        yield client
