"""Stand-ins for the jobs of workers that a test does not start."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pipecat.bus.messages import BusJobRequestMessage
from pydantic_core import to_jsonable_python

from pipecat_jobs._llm.pipeline_workers import BaseWorker
from pipecat_jobs._protocol.checks import check_text
from pipecat_jobs.errors import InvalidJobError
from pipecat_jobs.outcomes import JobData

#: A response, or a function, async or not, that makes one from the payload.
Returns: TypeAlias = object | Callable[[JobData], object | Awaitable[object]]


class JobMock:
    """A stand-in for one job of a worker, made by :meth:`JobHarness.mock_job`.

    Attributes:
        worker: Name of the worker.
        name: Name of the job.
        payloads: The payload of each request, in order of arrival.

    Example::

        async with JobHarness() as harness:
            host = BaseWorker("host")
            await harness.start(host)
            find_book = await harness.mock_job("library", "find_book", returns={"shelf": 7})

            response = await host.job("library", name="find_book", payload={"title": "Emma"})

            assert response == {"shelf": 7}
            find_book.assert_asked(title="Emma")
    """

    def __init__(
        self,
        worker: str,
        name: str,
        returns: Returns,
        raises: BaseException | None,
        updates: Sequence[JobData],
    ):
        self.worker = worker
        self.name = name
        self.payloads: list[JobData] = []
        self._returns = returns
        self._raises = raises
        self._updates = updates
        self._asked = asyncio.Event()

    def assert_asked(self, **fields: Any) -> None:
        """Assert that the job was asked with these fields in its payload.

        Args:
            **fields: Fields of the payload, and their values. The payload may have others.

        Raises:
            AssertionError: If no request had them; the message lists the payloads.

        Example::

            async with JobHarness() as harness:
                find_book = await harness.mock_job("library", "find_book")
                with pytest.raises(AssertionError, match="was not asked"):
                    find_book.assert_asked(title="Emma")
        """
        if any(_has(payload, fields) for payload in self.payloads):
            return
        wanted = f" with {fields}" if fields else ""
        asked = "".join(f"\n- {payload}" for payload in self.payloads) or " none"
        raise AssertionError(
            f"job '{self.name}' of '{self.worker}' was not asked{wanted}; its payloads:{asked}"
        )

    def assert_not_asked(self) -> None:
        """Assert that the job was not asked.

        Raises:
            AssertionError: If it was; the message lists the payloads.
        """
        if self.payloads:
            asked = "".join(f"\n- {payload}" for payload in self.payloads)
            raise AssertionError(f"job '{self.name}' of '{self.worker}' was asked:{asked}")

    async def until_asked(self) -> JobData:
        """Wait until the job has been asked.

        Returns:
            The payload of the latest request.

        Example::

            async with JobHarness() as harness:
                host = BaseWorker("host")
                await harness.start(host)
                find_book = await harness.mock_job("library", "find_book", returns={"shelf": 7})
                await host.request_job("library", name="find_book", payload={"title": "Emma"})
                assert await find_book.until_asked() == {"title": "Emma"}
        """
        await self._asked.wait()
        return self.payloads[-1]

    async def run(self, stand_in: BaseWorker, message: BusJobRequestMessage) -> JobData:
        """Record a request and make its response."""
        payload = message.payload or {}
        self.payloads.append(payload)
        self._asked.set()
        for update in self._updates:
            await stand_in.send_job_update(message.job_id, update)
        if self._raises is not None:
            raise self._raises
        returns = self._returns
        made = returns(payload) if callable(returns) else returns
        value = to_jsonable_python(await made if inspect.isawaitable(made) else made)
        if value is None:
            return {}
        return value if isinstance(value, dict) else {"result": value}


def _has(payload: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(key in payload and payload[key] == value for key, value in fields.items())


class MockedWorker(BaseWorker):
    """Stands in for a worker: it has the jobs that the test has mocked."""

    def __init__(self, name: str):
        super().__init__(name)
        self._mocks: dict[str, JobMock] = {}

    def add(self, mock: JobMock) -> None:
        """Add a job, or replace the one of the same name."""
        self._mocks[mock.name] = mock

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        """Run the mock of the job."""
        mock = self._mocks.get(check_text("name", message.job_name, "the name of a mocked job"))
        if mock is None:
            raise InvalidJobError(
                f"the test has not mocked job '{message.job_name}' of worker '{self.name}', only "
                f"{', '.join(sorted(self._mocks))}; call mock_job() for it"
            )
        await self.send_job_response(message.job_id, await mock.run(self, message))
