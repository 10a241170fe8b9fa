"""How many random schedules a test plays: ``pytest --schedules 20`` plays 20 times as many."""

from hypothesis import HealthCheck, settings

#: The factor that `play_more()` was called with.
_times = 1


def play_more(times: int) -> None:
    """Play the same schedules in each run, or many times as many, with new ones in each run.

    Health checks and deadlines are off: they fail on a machine that is busy with something else.
    """
    global _times
    _times = times
    settings.register_profile(
        "here",
        max_examples=100 * times,
        derandomize=times == 1,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("here")


def schedules(count: int) -> settings:
    """Have a test play this many schedules, times the factor of `play_more()`."""
    return settings(max_examples=count * _times)


def time_for_schedules() -> float:
    """How many seconds a test of schedules may take."""
    return 300.0 * _times
