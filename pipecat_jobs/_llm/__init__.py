"""Jobs that an LLM answers: the workers that own an LLM, and its turns."""
