"""Reports over ``RedisStreamsBus``: the LLM of the conversation is in another process."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
from pipecat.workers.base_worker import BaseWorker
from support.redis.processes import Member, redis_server
from support.voice_talk import Host, Kitchen, Talk, states
from support.workers import until

from pipecat_jobs import JobQuestionError, PipelineWorker
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.conversation import ReportState
from pipecat_jobs.testing.voice import SimulatedUser, VoiceOutput

__all__ = ["redis_server"]


class Desk(Host):
    """One of two workers who talk to the user in turn."""

    held = False

    def holds_reports(self) -> bool:
        return self.held


def desk(name: str, *, active: bool = False) -> Desk:
    return Desk(name, active=active, bridged=())


@asynccontextmanager
async def talking(
    server: EmbeddedRedis, near: Sequence[BaseWorker], far: Sequence[BaseWorker]
) -> AsyncGenerator[tuple[Talk, PipelineWorker]]:
    """Run a conversation in one process with some workers, and other workers in another one."""
    here, there = Member(server.url), Member(server.url, *far)
    # Real time, so a fast speaker.
    talk = Talk(here.bus, voice=VoiceOutput(pace=0.05), user=SimulatedUser(pace=0.05))
    main = talk.bridge()
    here.workers = (*near, main)
    async with asyncio.timeout(100), there, here:
        for worker in (*near, main):
            await there.wait_until_known(worker.name)
        for worker in far:
            await here.wait_until_known(worker.name)
        yield talk, main


async def test_a_worker_of_another_process_reports_over_the_bridge(redis_server: EmbeddedRedis):
    far = desk("far", active=True)
    async with talking(redis_server, [], [far]) as (talk, _):
        receipt = await far.report("ready")
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said == ["news ready"]
        assert far.floor.holder is None


async def test_a_report_that_is_cut_off_comes_again_over_the_bridge(redis_server: EmbeddedRedis):
    far = desk("far", active=True)
    async with talking(redis_server, [], [far]) as (talk, _):
        receipt = await far.report("a very long report " * 20)
        await talk.until_bot_says(1)
        await until(lambda: receipt.state is ReportState.SPEAKING)
        await asyncio.sleep(0.5)
        await talk.user.say("wait a moment")
        assert await receipt.until_settled() is ReportState.SAID
        assert states(receipt) == [
            "waiting", "offered", "speaking", "interrupted", "offered", "speaking", "said"
        ]  # fmt: skip
        assert receipt.history[3].heard.startswith("news a very")
        assert talk.said[-1].split() == ["news", *("a very long report".split() * 20)]


async def test_a_report_goes_with_the_conversation_into_another_process(
    redis_server: EmbeddedRedis,
):
    near, far = desk("near", active=True), desk("far")
    async with talking(redis_server, [near], [far]) as (talk, _):
        near.held = True
        receipt = await near.report({"order": 7}, key="order-7")
        await near.activate_worker("far", deactivate_self=True)
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said == ["news {'order': 7}"]
        assert [len(near.contexts), len(far.contexts)] == [0, 1]
        assert states(receipt) == ["waiting", "offered", "said"]
        assert receipt.history[1].reason == "worker 'far' holds the conversation and has it"


async def test_a_report_after_the_hand_over_goes_to_the_other_process(
    redis_server: EmbeddedRedis,
):
    near, far = desk("near", active=True), desk("far")
    async with talking(redis_server, [near], [far]) as (talk, _):
        await near.activate_worker("far", deactivate_self=True)
        receipt = await near.report("ready")
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said == ["news ready"]
        assert len(far.contexts) == 1


@pytest.mark.slow
async def test_a_report_comes_back_with_the_conversation(redis_server: EmbeddedRedis):
    near, far = desk("near", active=True), desk("far")
    async with talking(redis_server, [near], [far]) as (talk, _):
        near.held = far.held = True
        receipt = await near.report("ready", expires_after=None)
        await near.activate_worker("far", deactivate_self=True)
        await until(lambda: far.changes)
        near.held = False
        await far.activate_worker("near", deactivate_self=True)
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said == ["news ready"]
        assert [len(near.contexts), len(far.contexts)] == [1, 0]


async def test_a_question_does_not_go_into_another_process(redis_server: EmbeddedRedis):
    near, far, kitchen = desk("near", active=True), desk("far"), Kitchen()
    async with talking(redis_server, [near, kitchen], [far]) as (talk, _):
        await near.request_job("kitchen", name="ask")
        await talk.until_bot_says(1)
        await near.activate_worker("far", deactivate_self=True)
        await until(lambda: kitchen.sauces)
        (error,) = kitchen.sauces
        assert isinstance(error, JobQuestionError)
        assert "worker 'far' of another process holds the conversation" in error.reason
