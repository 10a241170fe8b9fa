"""The short samples of "Job Coordination", each run as it is written there.

The lines between ``fmt: off`` and ``fmt: on`` are the document's own, line lengths included. The
code around a sample adds its missing parts: the workers, the work, the name of the method.
"""
# ruff: noqa: E501, T201

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import (
    BusJobRequestMessage,
    BusJobResponseMessage,
)

from pipecat_jobs import (
    BaseWorker,
    JobGroupResponse,
    job,
)
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


class Responding(BaseWorker):
    """Responds to every request, and keeps its payload."""

    def __init__(self, name: str, response: dict[str, Any] | None = None):
        super().__init__(name)
        self.response = response if response is not None else {"text": f"{name} says so"}
        self.asked: list[dict[str, Any] | None] = []

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        self.asked.append(message.payload)
        await self.send_job_response(message.job_id, self.response)


# Single job


class SingleJob(BaseWorker):
    async def ask(self) -> None:
        # fmt: off
        async with self.job("worker", payload={"question": "What is Pipecat?"}, timeout=30) as j:
            pass

        print(j.response)
        # fmt: on


async def test_a_single_job_gives_the_worker_s_response(
    job_harness: JobHarness, capsys: pytest.CaptureFixture[str]
):
    requester, worker = SingleJob("requester"), Responding("worker", {"answer": "a framework"})
    await job_harness.start(requester, worker)

    await requester.ask()

    assert worker.asked == [{"question": "What is Pipecat?"}]
    assert capsys.readouterr().out == "{'answer': 'a framework'}\n"


async def test_a_single_job_waits_for_its_worker_to_be_ready(
    job_harness: JobHarness, capsys: pytest.CaptureFixture[str]
):
    requester = SingleJob("requester")
    await job_harness.start(requester)
    asking = asyncio.create_task(requester.ask())
    await job_harness.settle()
    assert not asking.done()

    await job_harness.start(Responding("worker", {"answer": "here now"}))

    await asking
    assert capsys.readouterr().out == "{'answer': 'here now'}\n"


async def test_a_single_job_equals_request_job_and_the_two_hooks(job_harness: JobHarness):
    responses: list[BusJobResponseMessage] = []
    completed: asyncio.Future[JobGroupResponse] = asyncio.get_running_loop().create_future()

    class FireAndForget(BaseWorker):
        async def on_job_response(self, message: BusJobResponseMessage) -> None:
            responses.append(message)

        async def on_job_completed(self, result: JobGroupResponse) -> None:
            completed.set_result(result)

    requester = FireAndForget("requester")
    await job_harness.start(requester, Responding("worker", {"answer": "a framework"}))

    job_id = await requester.request_job("worker", payload={"question": "What is Pipecat?"})

    result = await completed
    assert (result.job_id, result.responses) == (job_id, {"worker": {"answer": "a framework"}})
    assert [(r.source, r.job_id, r.response) for r in responses] == [
        ("worker", job_id, {"answer": "a framework"})
    ]


# Job group


class JobGroup(BaseWorker):
    async def ask(self) -> None:
        # fmt: off
        async with self.job_group("worker1", "worker2", "worker3", payload={"topic": "AI safety"}, timeout=30) as jg:
            pass

        for worker_name, response in jg.responses.items():
            print(f"{worker_name}: {response}")
        # fmt: on


async def test_a_job_group_gives_every_worker_the_payload_and_collects_all_responses(
    job_harness: JobHarness, capsys: pytest.CaptureFixture[str]
):
    workers = [Responding(f"worker{n}", {"n": n}) for n in (1, 2, 3)]
    requester = JobGroup("requester")
    await job_harness.start(requester, *workers)

    await requester.ask()

    assert [worker.asked for worker in workers] == [[{"topic": "AI safety"}]] * 3
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == ["worker1: {'n': 1}", "worker2: {'n': 2}", "worker3: {'n': 3}"]


async def test_a_job_group_runs_its_workers_in_parallel(
    job_harness: JobHarness, capsys: pytest.CaptureFixture[str]
):
    all_have_begun = asyncio.Barrier(3)

    class Meeting(BaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await all_have_begun.wait()
            await self.send_job_response(message.job_id, {"met": True})

    requester = JobGroup("requester")
    await job_harness.start(requester, *(Meeting(f"worker{n}") for n in (1, 2, 3)))

    await requester.ask()

    assert capsys.readouterr().out.count("{'met': True}") == 3


async def test_a_job_group_equals_request_job_group_and_the_two_hooks(job_harness: JobHarness):
    responded: list[str] = []
    completed: asyncio.Future[JobGroupResponse] = asyncio.get_running_loop().create_future()

    class FireAndForget(BaseWorker):
        async def on_job_response(self, message: BusJobResponseMessage) -> None:
            responded.append(message.source)

        async def on_job_completed(self, result: JobGroupResponse) -> None:
            completed.set_result(result)

    requester = FireAndForget("requester")
    await job_harness.start(
        requester, Responding("worker1", {"n": 1}), Responding("worker2", {"n": 2})
    )

    job_id = await requester.request_job_group("worker1", "worker2", payload={"topic": "AI safety"})

    result = await completed
    assert sorted(responded) == ["worker1", "worker2"]
    assert result.job_id == job_id
    assert result.responses == {"worker1": {"n": 1}, "worker2": {"n": 2}}


async def test_each_worker_of_a_group_reads_its_own_key_of_the_payload(job_harness: JobHarness):
    class OwnKey(BaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            assert message.payload is not None
            await self.send_job_response(message.job_id, {"did": message.payload[self.name]})

    class Requester(BaseWorker):
        async def ask(self) -> dict[str, dict[str, Any]]:
            # fmt: off
            async with self.job_group("researcher", "fact_checker", payload={
                "researcher": {"topic": "AI safety", "depth": "detailed"},
                "fact_checker": {"claims": ["AI can self-improve", "AGI is near"]},
            }, timeout=30) as jg:
                pass
            # fmt: on
            return jg.responses

    requester = Requester("requester")
    await job_harness.start(requester, OwnKey("researcher"), OwnKey("fact_checker"))

    assert await requester.ask() == {
        "researcher": {"did": {"topic": "AI safety", "depth": "detailed"}},
        "fact_checker": {"did": {"claims": ["AI can self-improve", "AGI is near"]}},
    }


# Handling job requests


async def test_a_job_handler_responds_with_the_message_s_job_id(job_harness: JobHarness):
    # fmt: off
    class MyWorker(BaseWorker):
        @job(name="process")
        async def on_process(self, message: BusJobRequestMessage):
            result = await self._do_work(message.payload)
            await self.send_job_response(message.job_id, result)
    # fmt: on

    class Doubling(MyWorker):
        async def _do_work(self, payload: dict[str, int]) -> dict[str, int]:
            return {"doubled": payload["n"] * 2}

    requester = BaseWorker("requester")
    await job_harness.start(requester, Doubling("worker"))

    async with requester.job("worker", name="process", payload={"n": 21}, timeout=30) as j:
        pass

    assert j.response == {"doubled": 42}


async def test_requests_to_one_handler_run_at_the_same_time_and_each_gets_its_own_response(
    job_harness: JobHarness,
):
    # fmt: off
    class MyWorker(BaseWorker):
        @job(name="process")
        async def on_process(self, message: BusJobRequestMessage):
            result = await self._do_work(message.payload)
            await self.send_job_response(message.job_id, result)
    # fmt: on

    second_has_response = asyncio.Event()
    both_are_running = asyncio.Barrier(2)

    class Backwards(MyWorker):
        async def _do_work(self, payload: dict[str, int]) -> dict[str, int]:
            await both_are_running.wait()
            if payload["n"] == 1:
                await second_has_response.wait()
            return {"answer_to": payload["n"]}

    class Requester(BaseWorker):
        async def ask(self, n: int) -> dict[str, Any]:
            async with self.job("worker", name="process", payload={"n": n}, timeout=30) as j:
                pass
            return j.response

    requester = Requester("requester")
    await job_harness.start(requester, Backwards("worker"))

    first, second = (asyncio.create_task(requester.ask(n)) for n in (1, 2))
    assert await second == {"answer_to": 2}
    second_has_response.set()
    assert await first == {"answer_to": 1}


class NamedJobs(BaseWorker):
    async def ask(self) -> dict[str, Any]:
        # fmt: off
        async with self.job("worker", name="research", payload={"topic": "AI"}) as j:
            pass
        # fmt: on
        return j.response


async def test_the_name_of_a_job_selects_its_handler(job_harness: JobHarness):
    # fmt: off
    class MyWorker(BaseWorker):
        @job(name="research")
        async def on_research(self, message: BusJobRequestMessage):
            await self.send_job_response(message.job_id, {"answer": "..."})

        @job(name="summarize")
        async def on_summarize(self, message: BusJobRequestMessage):
            await self.send_job_response(message.job_id, {"summary": "..."})
    # fmt: on

    requester = NamedJobs("requester")
    await job_harness.start(requester, MyWorker("worker"))

    assert await requester.ask() == {"answer": "..."}
    async with requester.job("worker", name="summarize") as j:
        pass
    assert j.response == {"summary": "..."}


async def test_on_job_request_can_be_overridden_instead_of_a_handler(job_harness: JobHarness):
    # fmt: off
    class MyWorker(BaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await super().on_job_request(message)
            result = await self._do_work(message.payload)
            await self.send_job_response(message.job_id, result)
    # fmt: on

    class Doubling(MyWorker):
        async def _do_work(self, payload: dict[str, int]) -> dict[str, int]:
            return {"doubled": payload["n"] * 2}

    requester = BaseWorker("requester")
    await job_harness.start(requester, Doubling("worker"))

    async with requester.job("worker", payload={"n": 21}, timeout=30) as j:
        pass

    assert j.response == {"doubled": 42}
