"""Every option is checked where it is given; errors name the option, its value and the fix."""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipecat.pipeline.job_decorator import job as pipecats_job
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, InvalidJobError, InvalidJobTypeError, Retry, job, job_tool
from pipecat_jobs._protocol.checks import MOST_SECONDS
from pipecat_jobs._protocol.handlers import find_limits
from pipecat_jobs._protocol.text import MOST_TEXT, describe, shorten
from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus, drain_on_sigterm
from pipecat_jobs.bus.wire import WireCodec
from pipecat_jobs.testing import ChaosBus, Faults, JobHarness, ScriptedLLMServer

HUGE = 10**400
HALF_A_PAIR = "\ud800"


def bus(**options: Any) -> RedisStreamsBus:
    return RedisStreamsBus("redis://nowhere", **options)


def named(**options: Any) -> Any:
    return job(name="x", **options)


def tool_of(**options: Any) -> Any:
    return job_tool("worker", **options)


def ask(**options: Any) -> Any:
    return BaseWorker("w").job("other", **options)


def ask_group(**options: Any) -> Any:
    return BaseWorker("w").job_group("a", "b", **options)


def repeat(**options: Any) -> Any:
    return Retry(**options)


WRONG_TYPES: list[tuple[Callable[..., Any], str, Any]] = [
    (ask, "timeout", "30"),
    (ask, "run_once", "False"),
    (ask, "run_once", 1),
    (ask, "retry", 3),
    (ask, "retry", Retry),
    (ask, "hedge_after", "1"),
    (ask, "ready_within", True),
    (ask, "metadata", [("a", 1)]),
    (ask, "metadata", {1: 2}),
    (ask_group, "need", 1.5),
    (ask_group, "need", True),
    (ask_group, "partial_after", "1"),
    (ask_group, "payloads", {"a": {}, "b": None}),
    (repeat, "on", ValueError),
    (repeat, "attempts", 2.0),
    (named, "key", ["ship"]),
    (tool_of, "retry", 3),
    (named, "run_once", "False"),
    (named, "sequential", "no"),
    (named, "sequential", 0),
    (named, "max_concurrency", "3"),
    (named, "max_concurrency", True),
    (named, "max_concurrency", 1.5),
    (job, "name", 7),
    (tool_of, "timeout", "30"),
    (tool_of, "run_once", "False"),
    (tool_of, "say_after", "1"),
    (tool_of, "render", "text"),
    (tool_of, "label", 7),
    (bus, "lease", "1"),
    (bus, "takeover", None),
    (bus, "start_timeout", True),
    (bus, "room", 1.5),
    (bus, "channel", 5),
    (bus, "through_server", "no"),
    (bus, "secret", 5),
    (bus, "secret", ["k"]),
    (bus, "secret", bytearray(b"k")),
    (bus, "adapters", {"x": 1}),
    (bus, "adapters", {str: 1}),
    (bus, "adapters", [1]),
    (bus, "types", 5),
    (bus, "types", ["Place"]),
    (bus, "max_message_bytes", "1"),
    (RedisStreamsBus, "url_or_client", 5),
    (EmbeddedRedis, "folder", "text"),
    (EmbeddedRedis, "start_timeout", "5"),
    (EmbeddedRedis, "port", "6379"),
    (EmbeddedRedis, "persistent", "no"),
    (EmbeddedRedis, "executable", Path("/bin/redis-server")),
    (WireCodec, "max_bytes", "1"),
    (JobHarness, "timeout", "5"),
    (JobHarness, "check_watches", "no"),
    (JobHarness, "bus", 5),
    (ScriptedLLMServer, "port", "80"),
    (Faults, "drop", "0.5"),
    (ChaosBus, "record", "no"),
]


@pytest.mark.parametrize(("door", "option", "value"), WRONG_TYPES)
def test_an_option_of_the_wrong_type_is_refused_where_it_is_given(
    door: Callable[..., Any], option: str, value: Any
):
    with pytest.raises(InvalidJobTypeError) as caught:
        door(**{option: value})
    said = str(caught.value)
    assert option in said or option == "url_or_client"
    assert "give" in said


WRONG_VALUES: list[tuple[Callable[..., Any], str, Any]] = [
    (ask, "timeout", HUGE),
    (ask, "timeout", -1),
    (ask, "timeout", math.nan),
    (ask, "unread_limit", HUGE),
    (ask, "hedge_after", 0),
    (ask, "hedge_after", math.nan),
    (ask, "hedge_after", math.inf),
    (ask, "ready_within", HUGE),
    (ask, "ready_within", -1),
    (ask_group, "need", 0),
    (ask_group, "need", 3),
    (ask_group, "need", "some"),
    (ask_group, "partial_after", 0),
    (ask_group, "partial_after", math.inf),
    (ask_group, "payloads", {"a": {}, "c": {}}),
    (repeat, "attempts", HUGE),
    (repeat, "wait_initial", math.inf),
    (named, "key", ()),
    (named, "on_busy", "wait"),
    (tool_of, "on_repeat", "confirmed"),
    (named, "max_concurrency", 0),
    (named, "max_concurrency", HUGE),
    (job, "name", ""),
    (tool_of, "timeout", HUGE),
    (tool_of, "timeout", 0),
    (tool_of, "say_after", math.inf),
    (bus, "lease", 1e308),
    (bus, "lease", HUGE),
    (bus, "lease", math.nan),
    (bus, "takeover", 0),
    (bus, "start_timeout", math.inf),
    (bus, "room", HUGE),
    (bus, "max_attempts", 0),
    (bus, "channel", ""),
    (bus, "channel", HALF_A_PAIR),
    (bus, "secret", ""),
    (bus, "secret", HALF_A_PAIR),
    (EmbeddedRedis, "port", 0),
    (EmbeddedRedis, "port", 65_536),
    (EmbeddedRedis, "start_timeout", -1),
    (EmbeddedRedis, "executable", ""),
    (JobHarness, "timeout", 0),
    (ScriptedLLMServer, "port", -1),
    (Faults, "drop", 1.5),
    (Faults, "max_delay", -1),
]


@pytest.mark.parametrize(("door", "option", "value"), WRONG_VALUES)
def test_an_option_out_of_range_is_refused_in_a_short_sentence(
    door: Callable[..., Any], option: str, value: Any
):
    with pytest.raises(InvalidJobError) as caught:
        door(**{option: value})
    said = str(caught.value)
    assert not isinstance(caught.value, UnicodeError | TypeError)
    assert option in said
    assert len(said) < 2 * MOST_TEXT


@pytest.mark.parametrize("timeout", ["30", math.nan, -1, HUGE, object(), True])
async def test_a_bad_drain_timeout_is_refused_before_sigterm_arrives(timeout: Any):
    runner = WorkerRunner(bus=bus(), handle_sigint=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InvalidJobError, match="timeout is"):
        drain_on_sigterm(runner, timeout=timeout)
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(InvalidJobError, match="timeout is"):
        await bus().drain(timeout)


async def test_sigterm_needs_a_runner_on_a_bus_that_drains():
    with pytest.raises(InvalidJobTypeError, match="give the WorkerRunner"):
        drain_on_sigterm("runner")  # type: ignore[arg-type]
    with pytest.raises(InvalidJobTypeError, match="give one on a RedisStreamsBus"):
        drain_on_sigterm(WorkerRunner(handle_sigint=False))


def test_a_secret_is_never_in_the_error_about_it():
    for secret in (["the secret"], "the secret" + HALF_A_PAIR):
        with pytest.raises(InvalidJobError) as caught:
            bus(secret=secret)
        assert "the secret" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("retry", 3),
        ("hedge_after", -1),
        ("ready_within", "1"),
        ("metadata", 3),
        ("label", ""),
        ("need", "some"),
        ("partial_after", math.nan),
        ("payloads", {"a": {}}),
    ],
)
async def test_each_way_to_ask_refuses_an_option_in_the_same_words(option: str, value: Any):
    worker, options = BaseWorker("w"), {option: value}
    said = set[str]()
    with pytest.raises(InvalidJobError) as caught:
        worker.job_group("a", "b", **options)
    said.add(str(caught.value))
    with pytest.raises(InvalidJobError) as caught:
        await worker.request_job_group("a", "b", **options)
    said.add(str(caught.value))
    with pytest.raises(InvalidJobError) as caught:
        await worker.create_job_group_and_request_job(["a", "b"], **options)
    said.add(str(caught.value))
    if option not in ("need", "partial_after", "payloads"):
        with pytest.raises(InvalidJobError) as caught:
            worker.job("a", **options)
        said.add(str(caught.value))
        with pytest.raises(InvalidJobError) as caught:
            await worker.request_job("a", **options)
        said.add(str(caught.value))
    assert len(said) == 1


@pytest.mark.filterwarnings("ignore:the job for .* was never requested")
def test_allowed_values_are_accepted():
    ask(timeout=0)
    ask(timeout=math.inf)
    ask(timeout=None, run_once=None)
    ask(timeout=1e300)
    bus(lease=MOST_SECONDS, secret=b"k", types=iter(()), adapters={})
    EmbeddedRedis(folder=Path("here"), port=6379)


# -- limits of concurrency ------------------------------------------------------------------------


def test_sequential_and_max_concurrency_together_are_refused():
    with pytest.raises(InvalidJobError, match=r"max_concurrency=3 allows more; give one of them"):
        job(name="x", sequential=True, max_concurrency=3)
    with pytest.raises(InvalidJobError, match="give one of them"):
        job(name="x", sequential=True, max_concurrency=1)


def test_the_limits_of_pipecats_handlers_are_also_found():
    class Mixed(BaseWorker):
        job_request_concurrency = 3

        @pipecats_job(name="plain", sequential=True)
        async def plain(self, message: Any) -> None: ...

        @job(name="ours", max_concurrency=2)
        async def ours(self, message: Any) -> None: ...

        @job(name="free")
        async def free(self, message: Any) -> None: ...

    limits = {
        name: (each.size, each.until_response) for name, each in find_limits(Mixed("m")).items()
    }
    assert limits == {None: (3, True), "plain": (1, False), "ours": (2, True)}


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("job_request_concurrency", 0),
        ("job_request_concurrency", "many"),
        ("job_request_concurrency", True),
        ("job_cancel_grace", "1"),
        ("job_cancel_grace", -1),
        ("job_cancel_grace", math.nan),
    ],
)
def test_an_attribute_of_a_class_is_checked_when_a_worker_is_made(attribute: str, value: Any):
    odd = type("Odd", (BaseWorker,), {attribute: value})
    with pytest.raises(InvalidJobError, match=rf"Odd\.{attribute} is "):
        odd("odd")


# -- values of users as text ----------------------------------------------------------------------


class Unwritable:
    def __repr__(self) -> str:
        raise ValueError("no")

    __str__ = __repr__


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, b"x" * 10**6, list(range(10**6)), HUGE**20, {"a": "b" * 10**6}],
    ids=["str", "bytes", "list", "int", "dict"],
)
def test_a_long_value_is_shortened(value: Any):
    assert len(shorten(value)) <= MOST_TEXT + 3


def test_a_value_that_holds_the_same_one_many_times_is_shortened_quickly():
    value: Any = "x"
    for _ in range(50):
        value = [value] * 20
    before = time.thread_time()
    assert len(shorten({"key": value})) <= MOST_TEXT + 3
    assert time.thread_time() - before < 1


def test_a_value_that_cannot_be_written_is_named_by_its_type():
    assert shorten(Unwritable()).startswith("<Unwritable ")
    assert describe(Unwritable()) == "<Unwritable that cannot be written as text>"  # type: ignore[arg-type]
    with pytest.raises(InvalidJobTypeError, match="label is <Unwritable "):
        ask(label=Unwritable())
