"""The jobs that Pipecat's ``UIWorker`` defines, with the mixin: respond and screen."""

import asyncio

import pytest
from pipecat.bus import WorkerBus
from pipecat.frames.frames import InterruptionFrame
from pipecat.workers.ui import UIWorker
from support import peers_ui
from support.buses import BusHarness
from support.peers import OurPeer, PlainPeer, cancel
from support.peers_ui import SNAPSHOT, MakeUI, client_sends

from pipecat_jobs import JobError
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, Stall, ToolCall

make = peers_ui.make


@pytest.mark.parametrize("asks", [OurPeer, PlainPeer])
async def test_a_respond_job_returns_the_text_of_a_tool(bus: WorkerBus, make: MakeUI, asks: type):
    requester = asks("requester")
    async with BusHarness(bus, check_watches=False) as harness, ScriptedLLMServer() as llm:
        llm.on("where", ToolCall("answer", {"text": "on the left"}))
        await harness.start(requester, make(base_url=llm.base_url))

        response = await requester.ask("ui", "respond", payload={"query": "where is it"})

    assert response == {"answer": "on the left"}


async def test_respond_jobs_run_one_at_a_time(
    make: MakeUI, job_harness: JobHarness, scripted_llm: ScriptedLLMServer
):
    requester, ui = OurPeer("requester"), make(base_url=scripted_llm.base_url)
    for word in ("alpha", "beta", "gamma"):
        scripted_llm.on(word, ToolCall("answer", {"text": word.upper()}))
    await job_harness.start(requester, ui)

    responses = await asyncio.gather(
        *(
            requester.ask("ui", "respond", payload={"query": word})
            for word in ("alpha", "beta", "gamma")
        )
    )

    assert responses == [{"answer": "ALPHA"}, {"answer": "BETA"}, {"answer": "GAMMA"}]
    assert ui.current_job is None


async def test_a_cancelled_respond_job_frees_its_slot_for_the_next(
    make: MakeUI, job_harness: JobHarness, scripted_llm: ScriptedLLMServer
):
    requester, ui = OurPeer("requester"), make(base_url=scripted_llm.base_url)
    scripted_llm.on("slow", Stall())
    scripted_llm.on("quick", ToolCall("answer", {"text": "done"}))
    await job_harness.start(requester, ui)
    call_task = asyncio.create_task(requester.ask("ui", "respond", payload={"query": "slow"}))
    await scripted_llm.wait_for_requests(1)

    await cancel(call_task)
    await job_harness.settle()

    assert ui.current_job is None
    assert not ui.active_jobs
    # The stalled turn blocks the pipeline; this package must not block the job.
    await ui.queue_frame(InterruptionFrame())
    response = await requester.ask("ui", "respond", payload={"query": "quick"})
    assert response == {"answer": "done"}


needs_screen = pytest.mark.skipif(
    not hasattr(UIWorker, "snapshot"), reason="this Pipecat's UIWorker has no screen job"
)


@needs_screen
async def test_a_respond_job_returns_the_reply_that_the_model_writes(
    make: MakeUI, job_harness: JobHarness, scripted_llm: ScriptedLLMServer
):
    requester = OurPeer("requester")
    scripted_llm.reply("It is on the left.")
    await job_harness.start(requester, make(base_url=scripted_llm.base_url))

    response = await requester.ask("ui", "respond", payload={"query": "where is it"})

    assert response == {"answer": "It is on the left."}


@needs_screen
async def test_a_screen_job_reads_the_snapshot(make: MakeUI, job_harness: JobHarness):
    requester, ui = OurPeer("requester"), make()
    await job_harness.start(requester, ui)
    page = {
        "ref": "e0",
        "role": "page",
        "children": [{"ref": "e1", "role": "button", "name": "Buy"}],
    }
    await client_sends(ui, SNAPSHOT, {"root": page})
    await job_harness.settle()

    response = await requester.ask("ui", "screen", payload={"action": "list"})

    assert [element["name"] for element in response["elements"]] == ["Buy"]


@needs_screen
async def test_a_screen_job_names_an_action_that_it_cannot_do(
    make: MakeUI, job_harness: JobHarness
):
    requester = OurPeer("requester")
    await job_harness.start(requester, make())

    with pytest.raises(JobError) as failed:
        await requester.ask("ui", "screen", payload={"action": "dance", "target": "x"})

    assert failed.value.outcomes["ui"].error is not None
