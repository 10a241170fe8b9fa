"""Tools to test bots that use jobs: ``pip install "pipecat-jobs[testing]"``.

A scripted LLM provider over real HTTP, a bus that delays or loses messages by rule or by seed, an
event loop whose clock jumps, and a harness that starts workers and checks that nothing is left of
their jobs. The pytest fixtures are in :mod:`pipecat_jobs.testing.fixtures`.
"""

from pipecat_jobs._extras import name_extra

try:
    from pipecat_jobs.testing.chaos_bus import ChaosBus
    from pipecat_jobs.testing.chaos_rules import BlockedPublish, Faults, Held, Rule
    from pipecat_jobs.testing.harness import JobHarness, LeftBehindError
    from pipecat_jobs.testing.job_mock import JobMock
    from pipecat_jobs.testing.llm_request import LLMRequest
    from pipecat_jobs.testing.llm_script import (
        Disconnect,
        Failure,
        Reply,
        Stall,
        Text,
        ToolCall,
        ToolCalls,
    )
    from pipecat_jobs.testing.llm_server import ScriptedLLMServer
    from pipecat_jobs.testing.virtual_time import VirtualDeadlockError, VirtualTimeLoop, run_virtual
except ModuleNotFoundError as error:
    name_extra(error, ("aiohttp",), "testing")
    raise

__all__ = [
    "BlockedPublish",
    "ChaosBus",
    "Disconnect",
    "Failure",
    "Faults",
    "Held",
    "JobHarness",
    "JobMock",
    "LLMRequest",
    "LeftBehindError",
    "Reply",
    "Rule",
    "ScriptedLLMServer",
    "Stall",
    "Text",
    "ToolCall",
    "ToolCalls",
    "VirtualDeadlockError",
    "VirtualTimeLoop",
    "run_virtual",
]
