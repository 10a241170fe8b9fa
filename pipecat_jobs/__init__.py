"""Jobs that always end, for Pipecat voice agents."""

from typing import TYPE_CHECKING

from pipecat.pipeline.job_context import JobEvent, JobGroupEvent, JobGroupResponse, JobStatus
from pipecat.pipeline.worker import PipelineParams, ProcessorUnusablePolicy
from pipecat.workers.llm import LLMWorkerActivationArgs, tool

from pipecat_jobs._executor.exchange import job_steers
from pipecat_jobs._llm.mixin import JobsMixin
from pipecat_jobs._llm.result import LLMTurn
from pipecat_jobs._protocol.deadline import job_deadline
from pipecat_jobs._protocol.handlers import job
from pipecat_jobs._protocol.headers import JobHeaders, job_attempt, job_headers, job_moved
from pipecat_jobs._protocol.requests import JobRequest
from pipecat_jobs._requester.group import JobGroup
from pipecat_jobs._requester.scopes import JobContext, JobGroupContext
from pipecat_jobs._version import __version__
from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.client.jobs import ClientJobs
from pipecat_jobs.conversation import Floor, FloorHolder, Receipt, ReportChange, ReportState
from pipecat_jobs.errors import (
    BusFullError,
    BusUnavailableError,
    DuplicateJobHandlerError,
    DuplicateWorkerError,
    InvalidJobError,
    InvalidJobResponseError,
    InvalidJobTypeError,
    JobCancelledError,
    JobError,
    JobGroupError,
    JobNotEndedError,
    JobQuestionError,
    JobRefusedError,
    JobTimeoutError,
    LLMTurnError,
    LLMTurnInterruptedError,
    LLMTurnTimeoutError,
    MessageTooLargeError,
    MessageTypeError,
    MixinOrderError,
    NoJobHandlerError,
    RedisModeError,
    RedisStartError,
    UnknownJobError,
    WorkerLostError,
    WorkerNotAddedError,
    WorkerNotReadyError,
)
from pipecat_jobs.interceptors import (
    JobCall,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
)
from pipecat_jobs.open_jobs import OpenJob, OpenJobState
from pipecat_jobs.outcomes import (
    CancelReason,
    ErrorDetails,
    JobOutcome,
    JobRefusal,
    JobToolError,
    OutcomeStatus,
)
from pipecat_jobs.params import JobGroupParams, JobParams
from pipecat_jobs.questions import JobQuestion
from pipecat_jobs.retry import Retry
from pipecat_jobs.steering import JobSteer, SteerOutcome
from pipecat_jobs.tools.call import ToolCallContext, tool_call
from pipecat_jobs.tools.decorator import job_tool
from pipecat_jobs.tools.open_jobs import cancel_job, list_jobs
from pipecat_jobs.tools.progress import JobToolProgress
from pipecat_jobs.tools.tool import JobTool
from pipecat_jobs.workers import BaseWorker, LLMContextWorker, LLMWorker, PipelineWorker

if TYPE_CHECKING:
    from pipecat_jobs._llm.ui import BaseUIWorker, UIWorker
else:

    def __getattr__(name: str) -> object:
        # Importing Pipecat's UI workers takes longer than the rest, and most bots do not use them.
        if name in ("BaseUIWorker", "UIWorker"):
            from pipecat_jobs._llm import ui

            return getattr(ui, name)
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


__all__ = [
    "BaseUIWorker",
    "BaseWorker",
    "BusFullError",
    "BusUnavailableError",
    "CancelReason",
    "ClientJobs",
    "DuplicateJobHandlerError",
    "DuplicateWorkerError",
    "ErrorDetails",
    "Floor",
    "FloorHolder",
    "InvalidJobError",
    "InvalidJobResponseError",
    "InvalidJobTypeError",
    "JobCall",
    "JobCancelledError",
    "JobContext",
    "JobError",
    "JobEvent",
    "JobGroup",
    "JobGroupContext",
    "JobGroupError",
    "JobGroupEvent",
    "JobGroupParams",
    "JobGroupResponse",
    "JobHeaders",
    "JobInterceptor",
    "JobLifeEvent",
    "JobLifeEventKind",
    "JobNotEndedError",
    "JobOutcome",
    "JobParams",
    "JobQuestion",
    "JobQuestionError",
    "JobRefusal",
    "JobRefusedError",
    "JobRequest",
    "JobStatus",
    "JobSteer",
    "JobTimeoutError",
    "JobTool",
    "JobToolError",
    "JobToolProgress",
    "JobsMixin",
    "LLMContextWorker",
    "LLMTurn",
    "LLMTurnError",
    "LLMTurnInterruptedError",
    "LLMTurnTimeoutError",
    "LLMWorker",
    "LLMWorkerActivationArgs",
    "MessageTooLargeError",
    "MessageTypeError",
    "MixinOrderError",
    "NoJobHandlerError",
    "OpenJob",
    "OpenJobState",
    "OutcomeStatus",
    "PipelineParams",
    "PipelineWorker",
    "ProcessorUnusablePolicy",
    "Receipt",
    "RedisModeError",
    "RedisStartError",
    "ReportChange",
    "ReportState",
    "Retry",
    "RoutedBus",
    "SteerOutcome",
    "ToolCallContext",
    "UIWorker",
    "UnknownJobError",
    "WorkerLostError",
    "WorkerNotAddedError",
    "WorkerNotReadyError",
    "__version__",
    "cancel_job",
    "job",
    "job_attempt",
    "job_deadline",
    "job_headers",
    "job_moved",
    "job_steers",
    "job_tool",
    "list_jobs",
    "tool",
    "tool_call",
]
