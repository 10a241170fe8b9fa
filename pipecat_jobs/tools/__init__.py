"""Jobs as LLM tools: ``@job_tool`` for whole tools, ``tool_call()`` for hand-written ones."""
