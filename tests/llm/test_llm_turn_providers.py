"""``llm_turn()`` with four providers: answers that end early, streams that are cancelled."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pipecat.frames.frames import (
    Frame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
)
from pipecat.services.llm_service import LLMService
from support.fake_providers import CUT, KINDS, WHOLE, FakeProvider, new_anthropic, new_service
from support.llm_workers import Debater, Requester, Talk, start
from support.workers import cancelled

from pipecat_jobs import JobError, LLMTurnError, OutcomeStatus
from pipecat_jobs.testing import JobHarness

LONG = " ".join(f"w{number}" for number in range(2000))

#: Reasons to end an answer early; None means that the provider gives no reason.
CUTS = [(kind, reason) for kind in KINDS for reason in (None, *CUT[kind])]


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    fake = FakeProvider()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture(params=KINDS)
async def debater(
    request: pytest.FixtureRequest, provider: FakeProvider, job_harness: JobHarness
) -> AsyncIterator[tuple[Debater, Requester]]:
    worker = Debater(llm=new_service(request.param, provider.port))
    yield worker, await start(job_harness, worker)
    await close_client(worker.llm)


async def close_client(llm: LLMService[Any]) -> None:
    client = getattr(llm, "_client", None)
    if client is not None and hasattr(client, "close"):
        closing = client.close()
        if closing is not None:
            await closing


async def until_over(provider: FakeProvider) -> None:
    async with asyncio.timeout(100):
        for asked in provider.asked:
            await asked.over.wait()


# Whole answers


@pytest.mark.parametrize("fresh", [False, True], ids=["context", "fresh"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_turn_has_the_provider_s_word_for_why_it_stopped(
    job_harness: JobHarness, provider: FakeProvider, kind: str, fresh: bool
):
    worker = Debater(llm=new_service(kind, provider.port))
    await start(job_harness, worker)
    provider.say("Dogs are loyal.")

    turn = await worker.llm_turn("dogs", fresh=fresh)

    assert (turn, turn.stop_reason, turn.runs) == ("Dogs are loyal.", WHOLE[kind], 1)
    await close_client(worker.llm)


async def test_the_reason_of_an_unknown_provider_is_not_known(job_harness: JobHarness):
    class Plain(LLMService):
        async def process_frame(self, frame: Frame, direction: Any) -> None:
            await super().process_frame(frame, direction)
            if not isinstance(frame, LLMContextFrame):
                await self.push_frame(frame, direction)
                return
            await self.push_frame(LLMFullResponseStartFrame())
            await self.push_frame(LLMTextFrame("Dogs are loyal."))
            await self.push_frame(LLMFullResponseEndFrame())

    worker = Debater(llm=Plain())
    await start(job_harness, worker)

    turn = await worker.llm_turn("dogs")

    assert (turn, turn.stop_reason) == ("Dogs are loyal.", None)


# Incomplete answers


@pytest.mark.parametrize("fresh", [False, True], ids=["context", "fresh"])
@pytest.mark.parametrize(("kind", "reason"), CUTS)
async def test_half_an_answer_is_an_error_with_the_provider_s_reason(
    job_harness: JobHarness, provider: FakeProvider, kind: str, reason: str | None, fresh: bool
):
    worker = Debater(llm=new_service(kind, provider.port))
    requester = await start(job_harness, worker)
    provider.say("You must not", reason=reason)
    provider.say("Cats are aloof.")

    with pytest.raises(JobError, match=reason or "ended in the middle of an answer") as caught:
        await requester.ask("dogs", fresh=fresh)

    assert caught.value.outcomes["debater"].status is OutcomeStatus.ERROR
    error = worker.failed.get_nowait()
    assert isinstance(error, LLMTurnError)
    assert error.text == "You must not"
    assert worker.context.messages == []
    assert await requester.ask("cats", fresh=fresh) == {"text": "Cats are aloof."}
    await close_client(worker.llm)


async def test_a_user_still_gets_half_an_answer_as_in_plain_pipecat(
    job_harness: JobHarness, provider: FakeProvider
):
    worker = Debater(llm=new_service("chat", provider.port), active=True)
    errors: list[Any] = []
    worker.llm.add_event_handler("on_error", lambda _, error: errors.append(error))
    talk = Talk(worker)
    await start(job_harness, worker)
    provider.say("You must not", reason="length")

    await talk.say("dogs")

    assert await talk.said.get() == "You must not"
    assert errors == []
    await close_client(worker.llm)


async def test_a_timeout_that_a_service_reports_to_its_event_handlers_alone_is_an_error(
    job_harness: JobHarness, provider: FakeProvider
):
    worker = Debater(llm=new_anthropic(f"http://127.0.0.1:{provider.port}", timeout=0.2))
    requester = await start(job_harness, worker)
    provider.say("You must not", stalls=True)

    with pytest.raises(JobError, match="LLMTurnError"):
        await requester.ask("dogs")

    await close_client(worker.llm)


async def test_a_timeout_of_a_service_of_an_unknown_provider_is_an_error(job_harness: JobHarness):
    class Slow(LLMService):
        async def process_frame(self, frame: Frame, direction: Any) -> None:
            await super().process_frame(frame, direction)
            if not isinstance(frame, LLMContextFrame):
                await self.push_frame(frame, direction)
                return
            await self.push_frame(LLMFullResponseStartFrame())
            await self.push_frame(LLMTextFrame("You must not"))
            await self._call_event_handler("on_completion_timeout")
            await self.push_frame(LLMFullResponseEndFrame())

    requester = await start(job_harness, Debater(llm=Slow()))

    with pytest.raises(JobError, match="service's timeout"):
        await requester.ask("dogs")


@pytest.mark.parametrize("fresh", [False, True], ids=["context", "fresh"])
@pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])
async def test_a_provider_that_cannot_be_reached_is_named_with_the_cause(
    job_harness: JobHarness, provider: FakeProvider, kind: str, fresh: bool
):
    url = f"http://name:secret@127.0.0.1:{provider.port}"
    await provider.stop()
    await assert_port_closed(provider)
    worker = Debater(llm=new_service(kind, provider.port))
    client: Any = worker.llm._client  # type: ignore[attr-defined]
    client.base_url = url if kind == "anthropic" else f"{url}/v1"
    client.max_retries = 0
    requester = await start(job_harness, worker)

    with pytest.raises(JobError) as caught:
        await requester.ask("dogs", fresh=fresh)

    text = str(caught.value)
    assert f"http://127.0.0.1:{provider.port}/v1/" in text
    assert "Connect call failed" in text
    assert "secret" not in text
    await provider.start()
    await close_client(worker.llm)


async def assert_port_closed(provider: FakeProvider) -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", provider.port)


# Cancelled streams


async def test_the_tokens_stop_when_the_job_is_cancelled(
    provider: FakeProvider, debater: tuple[Debater, Requester]
):
    _, requester = debater
    provider.say(LONG, pace=0.01)
    asking = asyncio.create_task(requester.ask("dogs"))
    asked = await provider.wait_asked(1)
    await asked.wait_sent(3)

    await cancelled(asking)

    await until_over(provider)
    assert asked.hung_up
    assert asked.sent < 200


async def test_no_stream_of_many_fast_ones_is_left_open(
    provider: FakeProvider, debater: tuple[Debater, Requester]
):
    _, requester = debater
    for number in range(20):
        provider.say(LONG, pace=0.0005, stalls=True)
        asking = asyncio.create_task(requester.ask("dogs"))
        asked = await provider.wait_asked(number + 1)
        await asked.wait_sent(5 + number * 3)

        await cancelled(asking)

    await until_over(provider)
    assert all(asked.hung_up for asked in provider.asked)


async def test_a_stream_that_is_cancelled_between_two_chunks_is_closed(
    provider: FakeProvider, debater: tuple[Debater, Requester]
):
    worker, requester = debater
    passing_on = asyncio.Event()

    async def hold(_: object, frame: Frame) -> None:
        if isinstance(frame, LLMTextFrame):
            passing_on.set()
            await asyncio.Event().wait()

    worker.llm.add_event_handler("on_before_push_frame", hold)
    provider.say("Dogs are loyal", stalls=True)
    asking = asyncio.create_task(requester.ask("dogs"))
    await passing_on.wait()

    await cancelled(asking)

    await until_over(provider)
    assert provider.asked[0].hung_up


async def test_the_tokens_of_a_fresh_turn_stop_when_the_job_is_cancelled(
    provider: FakeProvider, debater: tuple[Debater, Requester]
):
    _, requester = debater
    provider.say(LONG, pace=0.01)
    asking = asyncio.create_task(requester.ask("dogs", fresh=True))
    asked = await provider.wait_asked(1)
    await asked.wait_sent(3)

    await cancelled(asking)

    await until_over(provider)
    assert asked.hung_up
    assert asked.sent < 200


async def test_a_fresh_turn_is_streamed_to_the_requester(
    provider: FakeProvider, debater: tuple[Debater, Requester]
):
    worker, requester = debater
    provider.say("Dogs are loyal friends.")

    payload = {"topic": "dogs", "fresh": True, "stream": True}
    async with requester.job("debater", name="argue", payload=payload, timeout=30) as j:
        events = [(event.type, event.data) async for event in j]

    assert [data["text"] for kind, data in events if kind == "stream_data"] == [
        "Dogs",
        " are",
        " loyal",
        " friends.",
    ]
    assert j.response == {"text": "Dogs are loyal friends."}
    assert worker.context.messages == []


async def test_a_fresh_turn_of_an_unknown_provider_is_sent_as_one_chunk(job_harness: JobHarness):
    class Plain(LLMService):
        async def process_frame(self, frame: Frame, direction: Any) -> None:
            await super().process_frame(frame, direction)
            await self.push_frame(frame, direction)

        async def run_inference(self, context: Any, *args: Any, **keywords: Any) -> str:
            return "Dogs are loyal."

    requester = await start(job_harness, Debater(llm=Plain()))

    payload = {"topic": "dogs", "fresh": True, "stream": True}
    async with requester.job("debater", name="argue", payload=payload, timeout=30) as j:
        events = [(event.type, event.data) async for event in j]

    assert events == [("stream_start", None), ("stream_data", {"text": "Dogs are loyal."})]
    assert j.response == {"text": "Dogs are loyal."}
