"""Jobs across processes and machines, on Redis Streams: ``pip install "pipecat-jobs[redis]"``."""

from pipecat_jobs._extras import name_extra

try:
    from pipecat_jobs.bus._distributed.engine import BusStats
    from pipecat_jobs.bus.redis.embedded import EmbeddedRedis
    from pipecat_jobs.bus.redis.sigterm import drain_on_sigterm
    from pipecat_jobs.bus.redis.streams import RedisStreamsBus
except ModuleNotFoundError as error:
    name_extra(error, ("redis",), "redis")
    raise

__all__ = ["BusStats", "EmbeddedRedis", "RedisStreamsBus", "drain_on_sigterm"]
