"""The few lines that need more of Pipecat than its public surface, all of them in this folder.

Each function has a test in ``tests/pipecat/`` that runs on every supported
release, so that a release that changes an internal fails there and is followed here alone.
"""

from pipecat_jobs._pipecat.events import (
    call_event_handlers,
    has_event_handlers,
    start_event_handlers,
)
from pipecat_jobs._pipecat.llm import (
    cancel_function_call,
    forgo_owed_run,
    function_call_timeout,
    is_speech_to_speech,
    owes_run,
    take_queued_function_calls,
    takes_messages,
)
from pipecat_jobs._pipecat.providers import ProviderKind, find_provider
from pipecat_jobs._pipecat.proxies import proxied_name, proxy_connection
from pipecat_jobs._pipecat.workers import forget_runner, has_ended, unwatch

__all__ = [
    "ProviderKind",
    "call_event_handlers",
    "cancel_function_call",
    "find_provider",
    "forget_runner",
    "forgo_owed_run",
    "function_call_timeout",
    "has_ended",
    "has_event_handlers",
    "is_speech_to_speech",
    "owes_run",
    "proxied_name",
    "proxy_connection",
    "start_event_handlers",
    "take_queued_function_calls",
    "takes_messages",
    "unwatch",
]
