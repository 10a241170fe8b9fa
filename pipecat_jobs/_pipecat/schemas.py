"""Pipecat's tool schemas, which are in different modules in different releases."""

try:
    from pipecat.adapters.llm.schemas.direct_function import DirectFunctionWrapper, tool_options
    from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
    from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
except ModuleNotFoundError:  # Pipecat 1.13 and older.
    from pipecat.adapters.schemas.direct_function import DirectFunctionWrapper, tool_options
    from pipecat.adapters.schemas.function_schema import FunctionSchema
    from pipecat.adapters.schemas.tools_schema import ToolsSchema

__all__ = ["DirectFunctionWrapper", "FunctionSchema", "ToolsSchema", "tool_options"]
