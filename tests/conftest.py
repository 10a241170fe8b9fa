import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from pipecat.bus import AsyncQueueBus, WorkerBus
from pipecat.workers import runner

from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.bus.redis import RedisStreamsBus
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, VirtualTimeLoop, harness

# For the examples. Last, so that an installed pipecat_jobs is tested, not the one beside them.
sys.path.append(str(Path(__file__).parent.parent))

pytest_plugins = ["pipecat_jobs.testing.fixtures"]


#: What holds on a bus in one process and not across a server, by test, with the reason.
_NOT_OVER_REDIS = {
    "test_gap_30_a_malformed_message_is_dropped_and_the_worker_goes_on": "the wire drops it",
    "test_of_a_job_that_ended_this_way": "counts the bus's own tasks, which begin when needed",
    "test_a_worker_that_has_stopped_stays_subscribed": "an answer nobody asked for is not sent",
    "test_a_job_cancelled_while_it_waits_for_its_turn_never_reaches_the_llm": "it waits elsewhere",
    "test_a_job_cancelled_while_its_text_is_generated_leaves_none_of_it_to_the_next": "the same",
    "test_a_debater_that_is_ended_finishes_its_text_and_cancels_what_waits": "the same",
    "test_an_answer_that_is_not_json_is_written_as_what_it_holds": "no such thing is carried",
    "test_settle_gives_up_on_workers_that_never_rest": "about the harness",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("PIPECAT_JOBS_BUS") == "redis":
        for item in items:
            reason = _NOT_OVER_REDIS.get(item.name.partition("[")[0])
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=f"not over Redis: {reason}"))


@pytest.fixture(autouse=True)
def default_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything that takes Pipecat's default bus on the one the environment names."""
    match os.environ.get("PIPECAT_JOBS_BUS"):
        case "routed":
            bus: Callable[[], WorkerBus] = RoutedBus
        case "redis":
            bus = _redis_or_virtual
            monkeypatch.setattr(JobHarness, "settle", _settle_across(JobHarness.settle))
        case _:
            return
    monkeypatch.setattr(harness, "AsyncQueueBus", bus)
    monkeypatch.setattr(runner, "AsyncQueueBus", bus)


def _redis_or_virtual() -> WorkerBus:
    """A server of its own for each bus, and every message through it."""
    if isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
        return AsyncQueueBus()  # No server keeps to a virtual clock.
    return RedisStreamsBus(through_server=True)


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
                mark = asyncio.ensure_future(bus._post.caught_up())
                # A runner that has ended, or is about to, has taken its bus with it.
                running = {harness._run_task} - {None}
                await asyncio.wait({mark, *running}, return_when=asyncio.FIRST_COMPLETED)
                if not mark.done():
                    mark.cancel()
                    return
                await settle(harness)

    return settle_across


@pytest.fixture
async def server(scripted_llm: ScriptedLLMServer) -> ScriptedLLMServer:
    return scripted_llm


@pytest.fixture
async def client(server: ScriptedLLMServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="test", base_url=server.base_url) as client:
        yield client
