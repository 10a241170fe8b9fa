"""``RedisStreamsBus``: the defaults of its options."""

import inspect
from itertools import islice

from pipecat_jobs.bus.redis import RedisStreamsBus
from pipecat_jobs.bus.redis import process as module


def test_a_dead_process_is_noticed_within_two_seconds():
    lease = inspect.signature(RedisStreamsBus).parameters["lease"].default
    # The next process that renews its own lease notices it.
    assert lease * (1 + 1 / module._RENEWALS) <= 2.0


def test_a_process_without_a_server_retries_with_growing_and_random_delays():
    delays = list(islice(iter(_each(module._Delays())), 20))
    for number, delay in enumerate(delays):
        longest = min(0.05 * 2**number, module._LONGEST_BACKOFF)
        assert longest / 2 <= delay <= longest
    assert delays != list(islice(iter(_each(module._Delays())), 20))


def _each(delays: module._Delays):
    while True:
        yield next(delays)
