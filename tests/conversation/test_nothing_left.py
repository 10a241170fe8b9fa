"""Nothing of a conversation is left once its worker has ended."""

from support.tools_stage import scripted_service

from pipecat_jobs import LLMContextWorker, ReportState
from pipecat_jobs._llm.conversing import find_conversations
from pipecat_jobs._llm.watch import watch
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer


async def test_a_worker_that_reported_is_forgotten_when_it_has_ended(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer
):
    llm = scripted_service(scripted_llm)
    host = LLMContextWorker("host", llm=llm, active=True)
    await job_harness.start(host)
    scripted_llm.reply("It is ready.")
    receipt = await host.report("ready")
    assert await receipt.until_settled() is ReportState.SAID
    waiting = await host.report("more", silent=True)
    seen = watch(llm)

    await job_harness.end(host)
    await llm._client.close()

    assert waiting.state is ReportState.DROPPED
    late = await host.report("too late")
    assert late.state is ReportState.DROPPED
    assert seen.floor.holder is None
    assert seen.runs.listener is None
    # What refers to the LLM would keep it, because the LLM is the key.
    assert find_conversations(host) == []
