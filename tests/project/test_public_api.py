"""The public names are a promise: adding one is a decision, losing one breaks a bot."""

import subprocess
import sys
import warnings
from importlib.metadata import distribution
from pathlib import Path

import pipecat.pipeline.job_context as pipecat_jobs_of_pipecat
import pytest
from pipecat.pipeline.worker import PipelineParams, ProcessorUnusablePolicy
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.workers.base_ui_worker import BaseUIWorker as PipecatBaseUIWorker
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.llm import LLMContextWorker as PipecatLLMContextWorker
from pipecat.workers.llm import LLMWorker as PipecatLLMWorker
from pipecat.workers.llm import LLMWorkerActivationArgs
from pipecat.workers.llm import tool as pipecat_tool
from pipecat.workers.ui import UIWorker as PipecatUIWorker

import pipecat_jobs
import pipecat_jobs.testing

PACKAGE = Path(pipecat_jobs.__file__).parent

NAMES = """
    BaseUIWorker BaseWorker BusFullError BusUnavailableError CancelReason ClientJobs
    DuplicateJobHandlerError DuplicateWorkerError ErrorDetails Floor FloorHolder InvalidJobError
    InvalidJobResponseError InvalidJobTypeError JobCall JobCancelledError JobContext JobError
    JobEvent JobGroup JobGroupContext JobGroupError JobGroupEvent JobGroupParams JobGroupResponse
    JobHeaders JobInterceptor JobLifeEvent JobLifeEventKind JobNotEndedError JobOutcome JobParams
    JobQuestion JobQuestionError JobRefusal JobRefusedError JobRequest JobStatus JobSteer
    JobTimeoutError JobTool JobToolError JobToolProgress JobsMixin LLMContextWorker LLMTurn
    LLMTurnError LLMTurnInterruptedError LLMTurnTimeoutError LLMWorker LLMWorkerActivationArgs
    MessageTooLargeError MessageTypeError MixinOrderError NoJobHandlerError OpenJob OpenJobState
    OutcomeStatus PipelineParams PipelineWorker ProcessorUnusablePolicy Receipt RedisModeError
    RedisStartError ReportChange ReportState Retry RoutedBus SteerOutcome ToolCallContext UIWorker
    UnknownJobError WorkerLostError WorkerNotAddedError WorkerNotReadyError __version__ cancel_job
    job job_attempt job_deadline job_headers job_moved job_steers job_tool list_jobs tool
    tool_call
""".split()

TESTING_NAMES = """
    BlockedPublish ChaosBus Disconnect Failure Faults Held JobHarness JobMock LLMRequest
    LeftBehindError Reply Rule ScriptedLLMServer Stall Text ToolCall ToolCalls
    VirtualDeadlockError VirtualTimeLoop run_virtual
""".split()


@pytest.mark.parametrize(
    ("module", "names"), [(pipecat_jobs, NAMES), (pipecat_jobs.testing, TESTING_NAMES)]
)
def test_public_names_are_frozen(module, names: list[str]):
    assert module.__all__ == sorted(module.__all__)
    assert set(module.__all__) == set(names)
    assert all(hasattr(module, name) for name in names)


def test_names_of_pipecat_are_pipecats_own_objects():
    assert pipecat_jobs.JobStatus is pipecat_jobs_of_pipecat.JobStatus
    assert pipecat_jobs.JobEvent is pipecat_jobs_of_pipecat.JobEvent
    assert pipecat_jobs.JobGroupEvent is pipecat_jobs_of_pipecat.JobGroupEvent
    assert pipecat_jobs.tool is pipecat_tool
    assert pipecat_jobs.LLMWorkerActivationArgs is LLMWorkerActivationArgs
    assert pipecat_jobs.PipelineParams is PipelineParams
    assert pipecat_jobs.ProcessorUnusablePolicy is ProcessorUnusablePolicy
    for name in ("JobError", "JobGroupError", "JobParams", "JobGroupParams", "JobGroup"):
        assert issubclass(getattr(pipecat_jobs, name), getattr(pipecat_jobs_of_pipecat, name))
    for status in pipecat_jobs.JobStatus:
        assert pipecat_jobs.OutcomeStatus(status) == status


#: Our workers and Pipecat's of the same name.
WORKERS = {
    pipecat_jobs.BaseWorker: PipecatBaseWorker,
    pipecat_jobs.PipelineWorker: PipecatPipelineWorker,
    pipecat_jobs.LLMWorker: PipecatLLMWorker,
    pipecat_jobs.LLMContextWorker: PipecatLLMContextWorker,
    pipecat_jobs.UIWorker: PipecatUIWorker,
    pipecat_jobs.BaseUIWorker: PipecatBaseUIWorker,
}


@pytest.mark.parametrize(("ours", "pipecats"), WORKERS.items())
def test_our_workers_are_pipecats_with_only_the_mixin_added_above_base_worker(ours, pipecats):
    assert issubclass(ours, pipecats)
    order = ours.__mro__
    mixin = order[order.index(pipecat_jobs.JobsMixin) : order.index(PipecatBaseWorker)]
    assert all(part.__module__.startswith("pipecat_jobs.") for part in mixin)


@pytest.mark.parametrize(("ours", "pipecats"), WORKERS.items())
def test_our_workers_are_instances_of_the_same_classes_as_pipecats(ours, pipecats):
    # Pipecat 1.8's UIWorker is also a BaseUIWorker, the later ones are not.
    for other_ours, other_pipecats in WORKERS.items():
        if other_ours is not pipecat_jobs.BaseUIWorker:
            assert issubclass(ours, other_ours) == issubclass(pipecats, other_pipecats)


def test_importing_a_deprecated_worker_does_not_warn():
    code = (
        "import sys; import pipecat_jobs; assert 'pipecat_jobs._llm.ui' not in sys.modules; "
        "import warnings; import pipecat.workers.ui; warnings.simplefilter('error'); "
        "from pipecat_jobs import BaseUIWorker; BaseUIWorker('w')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_subclassing_a_deprecated_worker_warns_as_pipecats_does():
    def count_warnings(base: type) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            type(base)("Mine", (base,), {})
        return len(caught)

    assert count_warnings(pipecat_jobs.BaseUIWorker) == count_warnings(PipecatBaseUIWorker)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'UIWorkers'"):
        pipecat_jobs.UIWorkers  # noqa: B018


def test_the_distribution_declares_its_dependencies():
    metadata = distribution("pipecat-jobs").metadata
    assert metadata["License-Expression"] == "BSD-2-Clause"
    requirements = distribution("pipecat-jobs").requires or []
    assert any(r.startswith("pipecat-ai") and ">=1.8" in r and "<2" in r for r in requirements)
    assert pipecat_jobs.__version__ == distribution("pipecat-jobs").version
    assert (PACKAGE / "py.typed").is_file()


def test_importing_the_package_imports_nothing_optional():
    code = (
        "import sys; import pipecat_jobs; "
        "print([m for m in ('aiohttp.web', 'pytest', 'redis', 'rich', 'pipecat_jobs.testing',"
        " 'pipecat.workers.ui', 'pipecat.workers.proxy.websocket.client') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "[]"
