"""Where a worker class names the mixin among its bases: last, or first where nothing is hidden."""

from collections.abc import Callable
from typing import Any

import pytest
from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers import llm
from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.llm import LLMContextWorker, LLMWorker
from pipecat.workers.ui import UIWorker
from support.peers import OurPeer, PlainPeer

import pipecat_jobs
from pipecat_jobs import InvalidJobTypeError, JobsMixin, MixinOrderError, job
from pipecat_jobs.testing import JobHarness

#: Pipecat's workers that override no job method of the mixin.
PLAIN = [PipelineWorker, LLMWorker, LLMContextWorker]
if hasattr(llm, "BackendLLMWorker"):  # Pipecat 1.8 does not have this worker.
    PLAIN.append(llm.BackendLLMWorker)

#: Members that both a plain class and the mixin may define.
MEMBERS = """
    accepts_bus_message add_event_handler add_job_interceptor add_workers ask_requester
    cancel_job_group on_job_question on_job_steered steer
    create_job_group_and_request_job job job_affinity job_cancel_grace job_group job_interceptors
    job_request_concurrency on_bus_message open_jobs remove_event_handler request_job
    request_job_group request_job_update send_job_response send_job_stream_data send_job_stream_end
    send_job_stream_start send_job_update stop take_bus_message takes_jobs_when_inactive
    worker_lost
""".split()


def define(name: str, *bases: type, **body: Any) -> type:
    """Make a class as a class statement does."""
    return type(JobsMixin)(name, bases, body)


@pytest.mark.parametrize("base", [*PLAIN, UIWorker])
def test_a_mixin_that_is_named_last_is_right_above_base_worker(base: type):
    order = define("Mine", base, JobsMixin).__mro__

    assert order[1] is base
    assert order.index(PipelineWorker) < order.index(JobsMixin) < order.index(BaseWorker)


@pytest.mark.parametrize("base", PLAIN)
def test_a_mixin_that_is_named_first_is_accepted_where_it_hides_nothing(base: type):
    assert define("Mine", JobsMixin, base).__mro__[1] is JobsMixin


@pytest.mark.parametrize("member", ["on_job_request", "on_job_cancelled", "on_activated", "start"])
def test_a_mixin_that_is_named_first_does_not_hide_hooks_of_the_other_bases(member: str):
    own = define("Own", PipelineWorker, **{member: getattr(BaseWorker, member)})

    assert issubclass(define("Mine", JobsMixin, own), own)


def test_the_checked_members_are_all_members_of_the_mixin():
    parts = JobsMixin.__mro__[: JobsMixin.__mro__.index(BaseWorker)]
    assert {name for part in parts for name in vars(part) if name[0] != "_"} == {*MEMBERS, "start"}


@pytest.mark.parametrize("member", MEMBERS)
def test_a_mixin_that_would_hide_a_member_is_refused_with_the_line_to_write(member: str):
    value = getattr(JobsMixin, member)
    own = type("Own", (PipelineWorker,), {member: value})
    further = type("Further", (own,), {})

    with pytest.raises(MixinOrderError) as caught:
        define("Mine", JobsMixin, further)

    assert str(caught.value) == (
        f"in class Mine(JobsMixin, Further) the mixin hides Own.{member}; "
        "write class Mine(Further, JobsMixin)"
    )
    assert isinstance(caught.value, InvalidJobTypeError)
    assert caught.value.worker_class == "Mine"
    assert caught.value.hidden == f"Own.{member}"
    mine = define("Mine", further, JobsMixin)
    assert mine.__mro__[1:3] == (further, own)


def test_our_llm_context_worker_may_be_named_first():
    own = type("Own", (LLMContextWorker,), {"stop": BaseWorker.stop})
    order = define("Mine", pipecat_jobs.LLMContextWorker, own).__mro__

    assert order.index(own) < order.index(JobsMixin)


def test_pipecats_ui_worker_is_refused_behind_the_mixin():
    with pytest.raises(MixinOrderError, match=r"; write class Screen\(UIWorker, JobsMixin\)$"):

        class Screen(JobsMixin, UIWorker):
            pass


@pytest.mark.parametrize("module", ["client", "server"])
def test_pipecats_proxies_are_refused_behind_the_mixin(module: str):
    proxies = pytest.importorskip(f"pipecat.workers.proxy.websocket.{module}")
    proxy = getattr(proxies, f"WebSocketProxy{module.capitalize()}")

    with pytest.raises(MixinOrderError, match=rf"class Mine\({proxy.__name__}, JobsMixin\)$"):
        define("Mine", JobsMixin, proxy)
    assert define("Mine", proxy, JobsMixin).__mro__[1] is proxy


@pytest.mark.parametrize(
    ("bases", "line"),
    [
        ("Middle UIWorker", "UIWorker, Middle"),
        ("Ours Own", "Own, Ours"),
        ("Tools JobsMixin Own Other", "Tools, Own, Other, JobsMixin"),
        # BaseWorker is a base of the mixin, so Python accepts it only behind the mixin.
        ("JobsMixin Own BaseWorker", "Own, JobsMixin, BaseWorker"),
    ],
)
def test_the_line_that_the_error_proposes_works(bases: str, line: str):
    known = {
        "BaseWorker": BaseWorker,
        "JobsMixin": JobsMixin,
        "Middle": define("Middle", JobsMixin, LLMWorker),
        "Other": type("Other", (), {}),
        "Ours": define("Ours", pipecat_jobs.BaseWorker),
        "Own": type("Own", (BaseWorker,), {"stop": BaseWorker.stop}),
        "Tools": type("Tools", (), {}),
        "UIWorker": UIWorker,
    }

    with pytest.raises(MixinOrderError) as caught:
        define("Mine", *(known[base] for base in bases.split()))

    assert str(caught.value).endswith(f"; write class Mine({line})")
    define("Mine", *(known[base] for base in line.split(", ")))


class Recording(PlainPeer):
    """Adds event handlers in its constructor; one of them raises SystemExit."""

    def __init__(self, name: str):
        super().__init__(name)
        self.received: list[str] = []
        self.add_event_handler("on_job_request", self._exit)
        self.add_event_handler("on_job_request", self._record)

    async def _exit(self, worker: Any, message: Any) -> None:
        raise SystemExit(1)

    async def _record(self, worker: Any, message: Any) -> None:
        self.received.append(message.job_id)
        await self.send_job_response(message.job_id, {"received": len(self.received)})

    @job(name="forget")
    async def forget(self, message: Any) -> None:
        self.remove_event_handler("on_job_request", self._exit)
        self.remove_event_handler("on_job_request", self._record)


class First(JobsMixin, Recording):
    pass


class Last(Recording, JobsMixin):
    pass


@pytest.mark.parametrize("make", [First, Last])
async def test_event_handlers_of_a_constructor_are_guarded_in_either_order(
    make: Callable[[str], Any], job_harness: JobHarness, job_log: list[Any]
):
    worker, requester = make("worker"), OurPeer("requester")
    await job_harness.start(worker, requester)

    async with requester.job("worker", timeout=50) as asked:
        pass
    async with requester.job("worker", name="forget", timeout=50):
        pass

    assert asked.response == {"received": 1}
    assert any("Recording._exit" in str(record) for record in job_log)
    assert not worker._event_handlers["on_job_request"].handlers
