"""Jobs across processes and machines, on Redis Streams: ``pip install "pipecat-jobs[redis]"``."""

from pipecat_jobs.bus.redis.embedded import EmbeddedRedis

__all__ = ["EmbeddedRedis"]
