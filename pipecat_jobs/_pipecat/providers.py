"""The provider's SDK behind an LLM service."""

from enum import Enum
from typing import Any

from pipecat.services.llm_service import LLMService

from pipecat_jobs._pipecat.loaded import is_of_loaded_class


class ProviderKind(Enum):
    """The SDKs whose streams this package can read, by the Pipecat service that uses each."""

    OPENAI_CHAT = ("pipecat.services.openai.base_llm", "BaseOpenAILLMService")
    OPENAI_RESPONSES = ("pipecat.services.openai.responses.llm", "_BaseOpenAIResponsesLLMService")
    ANTHROPIC = ("pipecat.services.anthropic.llm", "AnthropicLLMService")
    GOOGLE = ("pipecat.services.google.llm", "GoogleLLMService")


def find_provider(llm: LLMService[Any]) -> tuple[ProviderKind, Any] | None:
    """Find the SDK of a service and the SDK's client; None for a service of another kind."""
    for kind in ProviderKind:
        if is_of_loaded_class(llm, *kind.value):
            client: object = getattr(llm, "_client", None)
            return None if client is None else (kind, client)
    return None
