"""The reports of a bot, as its client sees them."""

from typing import Any

import pytest
from support.client import Client
from support.llm_workers import NewLLM, new_llm

from pipecat_jobs import ClientJobs, LLMContextWorker
from pipecat_jobs.conversation import ReportChange
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer

__all__ = ["new_llm"]


def reports(client: Client) -> list[Any]:
    messages = client.of_type("server-message")
    assert all(data["type"] == "pipecat-jobs" for data in messages)
    return [data for data in messages if data["event"] == "report"]


def states(client: Client) -> list[tuple[str, str]]:
    return [(data["id"], data["state"]) for data in reports(client)]


@pytest.fixture
async def client(job_harness: JobHarness) -> Client:
    return Client()


async def test_each_change_of_a_report_reaches_the_client(
    job_harness: JobHarness, client: Client, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply("Order 7 is ready.")
    bot, waiter = client.worker(), LLMContextWorker("waiter", llm=new_llm("You serve."))
    ClientJobs(bot).follow(waiter)
    await job_harness.start(waiter, bot)
    await client.connect()

    receipt = await waiter.report({"order": 7}, key="order-7")
    last = await receipt.until_settled()
    await client.wait_until(lambda: states(client)[-1:] == [(receipt.report_id, str(last))])

    assert states(client) == [(receipt.report_id, str(change.state)) for change in receipt.history]
    first = reports(client)[0]
    assert first.pop("at") == int(receipt.history[0].time * 1000)
    assert first == {
        "type": "pipecat-jobs",
        "event": "report",
        "id": receipt.report_id,
        "worker": "waiter",
        "state": "waiting",
        "reason": None,
        "key": "order-7",
        "content": {"order": 7},
        "heard": "",
    }


async def test_a_client_that_connects_again_gets_the_reports_that_have_not_settled(
    job_harness: JobHarness, client: Client, new_llm: NewLLM
):
    class Waiter(LLMContextWorker):
        def holds_reports(self) -> bool:
            return True

    bot, waiter = client.worker(), Waiter("waiter", llm=new_llm("You serve."))
    ClientJobs(bot).follow(waiter)
    await job_harness.start(waiter, bot)
    old = await waiter.report("chopping", key="order-7")
    new = await waiter.report("cooking", key="order-7")
    await client.wait_until(lambda: len(reports(client)) == 3)
    assert (old.report_id, "superseded") in states(client)
    client.got.clear()

    await client.connect()
    await client.wait_until(lambda: reports(client) != [])
    await client.request({})

    assert states(client) == [(new.report_id, "waiting")]


async def test_a_bot_chooses_which_reports_its_client_sees(
    job_harness: JobHarness, client: Client, new_llm: NewLLM, job_log: list[Any]
):
    class Picky(ClientJobs):
        def shows_report(self, change: ReportChange) -> bool:
            if change.key is None:
                raise ValueError("a bug of the bot")
            return change.key != "secret"

    class Waiter(LLMContextWorker):
        def holds_reports(self) -> bool:
            return True

    bot, waiter = client.worker(), Waiter("waiter", llm=new_llm("You serve."))
    Picky(bot).follow(waiter)
    await job_harness.start(waiter, bot)

    await waiter.report("hidden", key="secret")
    await waiter.report("broken")
    await waiter.report("shown", key="order-7")
    await client.wait_until(lambda: reports(client) != [])

    assert [data["content"] for data in reports(client)] == ["shown"]
    assert [r.message for r in job_log if isinstance(r.exception, ValueError)] == [
        "shows_report() raised ValueError; going on"
    ]
