import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from pipecat.workers import runner

from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.testing import ScriptedLLMServer, harness

# For the examples. Last, so that an installed pipecat_jobs is tested, not the one beside them.
sys.path.append(str(Path(__file__).parent.parent))

pytest_plugins = ["pipecat_jobs.testing.fixtures"]


@pytest.fixture(autouse=True)
def default_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything that takes Pipecat's default bus on the one the environment names."""
    if os.environ.get("PIPECAT_JOBS_BUS") == "routed":
        monkeypatch.setattr(harness, "AsyncQueueBus", RoutedBus)
        monkeypatch.setattr(runner, "AsyncQueueBus", RoutedBus)


@pytest.fixture
async def server(scripted_llm: ScriptedLLMServer) -> ScriptedLLMServer:
    return scripted_llm


@pytest.fixture
async def client(server: ScriptedLLMServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="test", base_url=server.base_url) as client:
        yield client
