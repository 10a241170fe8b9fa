"""One payload for each worker of a group, and what is kept with a job."""

from dataclasses import replace
from enum import StrEnum
from typing import Any

import pytest
from support.workers import Requester, Responder

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    InvalidJobTypeError,
    JobCall,
    JobGroupError,
    JobInterceptor,
)
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus

PAYLOADS = {"a": {"n": 1}, "b": {"n": 2}}


async def test_each_worker_gets_its_own_payload(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder("a"), Responder("b"))
    responses = await requester.job_group("a", "b", name="echo", payloads=PAYLOADS)
    assert {name: response["payload"] for name, response in responses.items()} == PAYLOADS


async def test_one_payload_with_a_key_for_each_worker_goes_to_all(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder("a"), Responder("b"))
    responses = await requester.job_group("a", "b", name="echo", payload=PAYLOADS)
    assert [response["payload"] for response in responses.values()] == [PAYLOADS] * 2


@pytest.mark.parametrize(
    ("payloads", "text"),
    [
        ({"a": {}}, "payloads lacks 'b'; give one payload for each worker"),
        ({"a": {}, "b": {}, "c": {}}, "payloads has the unknown 'c'"),
        ({"a": {}, 7: {}}, "the worker of payloads is 7"),
        ({"a": {}, "b": "text"}, r"payloads\['b'\] is 'text'; give a dict"),
        ([{}, {}], "give a dict with a payload for each worker"),
    ],
)
def test_payloads_that_do_not_fit_the_workers_are_refused(payloads: Any, text: str):
    with pytest.raises(InvalidJobError, match=text):
        BaseWorker("requester").job_group("a", "b", payloads=payloads)


def test_payload_and_payloads_are_not_given_together():
    with pytest.raises(InvalidJobError, match="payload and payloads are both given"):
        BaseWorker("requester").job_group("a", "b", payload={}, payloads=PAYLOADS)


@pytest.mark.parametrize("argument", ["payload", "payloads"])
async def test_a_payload_is_the_one_of_the_call_when_the_bot_changes_its_dict_later(
    job_harness: JobHarness, argument: str
):
    requester = Requester()
    await job_harness.start(requester, Responder("a"))
    payload = {"n": 1}
    given: Any = {argument: payload if argument == "payload" else {"a": payload}}
    group = requester.job_group("a", name="echo", **given)
    payload["n"] = 2
    assert (await group)["a"]["payload"] == {"n": 1}


async def test_a_name_that_is_a_member_of_an_enum_is_sent_as_its_text(job_harness: JobHarness):
    class Name(StrEnum):
        ECHO = "echo"

    requester, seen = Requester(), list[object]()

    class Record(JobInterceptor):
        async def handle(self, request, proceed):
            seen.append(request.job_name)
            return await proceed(request)

    responder = Responder("a")
    responder.add_job_interceptor(Record())
    await job_harness.start(requester, responder)
    await requester.job("a", name=Name.ECHO)
    assert [(type(name), name) for name in seen] == [(str, "echo")]


async def test_an_interceptor_sees_and_replaces_the_payloads(job_harness: JobHarness):
    calls: list[JobCall] = []

    class AddLanguage(JobInterceptor):
        async def ask(self, call, proceed):
            calls.append(call)
            payloads = {name: {**each, "lang": "en"} for name, each in call.payloads.items()}
            await proceed(replace(call, payloads=payloads))

    requester = Requester()
    requester.add_job_interceptor(AddLanguage())
    await job_harness.start(requester, Responder("a"), Responder("b"))
    responses = await requester.job_group("a", "b", name="echo", payloads=PAYLOADS)
    assert (calls[0].payload, calls[0].payloads) == (None, PAYLOADS)
    assert responses["b"]["payload"] == {"n": 2, "lang": "en"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"payloads": {"a": {}}}, "payloads lacks 'b'"),
        ({"payloads": {"a": {}, "b": 1}}, "give a dict that describes the work"),
        ({"payload": {"n": 3}}, "replace 'payloads' of a call that has them"),
    ],
)
async def test_payloads_of_an_interceptor_are_checked(
    job_harness: JobHarness, given: dict[str, Any], text: str
):
    class Replace(JobInterceptor):
        async def ask(self, call, proceed):
            await proceed(replace(call, **given))

    requester = Requester()
    requester.add_job_interceptor(Replace())
    await job_harness.start(requester, Responder("a"), Responder("b"))
    with pytest.raises(JobGroupError, match=text):
        await requester.job_group("a", "b", name="echo", payloads=PAYLOADS)
    await job_harness.settle()
    assert job_harness.left_behind() == []


async def test_metadata_stays_with_the_requester(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    metadata = {"ship": "Kestrel", "tries": [1, 2.5, None], "nested": {"done": True}}
    async with requester.job("responder", name="wait", metadata=metadata) as j:
        await responder.started.get()
        group = requester.job_groups[j.job_id]
        metadata["ship"] = "changed later"
        assert group.params.metadata["ship"] == "Kestrel"  # pyright: ignore
        request = responder.active_jobs[j.job_id]
        assert request.payload is None
        assert "Kestrel" not in str(vars(request))
        responder.release.set()


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ("text", "metadata is 'text'; give a dict of JSON-like values"),
        ({"when": object()}, "metadata has <object .*> at 'when'"),
        ({"pair": {"deep": (1, 2)}}, "metadata has .* at 'pair'"),
        ({1: "n"}, "metadata has"),
    ],
)
def test_metadata_that_is_not_like_json_is_refused(metadata: Any, text: str):
    with pytest.raises(InvalidJobTypeError, match=text):
        BaseWorker("requester").job("a", metadata=metadata)
