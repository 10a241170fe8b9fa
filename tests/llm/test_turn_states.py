"""The states of an LLM turn, and which may follow which."""

import pytest

from pipecat_jobs._llm.turn import TRANSITIONS, Turn, TurnState
from pipecat_jobs.errors import LLMTurnError

WELL = [TurnState.ASKED, TurnState.RUNNING, TurnState.CALLING, TurnState.OWED]


def turn_in(state: TurnState) -> Turn:
    turn = Turn(awaited=True)
    if state is TurnState.STOPPED:
        turn.stop()
    turn.move(state)
    return turn


@pytest.mark.parametrize("after", TurnState)
@pytest.mark.parametrize("before", TurnState)
def test_a_turn_changes_its_state_only_as_the_table_allows(before: TurnState, after: TurnState):
    turn = turn_in(before)

    if after is before or after in TRANSITIONS[before]:
        turn.move(after)
        assert turn.state is after
    else:
        with pytest.raises(AssertionError, match="a turn went from"):
            turn.move(after)
        assert turn.state is before


@pytest.mark.parametrize("state", WELL)
def test_a_turn_that_fails_is_stopped_and_never_runs_again(state: TurnState):
    turn = turn_in(state)
    turn.fail(LLMTurnError("debater", "the provider is out of order"))

    assert turn.state is TurnState.STOPPING
    assert not TRANSITIONS[turn.state] & set(WELL)
    turn.close()
    assert turn.state is TurnState.STOPPED


@pytest.mark.parametrize("state", WELL)
def test_a_turn_that_is_closed_without_a_failure_is_done(state: TurnState):
    turn = turn_in(state)
    turn.close()

    assert turn.state is TurnState.DONE
    turn.stop()
    turn.close()
    assert turn.state is TurnState.DONE
