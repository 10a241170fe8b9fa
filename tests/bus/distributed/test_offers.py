"""The offers of a process: which workers it hosts, and how many jobs each takes."""

import json

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.bus.subscriber import BusSubscriber
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from pipecat.workers.proxy.websocket import WebSocketProxyClient
from support.listeners import Listener

from pipecat_jobs import BaseWorker, InvalidJobError, LLMContextWorker, job
from pipecat_jobs._llm.conversing import REPORT_JOB
from pipecat_jobs._protocol.affinity import Affinity
from pipecat_jobs.bus._distributed.offers import Offer, find_offers


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


class Keyed(BaseWorker):
    @job(name="fly", key=("ship", "part"), max_concurrency=2)
    async def fly(self, message: BusJobRequestMessage) -> dict:
        return {}


class Sticky(BaseWorker):
    job_affinity = "requester"


class Loose(LLMContextWorker):
    job_affinity = None


class Bounded(BaseWorker):
    job_request_concurrency = 3


@pytest.mark.parametrize(
    ("subscriber", "slots", "once", "affinity"),
    [
        (Mixed("w"), {"": 7, "wide": 7, "narrow": 2, "single": 1, "pay": 7}, ("pay",), None),
        (Bounded("w"), {"": 3}, (), None),
        (BaseWorker("w"), {"": 7}, (), None),
        (
            LLMContextWorker("w", llm=OpenAILLMService(api_key="none")),
            {"": 1, REPORT_JOB: 7},
            (),
            "prefer",
        ),
        (Sticky("w"), {"": 7}, (), "requester"),
        (Listener("w"), None, (), None),
    ],
)
def test_a_worker_offers_as_many_slots_as_its_handlers_take(
    subscriber: BusSubscriber,
    slots: dict[str, int] | None,
    once: tuple[str, ...],
    affinity: Affinity | None,
):
    assert list(find_offers(subscriber, 7)) == [Offer("w", slots, once, affinity)]


def test_a_proxy_is_also_offered_under_the_name_of_its_remote_worker():
    proxy = WebSocketProxyClient(
        "proxy", url="ws://nowhere", remote_worker_name="far", local_worker_name="near"
    )
    assert [(offer.name, offer.slots) for offer in find_offers(proxy, 7)] == [
        ("proxy", {"": 7}),
        ("far", {"": 7}),
    ]


def test_a_subscriber_that_takes_no_requests_offers_no_slots():
    assert Offer("w").to_json("me") == ""
    offer = Offer("w", {"": 2}, once=("pay",))
    assert json.loads(offer.to_json("me")) == {
        "uid": "me",
        "slots": {"": 2},
        "once": {"pay": True},
    }
    assert json.loads(Offer("w", {"": 1}, affinity="prefer").to_json("me"))["affinity"] == "prefer"


def test_an_offer_names_the_keys_of_jobs_which_no_limit_of_the_worker_keeps_at_the_server():
    [offer] = find_offers(Keyed("w"), 7)
    assert offer == Offer("w", {"": 7, "fly": 7}, keys={"fly": ("ship", "part")})
    assert json.loads(offer.to_json("me"))["keys"] == {"fly": ["ship", "part"]}


def test_a_worker_class_sets_the_affinity_of_its_jobs():
    loose = Loose("w", llm=OpenAILLMService(api_key="none"))
    assert [offer.affinity for offer in find_offers(loose, 7)] == [None]


def test_an_unknown_affinity_is_refused_where_the_class_is_defined():
    with pytest.raises(InvalidJobError, match=r"Wrong.job_affinity is 'sticky'; give 'requester'"):
        type("Wrong", (BaseWorker,), {"job_affinity": "sticky"})


def test_an_unknown_affinity_is_refused_when_a_plain_worker_is_added():
    worker = PlainWorker("w")
    worker.job_affinity = ["requester"]
    with pytest.raises(InvalidJobError, match=r"BaseWorker.job_affinity is \["):
        list(find_offers(worker, 7))
