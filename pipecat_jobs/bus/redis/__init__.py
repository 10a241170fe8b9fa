"""Jobs across processes and machines, on Redis Streams: ``pip install "pipecat-jobs[redis]"``."""

from pipecat_jobs.bus.redis.embedded import EmbeddedRedis
from pipecat_jobs.bus.redis.sigterm import drain_on_sigterm
from pipecat_jobs.bus.redis.stats import BusStats
from pipecat_jobs.bus.redis.streams import RedisStreamsBus

__all__ = ["BusStats", "EmbeddedRedis", "RedisStreamsBus", "drain_on_sigterm"]
