"""Counters of a bus."""

from dataclasses import dataclass


@dataclass(slots=True)
class BusStats:
    """Counters of one process since it was started.

    Parameters:
        sent: Calls that the server has taken.
        received: Messages that came from the server.
        garbage: Messages that could not be read or were not signed with the secret.
        late_answers: Messages of this process about jobs that were no longer its own.
        reconnects: How often the server was away and came back.
        expulsions: How often this process was evicted and joined again.
        taken_over: Jobs that were begun here after another process was lost with them.
        lost: Jobs of this process that ended as lost.
    """

    sent: int = 0
    received: int = 0
    garbage: int = 0
    late_answers: int = 0
    reconnects: int = 0
    expulsions: int = 0
    taken_over: int = 0
    lost: int = 0
