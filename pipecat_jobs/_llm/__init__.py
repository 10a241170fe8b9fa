"""The workers that own an LLM, and the LLM turns that answer jobs."""
