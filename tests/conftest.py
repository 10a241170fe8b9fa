import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path

# Two things that are slow and that no test needs. Both are read while modules are imported, and
# the processes that tests start inherit them.
# The values of the variables in each logged traceback:
os.environ |= {"LOGURU_DIAGNOSE": "NO", "LOGURU_BACKTRACE": "NO"}
# More than a hundred authorities that each new HTTP client loads; one is enough on loopback:
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "support" / "authority.pem")

import onnxruntime
import pytest
import redis.utils
from loguru import _better_exceptions, logger
from openai import AsyncOpenAI
from pipecat.bus import WorkerBus
from support.buses import DEFAULT, EVERY, LOCAL, ON_SERVER, BusHarness, new_bus, server_of_a_session
from support.schedules import play_more

from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer

if "LOGURU_LEVEL" not in os.environ:
    # What Pipecat logs of each worker and frame takes long; LOGURU_LEVEL=DEBUG shows it. The
    # variable is not set here: the programs that tests start would inherit it.
    logger.remove()
    logger.add(sys.stderr, level="INFO")

# For the examples. The path is last, so that an installed pipecat_jobs is tested.
sys.path.append(str(Path(__file__).parent.parent))

pytest_plugins = ["pipecat_jobs.testing.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedules",
        type=int,
        default=1,
        metavar="TIMES",
        help="play this many times as many random schedules, others than the usual ones",
    )
    parser.addoption(
        "--buses",
        type=lambda names: names.split(","),
        help=f"run the tests that take a bus on these and no others: {','.join(EVERY)}",
    )


def pytest_configure(config: pytest.Config) -> None:
    play_more(config.getoption("schedules"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    definition = metafunc.definition
    only, every = metafunc.config.getoption("buses"), definition.get_closest_marker("every_bus")
    if only is None and every is None:
        return
    names = only or (*EVERY, *every.args)
    reasons = {
        name: marker.kwargs["reason"]
        for marker in definition.iter_markers("not_on")
        for name in marker.args
    }
    skips = {
        name: pytest.mark.skip(reason=f"not on {name}: {reason}")
        for name, reason in reasons.items()
    }
    for fixture, possible in (("bus_name", names), ("local_bus_name", LOCAL)):
        if fixture in metafunc.fixturenames:
            taken = [name for name in names if name in possible]
            metafunc.parametrize(
                fixture, [pytest.param(name, marks=skips.get(name, ())) for name in taken]
            )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"bus_name", "local_bus_name"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("on_bus")


def pytest_collection_finish() -> None:
    """Keep what collecting the tests has made out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def load_each_model_once() -> Iterator[None]:
    """Share the model with which each of Pipecat's context aggregators finds the end of a turn."""
    load_new = onnxruntime.InferenceSession
    loaded: dict[str, onnxruntime.InferenceSession] = {}

    def load(path: str, *more: object, **options: object) -> onnxruntime.InferenceSession:
        if path not in loaded:
            loaded[path] = load_new(path, *more, **options)
        return loaded[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", load)
        yield


@pytest.fixture(scope="session", autouse=True)
def look_up_once() -> Iterator[None]:
    """Keep what never changes, and is looked up for each new handler of logs or connection."""
    with pytest.MonkeyPatch.context() as patch:
        # Where Python's own modules lie: loguru asks sysconfig for a few milliseconds.
        patch.setattr(
            _better_exceptions.ExceptionFormatter,
            "_get_lib_dirs",
            staticmethod(cache(_better_exceptions.ExceptionFormatter._get_lib_dirs)),
        )
        # Which release of redis-py this is, from the metadata of its wheel.
        patch.setattr(redis.utils, "get_lib_version", cache(redis.utils.get_lib_version))
        yield


@pytest.fixture(scope="session")
def shared_server() -> Iterator[EmbeddedRedis]:
    """A Redis server shared by the tests of this process that neither stop it nor list its keys."""
    with server_of_a_session() as server:
        yield server


@pytest.fixture
def bus_name() -> str:
    return DEFAULT


@pytest.fixture
def bus_server(request: pytest.FixtureRequest, bus_name: str) -> str | None:
    """The URL of the server behind the bus of a test, if it needs one."""
    if bus_name in ON_SERVER:
        return request.getfixturevalue("shared_server").url
    return None


@pytest.fixture
async def bus(bus_name: str, bus_server: str | None) -> AsyncIterator[WorkerBus]:
    """The bus that a test runs on: see the markers ``every_bus`` and ``not_on``."""
    async with new_bus(bus_name, bus_server) as bus:
        yield bus


@pytest.fixture
def local_bus_name() -> str:
    return DEFAULT


@pytest.fixture
def new_local_bus(local_bus_name: str) -> Callable[[], WorkerBus]:
    """Makes the buses of a test that has its own event loop, such as that of virtual time."""
    return LOCAL[local_bus_name]


@pytest.fixture
async def job_harness(bus: WorkerBus) -> AsyncIterator[JobHarness]:
    async with BusHarness(bus) as harness:
        yield harness


@pytest.fixture(autouse=True)
def silence_schedules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Log nothing in a test of random schedules: it would be most of the work of a schedule."""
    if request.node.get_closest_marker("schedules") is None:
        yield
        return
    names = ("pipecat", "pipecat_jobs")
    for name in names:
        logger.disable(name)
    yield
    for name in names:
        logger.enable(name)


@pytest.fixture
async def server(scripted_llm: ScriptedLLMServer) -> ScriptedLLMServer:
    return scripted_llm


@pytest.fixture
async def client(server: ScriptedLLMServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="test", base_url=server.base_url) as client:
        yield client
