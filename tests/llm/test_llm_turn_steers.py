"""``llm_turn(steerable=True)``: the steers of the job enter the context between two runs."""

import asyncio
from typing import Any

import pytest
from support.llm_workers import Debater, NewLLM, Researcher, asked, new_llm, start

from pipecat_jobs import InvalidJobError, JobError, SteerOutcome
from pipecat_jobs.testing import Failure, JobHarness, ScriptedLLMServer, Text, ToolCall, ToolCalls

__all__ = ["new_llm"]

pytestmark = pytest.mark.not_on(
    "pubsub", reason="Pipecat's network buses drop what a steer is attached to"
)

SLOW = Text(" ".join(f"word{number}" for number in range(40)), pace=0.01)
ACCEPTED = SteerOutcome("accepted", "debater")


class Job:
    """A job whose handler is a turn that takes steers."""

    def __init__(self, requester: Any, **payload: Any):
        self._requester = requester
        self.task = asyncio.create_task(self._ask(payload))

    async def _ask(self, payload: dict[str, Any]) -> Any:
        return await self._requester.job(
            "debater",
            name="argue",
            payload={"topic": "cars", "steerable": True, **payload},
            job_id="job-1",
        )

    def steer(self, text: str = "check the brakes") -> asyncio.Task[SteerOutcome]:
        return asyncio.create_task(self._requester.steer("job-1", {"text": text}))


async def test_a_steer_waits_for_the_end_of_the_run_and_has_one_of_its_own(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(SLOW, "With the brakes.")
    debater = Debater(llm=new_llm("You argue."))
    job = Job(await start(job_harness, debater))
    await server.wait_for_requests(1)
    steer = job.steer()
    assert await steer == ACCEPTED
    response = await job.task
    assert response == {"text": "With the brakes."}
    first, second = server.requests
    assert asked(first) == ["cars"]
    assert asked(second) == ["cars", SLOW.text, "check the brakes"]


async def test_a_steer_enters_with_the_result_of_the_function_that_runs(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(ToolCalls(ToolCall("wait_here")), "With the brakes.")
    researcher = Researcher(name="debater", llm=new_llm("You research."))
    job = Job(await start(job_harness, researcher))
    await researcher.calls.get()
    steers = [job.steer(), job.steer("and the lights")]
    await job_harness.settle()
    assert not any(steer.done() for steer in steers)
    researcher.release.set()
    assert await asyncio.gather(*steers) == [ACCEPTED] * 2
    assert await job.task == {"text": "With the brakes."}
    assert len(server.requests) == 2
    *_, result, brakes, lights = server.requests[1].messages
    assert result["role"] == "tool"
    assert brakes == {"role": "user", "content": "check the brakes"}
    assert lights["content"] == "and the lights"


async def test_a_steer_that_is_not_a_text_enters_as_json(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(SLOW, "Done.")
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))
    job = Job(requester)
    await server.wait_for_requests(1)
    assert (await requester.steer("job-1", {"also": ["Bremsen", "Öl"]})).accepted
    await job.task
    assert asked(server.requests[1])[-1] == '{"also": ["Bremsen", "Öl"]}'


async def test_a_turn_at_its_last_run_takes_no_steer(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(SLOW)
    job = Job(await start(job_harness, Debater(llm=new_llm("You argue."))), max_runs=1)
    await server.wait_for_requests(1)
    steer = job.steer()
    assert (await steer).state == "over"
    assert await job.task == {"text": SLOW.text}
    assert len(server.requests) == 1


async def test_what_a_steered_turn_put_in_is_taken_out_when_it_fails(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(SLOW, Failure(400))
    debater = Debater(llm=new_llm("You argue."))
    job = Job(await start(job_harness, debater))
    await server.wait_for_requests(1)
    assert await job.steer() == ACCEPTED
    with pytest.raises(JobError):
        await job.task
    await job_harness.settle()
    assert debater.context.get_messages() == []


async def test_a_cancelled_job_ends_its_steered_turn(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(Text("word " * 4000, pace=0.01))
    debater = Debater(llm=new_llm("You argue."))
    requester = await start(job_harness, debater)
    job = Job(requester)
    await server.wait_for_requests(1)
    steer = job.steer()
    await job_harness.settle()
    await requester.cancel_job_group("job-1")
    assert (await steer).state == "over"
    with pytest.raises(JobError):
        await job.task
    await job_harness.settle()
    assert debater.context.get_messages() == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(("options", "text"), [({"fresh": True}, "give one of them"), ({}, "")])
async def test_a_turn_that_cannot_be_steered_is_refused(
    options: dict[str, bool],
    text: str,
    job_harness: JobHarness,
    server: ScriptedLLMServer,
    new_llm: NewLLM,
):
    debater = Debater(llm=new_llm("You argue."))
    requester = await start(job_harness, debater)
    if not options:
        with pytest.raises(InvalidJobError, match="leave steerable out"):
            await debater.llm_turn("cars", steerable=True)
        return
    with pytest.raises(JobError, match=text):
        await Job(requester, **options).task
