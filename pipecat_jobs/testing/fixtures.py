"""Pytest fixtures for workers that use jobs.

Activate them with ``pytest_plugins = ["pipecat_jobs.testing.fixtures"]`` in ``conftest.py``.

This module has no assert that pytest would have to rewrite, and pytest must not warn if a test
imports a name from it before pytest loads it: PYTEST_DONT_REWRITE.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loguru import logger

from pipecat_jobs._extras import name_extra
from pipecat_jobs.testing.chaos_bus import ChaosBus
from pipecat_jobs.testing.harness import JobHarness

try:
    import pytest
    import pytest_asyncio
except ModuleNotFoundError as error:
    name_extra(error, ("pytest", "pytest_asyncio"), "testing")
    raise

if TYPE_CHECKING:
    from loguru import Message

    from pipecat_jobs.testing.llm_server import ScriptedLLMServer


@dataclass(frozen=True)
class LogRecord:
    """A log record that the fixture `job_log` has captured.

    Parameters:
        level: The name of its level, such as ``"WARNING"``.
        message: The text of the message.
        exception: The exception that was logged with it, or None.
        module: The full name of the module that logged it, such as ``"pipecat_jobs.bus.routed"``.
    """

    level: str
    message: str
    exception: BaseException | None = None
    module: str | None = None


@pytest_asyncio.fixture
async def job_harness() -> AsyncIterator[JobHarness]:
    """A running `JobHarness` on Pipecat's in-process bus."""
    async with JobHarness() as harness:
        yield harness


@pytest_asyncio.fixture
async def chaos_bus() -> ChaosBus:
    """A `ChaosBus` without rules and faults, which a test adds."""
    return ChaosBus()


@pytest_asyncio.fixture
async def chaos_harness(chaos_bus: ChaosBus) -> AsyncIterator[JobHarness]:
    """A running `JobHarness` on the `chaos_bus`."""
    async with JobHarness(chaos_bus) as harness:
        yield harness


@pytest.fixture
def _harness_first(request: pytest.FixtureRequest) -> None:
    """Set up the harness before the server, for any order in which a test names them."""
    # A harness reports tasks that began after it and are still alive when it ends, and the server
    # has a task for each connection.
    for name in ("job_harness", "chaos_harness"):
        if name in request.fixturenames:
            request.getfixturevalue(name)


@pytest_asyncio.fixture
async def scripted_llm(_harness_first: None) -> "AsyncIterator[ScriptedLLMServer]":
    """A running `ScriptedLLMServer`."""
    # Imported late, because tests without this fixture need not have aiohttp installed.
    from pipecat_jobs.testing.llm_server import ScriptedLLMServer

    async with ScriptedLLMServer() as server:
        yield server


@pytest.fixture
def job_log() -> Iterator[list[LogRecord]]:
    """All records that are logged through loguru during the test, of every level."""
    records: list[LogRecord] = []

    def capture(message: "Message") -> None:
        record = message.record
        exception = record["exception"]
        records.append(
            LogRecord(
                level=record["level"].name,
                message=record["message"],
                exception=exception.value if exception is not None else None,
                module=record["name"],
            )
        )

    handler_id = logger.add(capture, level=0, format="{message}")
    yield records
    logger.remove(handler_id)
