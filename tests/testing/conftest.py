from pipecat_jobs.testing.fixtures import job_harness

# The tests of this folder use the public fixture that a bot builder gets.
__all__ = ["job_harness"]
