"""How a group is asked for, on its way to the group."""

from dataclasses import dataclass

from pydantic import PrivateAttr

from pipecat_jobs._requester.policy import Policy
from pipecat_jobs.params import CheckedParams, JobGroupParams


@dataclass(slots=True)
class Call:
    """How a group is asked for.

    Parameters:
        params: Its parameters.
        single: Whether one worker is asked on its own, with ``job()``.
        keeps_events: Whether its events are kept until ``async for`` reads them.
        policy: Decides how the group stands; None for what ``cancel_on_error`` says.
    """

    params: CheckedParams
    single: bool = False
    keeps_events: bool = False
    policy: Policy | None = None


@dataclass(slots=True)
class Dispatch:
    """A call that passes through a worker's own ``create_job_group_and_request_job()``.

    Parameters:
        call: The call.
        job_id: The id of the group that it has made; None while it has made none.
    """

    call: Call
    job_id: str | None = None


class DispatchedParams(JobGroupParams):
    """What the worker's own method is given. It may change them, or hand on a copy."""

    _dispatch: Dispatch = PrivateAttr()

    @classmethod
    def carry(cls, dispatch: Dispatch) -> "DispatchedParams":
        """Make the parameters of a call that carry what Pipecat's have no fields for."""
        params = dispatch.call.params.to_model(cls)
        params._dispatch = dispatch
        return params

    @property
    def dispatch(self) -> Dispatch:
        """The call they belong to."""
        return self._dispatch
