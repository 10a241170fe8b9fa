"""What a process offers to a channel, as it is read off its subscribers."""

import json

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.bus.subscriber import BusSubscriber
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.proxy.websocket import WebSocketProxyClient
from test_routed_bus import Listener

from pipecat_jobs import BaseWorker, LLMContextWorker, job
from pipecat_jobs.bus.redis.hosting import Offer, offers_of


class Mixed(BaseWorker):
    @job(name="wide")
    async def wide(self, message: BusJobRequestMessage) -> dict:
        return {}

    @job(name="narrow", max_concurrency=2)
    async def narrow(self, message: BusJobRequestMessage) -> dict:
        return {}

    @job(name="single", sequential=True)
    async def single(self, message: BusJobRequestMessage) -> dict:
        return {}

    @job(name="pay", run_once=True)
    async def pay(self, message: BusJobRequestMessage) -> dict:
        return {}


class Bounded(BaseWorker):
    job_request_concurrency = 3


@pytest.mark.parametrize(
    ("subscriber", "rooms", "once"),
    [
        (Mixed("w"), {"": 7, "wide": 7, "narrow": 2, "single": 1, "pay": 7}, ("pay",)),
        (Bounded("w"), {"": 3}, ()),
        (BaseWorker("w"), {"": 7}, ()),
        (LLMContextWorker("w", llm=OpenAILLMService(api_key="none")), {"": 1}, ()),
        (Listener("w"), None, ()),
    ],
)
def test_a_worker_has_room_for_as_many_jobs_as_its_handlers_take(
    subscriber: BusSubscriber, rooms: dict[str, int] | None, once: tuple[str, ...]
):
    assert list(offers_of(subscriber, 7)) == [Offer("w", rooms, once)]


def test_a_proxy_is_offered_under_the_name_of_the_worker_it_stands_for_as_well():
    proxy = WebSocketProxyClient(
        "proxy", url="ws://nowhere", remote_worker_name="far", local_worker_name="near"
    )
    assert [(offer.name, offer.rooms) for offer in offers_of(proxy, 7)] == [
        ("proxy", {"": 7}),
        ("far", {"": 7}),
    ]


def test_what_takes_no_requests_says_nothing_of_room():
    assert Offer("w").as_text("me") == ""
    offer = Offer("w", {"": 2}, once=("pay",))
    assert json.loads(offer.as_text("me")) == {
        "uid": "me",
        "rooms": {"": 2},
        "once": {"pay": True},
    }
