"""``RedisStreamsBus``: several processes that host Pipecat's ``BackendLLMWorker``."""

import asyncio

import pytest
from redis.asyncio import Redis
from support.peers import OurPeer, llm_services
from support.peers_backend import BackendLLMWorker, Frontend, Mine
from support.redis.processes import Member, ShortLeaseMember, redis, redis_server

from pipecat_jobs import WorkerLostError
from pipecat_jobs.bus._distributed.offers import find_offers
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.testing import ScriptedLLMServer

__all__ = ["redis", "redis_server"]


@pytest.mark.parametrize("worker_class", [Mine, BackendLLMWorker])
async def test_a_frontend_and_its_messages_meet_in_one_process(
    redis_server: EmbeddedRedis, worker_class: type
):
    frontends = [Frontend(OurPeer(f"frontend-{n}")) for n in range(2)]
    async with llm_services() as new_llm, ScriptedLLMServer() as llm:
        backends = [worker_class(name="backend", llm=new_llm(llm.base_url)) for _ in range(2)]
        async with (
            Member(redis_server.url, *(frontend.worker for frontend in frontends)) as member,
            Member(redis_server.url, backends[0]),
            Member(redis_server.url, backends[1]),
        ):
            await member.wait_until_known("backend")
            for frontend in frontends:
                await frontend.attach()
            for number in range(6):
                for frontend in frontends:
                    llm.reply(f">> Answer {number}.")
                    assert await frontend.send(f"question {number}") == "idle"
                    [update] = await frontend.until_idle()
                    assert update["text"] == f"Answer {number}."
            for frontend in frontends:
                await frontend.detach()


async def test_a_frontend_whose_backend_has_died_is_notified_and_attaches_elsewhere(
    redis_server: EmbeddedRedis, redis: Redis
):
    frontend = Frontend(OurPeer("frontend"))
    async with llm_services() as new_llm, ScriptedLLMServer() as llm:
        backends = [Mine(name="backend", llm=new_llm(llm.base_url)) for _ in range(2)]
        async with (
            Member(redis_server.url, frontend.worker) as member,
            ShortLeaseMember(redis_server.url, backends[0]) as one,
            ShortLeaseMember(redis_server.url, backends[1]) as two,
        ):
            await member.wait_until_known("backend")
            await frontend.attach()
            [owner] = [each for each in (one, two) if each.workers[0].active_jobs]
            [other] = [each for each in (one, two) if each is not owner]
            process = owner.bus._process
            assert process is not None
            await redis.execute_command(*process._channel.call("leave", process.id, 0))
            with pytest.raises(WorkerLostError):
                await frontend.ended
            assert not other.workers[0].active_jobs

            again = Frontend(frontend.worker)
            await again.attach()
            llm.reply(">> Still here.")
            assert await again.send("hello?") == "idle"
            assert [update["text"] for update in await again.until_idle()] == ["Still here."]
            await again.detach()
            await asyncio.sleep(0)


async def test_a_backend_says_that_an_attachment_is_lost_with_its_process():
    async with llm_services() as new_llm, ScriptedLLMServer() as llm:
        [offer] = find_offers(BackendLLMWorker(name="backend", llm=new_llm(llm.base_url)), 7)
    assert (offer.affinity, offer.once) == ("requester", ("attach",))
