"""Examples of pipecat-jobs."""
