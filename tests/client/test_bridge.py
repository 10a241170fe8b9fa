"""Jobs of an LLM behind a bridge reach the client, and not the context of the LLM."""

from typing import Any

from pipecat.bus import BusBridgeProcessor
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from support.client import Client
from support.llm_workers import NewLLM, new_llm

from pipecat_jobs import BaseWorker, ClientJobs, LLMWorker, job, job_tool
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]


class Kitchen(BaseWorker):
    @job(name="cook")
    async def cook(self, message: BusJobRequestMessage) -> dict[str, Any]:
        await self.send_job_update(message.job_id, {"step": "chopping"})
        return {"dish": "fish"}


class Waiter(LLMWorker):
    @job_tool("kitchen", job="cook", label="Your order")
    async def order(self) -> dict[str, Any]:
        """Order the fish."""
        return {}


async def test_jobs_of_an_llm_behind_a_bridge_reach_the_client_and_not_its_context(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply(ToolCall("order", {}), "Here is your fish.")
    context = LLMContext()
    user, assistant = LLMContextAggregatorPair(context)
    bridge = BusBridgeProcessor(bus=job_harness.bus, worker_name="bot", target_worker="waiter")
    client = Client()
    processors = [client.input(), user, bridge, client.output(), assistant]
    bot = PipelineWorker(Pipeline(processors), name="bot")
    waiter = Waiter("waiter", llm=new_llm("You serve."), bridged=())
    ClientJobs(bot).follow(waiter)
    await job_harness.start(waiter, Kitchen("kitchen"), bot)
    await client.connect()
    await bot.activate_worker("waiter")

    await client.send("send-text", {"content": "The fish, please."})
    await scripted_llm.wait_for_requests(2)
    await client.wait_until(lambda: ("closed",) in client.cards())

    assert client.cards() == [
        ("started", "kitchen"),
        ("update", "kitchen", {"step": "chopping"}),
        ("completed", "kitchen", "completed", {"dish": "fish"}),
        ("closed",),
    ]
    assert client.of_type("ui-job-group")[0]["label"] == "Your order"
    assert len(scripted_llm.requests) == 2
    assert "chopping" not in str(context.get_messages())
    assert not any(request.mentions("chopping") for request in scripted_llm.requests)
    # While no worker behind the bridge is active.
    await bot.deactivate_worker("waiter")
    client.got.clear()
    await waiter.job("kitchen", name="cook")
    await client.wait_until(lambda: ("closed",) in client.cards())
