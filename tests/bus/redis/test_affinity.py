"""``RedisStreamsBus``: the affinity of jobs, through the public API."""

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from redis.asyncio import Redis
from support.redis.processes import (
    Member,
    ShortLeaseMember,
    assert_nothing_remains,
    redis,
    redis_server,
    until,
)
from support.workers import Requester

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    JobGroupParams,
    JobParams,
    RoutedBus,
    job,
    job_moved,
)
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.testing import JobHarness

__all__ = ["redis", "redis_server"]


class Rememberer(BaseWorker):
    """A worker whose responses show which requesters it has had before."""

    def __init__(self) -> None:
        super().__init__("rememberer")
        self.received: list[str] = []

    @job(name="tell")
    async def tell(self, message: BusJobRequestMessage) -> dict:
        self.received.append(message.source)
        return {"by": id(self), "requesters": list(self.received), "moved": job_moved(message)}


class Sticky(Rememberer):
    job_affinity = "requester"


async def test_a_worker_remembers_the_requester_whose_jobs_it_did_before(
    redis_server: EmbeddedRedis, redis: Redis
):
    requesters = [Requester(f"requester-{n}") for n in range(4)]
    async with (
        Member(redis_server.url, *requesters) as member,
        Member(redis_server.url, Sticky()),
        Member(redis_server.url, Sticky()),
    ):
        await member.wait_until_known("rememberer")
        for number in range(3):
            for requester in requesters:
                response = await requester.ask("rememberer", "tell")
                assert response["requesters"].count(requester.name) == number + 1
                assert not response["moved"]
    await assert_nothing_remains(redis)


async def test_the_next_job_after_its_process_died_knows_that_it_has_moved(
    redis_server: EmbeddedRedis,
):
    requester = Requester()
    async with Member(redis_server.url, requester) as member:
        async with Member(redis_server.url, Sticky()):
            await member.wait_until_known("rememberer")
            await requester.ask("rememberer", "tell")
        async with Member(redis_server.url, Sticky()):
            await member.wait_until_known("rememberer")
            responses = [await requester.ask("rememberer", "tell") for _ in range(2)]
    assert [response["moved"] for response in responses] == [True, False]


@pytest.mark.parametrize("form", ["keyword", "params", "group", "group params", "request"])
async def test_jobs_asked_with_the_same_affinity_stay_in_one_process(
    redis_server: EmbeddedRedis, form: str
):
    requesters = [Requester(f"requester-{n}") for n in range(2)]

    async def ask(requester: Requester, customer: str) -> dict:
        match form:
            case "keyword":
                return await requester.ask("rememberer", "tell", affinity=customer)
            case "params":
                params = JobParams(name="tell", affinity=customer)
                async with requester.job("rememberer", params=params) as j:
                    pass
                return j.response
            case "group":
                async with requester.job_group("rememberer", name="tell", affinity=customer) as jg:
                    pass
            case "group params":
                params = JobGroupParams(name="tell", affinity=customer)
                async with requester.job_group("rememberer", params=params) as jg:
                    pass
            case _:
                job_id = await requester.request_job("rememberer", name="tell", affinity=customer)
                group = requester.job_groups[job_id]
                await group.wait()
                return group.responses["rememberer"]
        return jg.responses["rememberer"]

    async with (
        Member(redis_server.url, *requesters) as member,
        Member(redis_server.url, Rememberer()),
        Member(redis_server.url, Rememberer()),
    ):
        await member.wait_until_known("rememberer")
        customers = [f"customer {n}" for n in range(6)]
        by = {customer: (await ask(requesters[0], customer))["by"] for customer in customers}
        for requester in requesters:
            assert {each: (await ask(requester, each))["by"] for each in customers} == by
    assert len(set(by.values())) == 2


async def test_the_worker_of_a_process_that_stalled_keeps_its_requesters(
    redis_server: EmbeddedRedis, redis: Redis
):
    requester = Requester()
    async with (
        Member(redis_server.url, requester) as member,
        ShortLeaseMember(redis_server.url, Sticky()) as one,
        ShortLeaseMember(redis_server.url, Sticky()) as two,
    ):
        await member.wait_until_known("rememberer")
        first = await requester.ask("rememberer", "tell")
        [owner] = [each for each in (one, two) if id(each.workers[0]) == first["by"]]
        process = owner.bus._process
        assert process is not None
        expelled = process.id
        await redis.execute_command(*process._channel.call("leave", expelled, 0))
        await until(lambda: process.id != expelled)
        await owner.wait_until_sent()
        again = await requester.ask("rememberer", "tell")
        assert (again["by"], again["moved"]) == (first["by"], False)


@pytest.mark.parametrize("value", ["", "x" * 257, 7, b"key", ["key"]])
async def test_an_affinity_that_is_not_a_short_text_is_refused(value: object):
    with pytest.raises(InvalidJobError, match=r"affinity (is|has)"):
        Requester().job("responder", affinity=value)


async def test_a_bus_of_one_process_accepts_an_affinity_and_ignores_it():
    async with JobHarness(bus=RoutedBus()) as harness:
        requester, worker = Requester(), Sticky()
        await harness.start(requester, worker)
        response = await requester.ask("rememberer", "tell", affinity="customer 7")
        assert not response["moved"]


def test_a_job_that_came_without_a_bus_has_not_moved():
    request = BusJobRequestMessage(source="requester", target="w", job_id="1")
    assert not job_moved(request)
