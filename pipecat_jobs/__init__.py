"""Jobs for Pipecat voice agents that always end."""

from pipecat.pipeline.job_context import JobEvent, JobGroupEvent, JobGroupResponse, JobStatus
from pipecat.workers.llm import tool

from pipecat_jobs._version import __version__
from pipecat_jobs.attempts import job_attempt, job_moved
from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.contexts import JobContext, JobGroupContext
from pipecat_jobs.errors import (
    BusFullError,
    BusUnavailableError,
    DuplicateJobHandlerError,
    DuplicateWorkerError,
    InvalidJobError,
    InvalidJobTypeError,
    JobCancelledError,
    JobError,
    JobGroupError,
    JobRefusedError,
    JobTimeoutError,
    LLMTurnError,
    LLMTurnInterruptedError,
    LLMTurnTimeoutError,
    MessageTooLargeError,
    MessageTypeError,
    NoJobHandlerError,
    RedisModeError,
    RedisStartError,
    UnknownJobError,
    WorkerLostError,
    WorkerNotAddedError,
    WorkerNotReadyError,
)
from pipecat_jobs.groups import JobGroup
from pipecat_jobs.handlers import job
from pipecat_jobs.mixin import JobsMixin
from pipecat_jobs.outcomes import (
    CancelReason,
    ErrorDetails,
    JobOutcome,
    JobRefusal,
    JobToolError,
    OutcomeStatus,
)
from pipecat_jobs.params import JobGroupParams, JobParams
from pipecat_jobs.tools.call import ToolCallContext, tool_call
from pipecat_jobs.tools.decorator import job_tool
from pipecat_jobs.tools.progress import JobToolProgress
from pipecat_jobs.tools.tool import JobTool
from pipecat_jobs.workers import BaseWorker, LLMContextWorker, LLMWorker, PipelineWorker

__all__ = [
    "BaseWorker",
    "BusFullError",
    "BusUnavailableError",
    "CancelReason",
    "DuplicateJobHandlerError",
    "DuplicateWorkerError",
    "ErrorDetails",
    "InvalidJobError",
    "InvalidJobTypeError",
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
    "JobOutcome",
    "JobParams",
    "JobRefusal",
    "JobRefusedError",
    "JobStatus",
    "JobTimeoutError",
    "JobTool",
    "JobToolError",
    "JobToolProgress",
    "JobsMixin",
    "LLMContextWorker",
    "LLMTurnError",
    "LLMTurnInterruptedError",
    "LLMTurnTimeoutError",
    "LLMWorker",
    "MessageTooLargeError",
    "MessageTypeError",
    "NoJobHandlerError",
    "OutcomeStatus",
    "PipelineWorker",
    "RedisModeError",
    "RedisStartError",
    "RoutedBus",
    "ToolCallContext",
    "UnknownJobError",
    "WorkerLostError",
    "WorkerNotAddedError",
    "WorkerNotReadyError",
    "__version__",
    "job",
    "job_attempt",
    "job_moved",
    "job_tool",
    "tool",
    "tool_call",
]
