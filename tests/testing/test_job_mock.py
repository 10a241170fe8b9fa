"""Stand-ins for the jobs of workers that a test does not start."""

import asyncio
from dataclasses import dataclass

import pytest
from pydantic import BaseModel

from pipecat_jobs import BaseWorker, JobError, JobToolError, OutcomeStatus
from pipecat_jobs.testing import JobHarness


@dataclass
class Place:
    shelf: int


class Book(BaseModel):
    title: str


async def ask(host: BaseWorker, name: str, **payload: object) -> dict[str, object]:
    async with host.job("library", name=name, payload=payload, timeout=60) as j:
        pass
    return j.response


@pytest.fixture
async def host(job_harness: JobHarness) -> BaseWorker:
    host = BaseWorker("host")
    await job_harness.start(host)
    return host


@pytest.mark.parametrize(
    ("returns", "response"),
    [
        ({"shelf": 7}, {"shelf": 7}),
        (Place(7), {"shelf": 7}),
        (Book(title="Emma"), {"title": "Emma"}),
        (7, {"result": 7}),
        ([Place(7)], {"result": [{"shelf": 7}]}),
        (None, {}),
        (lambda payload: {"title": payload["title"].upper()}, {"title": "EMMA"}),
    ],
)
async def test_a_mock_responds_as_the_test_says(
    job_harness: JobHarness, host: BaseWorker, returns: object, response: dict
):
    await job_harness.mock_job("library", "find_book", returns=returns)
    assert await ask(host, "find_book", title="Emma") == response


async def test_a_mock_may_wait_for_the_test(job_harness: JobHarness, host: BaseWorker):
    released = asyncio.Event()

    async def look(payload: dict) -> dict:
        await released.wait()
        return {"found": payload["title"]}

    find_book = await job_harness.mock_job("library", "find_book", returns=look)
    asking = asyncio.create_task(ask(host, "find_book", title="Emma"))
    assert await find_book.until_asked() == {"title": "Emma"}
    assert not asking.done()

    released.set()

    assert await asking == {"found": "Emma"}


async def test_a_mock_fails_after_its_updates(job_harness: JobHarness, host: BaseWorker):
    updates, error = [{"percent": 10}, {"percent": 20}], JobToolError("it is lent")
    await job_harness.mock_job("library", "lend", updates=updates, raises=error)

    seen = []
    with pytest.raises(JobError, match="it is lent") as raised:
        async with host.job("library", name="lend", timeout=60) as j:
            seen = [event.data async for event in j]

    assert seen == updates
    assert raised.value.outcomes["library"].status is OutcomeStatus.FAILED


async def test_what_was_asked_is_asserted_by_fields(job_harness: JobHarness, host: BaseWorker):
    find_book = await job_harness.mock_job("library", "find_book")
    find_book.assert_not_asked()
    with pytest.raises(AssertionError, match="was not asked; its payloads: none"):
        find_book.assert_asked()

    await ask(host, "find_book", title="Emma", shelf=7)

    find_book.assert_asked()
    find_book.assert_asked(title="Emma")
    with pytest.raises(AssertionError, match=r"not asked with \{'title': 'Persuasion'\}.*\n- \{"):
        find_book.assert_asked(title="Persuasion")
    with pytest.raises(AssertionError, match=r"was asked:\n- \{'title': 'Emma'"):
        find_book.assert_not_asked()


async def test_one_worker_has_several_mocks_and_names_them_when_asked_for_another(
    job_harness: JobHarness, host: BaseWorker
):
    await job_harness.mock_job("library", "find_book", returns={"shelf": 1})
    await job_harness.mock_job("library", "lend", returns={"lent": True})
    await job_harness.mock_job("library", "find_book", returns={"shelf": 2})

    assert await ask(host, "find_book") == {"shelf": 2}
    assert await ask(host, "lend") == {"lent": True}
    with pytest.raises(JobError, match="not mocked job 'burn' of worker 'library', only find_book"):
        await ask(host, "burn")


async def test_a_worker_that_runs_is_not_mocked(job_harness: JobHarness, host: BaseWorker):
    with pytest.raises(ValueError, match="'host' is already started"):
        await job_harness.mock_job("host", "greet")
