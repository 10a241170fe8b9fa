"""The types that pyright infers in a bot's code; `make lint` runs pyright over it.

``assert_type`` says what has to be inferred. Each ignored error has to occur: pyright reports an
ignore that is not needed.
"""

from typing import Any, assert_type

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs import (
    BaseWorker,
    JobContext,
    JobError,
    JobEvent,
    JobGroupContext,
    JobGroupEvent,
    JobOutcome,
    JobParams,
    JobQuestion,
    JobRefusal,
    JobSteer,
    LLMContextWorker,
    LLMTurn,
    OutcomeStatus,
    Retry,
    SteerOutcome,
    UIWorker,
    job,
    job_deadline,
    job_steers,
)


class Researcher(BaseWorker):
    @job(name="research", max_concurrency=2)
    async def research(self, message: BusJobRequestMessage) -> dict[str, str]:
        return {"found": message.job_id}

    @job("research")  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
    async def name_is_a_keyword(self, message: BusJobRequestMessage) -> None: ...


async def a_decorated_handler_keeps_its_type(message: BusJobRequestMessage) -> None:
    assert_type(await Researcher("r").research(message), dict[str, str])


async def a_job_gives_events_a_response_and_an_outcome(worker: BaseWorker) -> None:
    async with worker.job("r", name="research", payload={"topic": 1}, timeout=3) as j:
        assert_type(j, JobContext)
        async for event in j:
            assert_type(event, JobEvent)
    assert_type(j.response, dict[str, Any])
    assert_type(j.outcome, JobOutcome | None)
    assert_type(j.job_id, str)


async def a_job_is_awaited_for_its_response(worker: BaseWorker) -> None:
    assert_type(await worker.job("r", name="research", ready_within=1), dict[str, Any])
    responses = await worker.job_group("a", "b", payloads={"a": {}, "b": {}}, need="first")
    assert_type(responses, dict[str, dict[str, Any]])
    async with worker.job_group("a", "b", need=2, partial_after=1.5) as group:
        async for outcome in group.as_completed():
            assert_type(outcome, JobOutcome)
    assert_type(job_deadline(), float | None)
    worker.job_group("a", need="some")  # pyright: ignore[reportArgumentType]
    worker.job("a", payloads={"a": {}})  # pyright: ignore[reportCallIssue]


async def a_group_gives_them_by_worker(worker: BaseWorker) -> None:
    async with worker.job_group("a", "b", cancel_on_error=False, label="Both") as group:
        assert_type(group, JobGroupContext)
        async for event in group:
            assert_type(event, JobGroupEvent)
    assert_type(group.responses, dict[str, dict[str, Any]])
    assert_type(group.outcomes, dict[str, JobOutcome])


async def ids_are_text(worker: BaseWorker) -> None:
    assert_type(await worker.request_job("r", params=JobParams(name="research")), str)
    assert_type(await worker.request_cancel_job_group("id"), bool)


def an_error_carries_outcomes(error: JobError) -> None:
    assert_type(error.outcomes, dict[str, JobOutcome])
    assert_type(error.outcomes["r"].status, OutcomeStatus)


async def mistakes_are_seen(worker: BaseWorker) -> None:
    worker.job("r", retry=Retry(on={OutcomeStatus.ERROR, JobRefusal.NO_HANDLER}), hedge_after=0.8)
    worker.job("r", retry=Retry(on=lambda outcome: outcome.refusal is None))
    worker.job("r", retry=Retry(on={"error"}))  # pyright: ignore[reportArgumentType]
    worker.job("r", retry=3)  # pyright: ignore[reportArgumentType]
    worker.job("r", tiemout=3)  # pyright: ignore[reportCallIssue]
    worker.job("r", timeout="3")  # pyright: ignore[reportArgumentType]
    worker.job("r", payload=[1])  # pyright: ignore[reportArgumentType]
    worker.job("r", cancel_on_error=True)  # pyright: ignore[reportCallIssue]
    worker.job_group(1)  # pyright: ignore[reportArgumentType]
    await worker.send_job_response("id", "text")  # pyright: ignore[reportArgumentType]


def a_worker_that_is_imported_on_first_use_has_its_type(worker: UIWorker) -> None:
    assert_type(worker.job("r"), JobContext)


async def a_turn_gives_text(worker: LLMContextWorker) -> None:
    assert_type(await worker.llm_turn("Topic: AI", stream=True, timeout=3), LLMTurn)
    assert_type(
        await worker.llm_turn([{"role": "user", "content": "Topic: AI"}], fresh=True), LLMTurn
    )
    said = await worker.hear("Hello", timeout=3)
    assert_type(said.stop_reason, str | None)
    assert_type(said.calls[0].name, str)
    await worker.llm_turn(3)  # pyright: ignore[reportArgumentType]
    await worker.llm_turn("Topic: AI", True)  # pyright: ignore[reportCallIssue]


class Desk(BaseWorker):
    @job(name="book")
    async def book(self, message: BusJobRequestMessage) -> dict[str, bool]:
        assert_type(await self.ask_requester("Your name?"), str)
        assert_type(await self.ask_requester("Charge 40 euros?", bool, timeout=30), bool)
        async for steer in job_steers():
            assert_type(steer, JobSteer)
        return {"paid": True}

    async def on_job_question(self, question: JobQuestion) -> bool:
        return question.is_open


async def a_steer_has_an_outcome(host: BaseWorker) -> None:
    assert_type(await host.steer("job-1", {"also": "brakes"}), SteerOutcome)
    await host.steer("job-1", "brakes")  # pyright: ignore[reportArgumentType]
