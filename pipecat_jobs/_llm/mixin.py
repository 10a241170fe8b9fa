"""The mixin for worker classes of a bot builder's own."""

from typing import Any, ClassVar

from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.llm import LLMContextWorker

from pipecat_jobs._llm.ownership import check_tools
from pipecat_jobs._llm.turns import LLMTurns
from pipecat_jobs._llm.watch import watch_llms
from pipecat_jobs._worker.mixin import TurnFailed, Turns, WorkerJobs


class JobsMixin(WorkerJobs):
    """Gives any Pipecat worker jobs that always end.

    Mix it into a worker class of your own; :mod:`pipecat_jobs.workers` has Pipecat's four with it
    on. It replaces the job system of :class:`~pipecat.workers.base_worker.BaseWorker` behind the
    same methods, hooks and bus messages, so that peers without it are asked and answered as well.

    Class attributes to set in a subclass:

    - ``takes_jobs_when_inactive`` (True): whether jobs are taken while another worker holds the
      conversation. When False, an inactive worker refuses them at once.
    - ``job_request_concurrency`` ("auto"): how many jobs of ``on_job_request``, the override and
      the event handlers, may be open at once, None for any number; more wait in order of arrival.
      "auto" is one for a worker that owns an LLM context, since one context holds one turn and the
      answer of a second job would be taken for the first's, and any number for the others.
    - ``job_affinity`` ("auto"): which jobs run in the same process, on a bus that spans processes
      of which several host the worker. "requester": all jobs of one requester, while that process
      lives. "prefer": the same, but a job goes elsewhere rather than wait for a free slot. None:
      each goes where there is room. "auto" is "requester" for a ``BackendLLMWorker``, "prefer" for
      every other worker that owns an LLM context, and None for the rest. A handler asks
      :func:`~pipecat_jobs.job_moved` whether what it remembers is elsewhere.
    - ``job_cancel_grace`` (1.0): seconds a cancelled handler gets to clean up before its job ends
      without it.

    Example::

        class Mine(JobsMixin, SomeWorker):
            @job(name="look_up")
            async def look_up(self, message):
                return {"found": message.payload["word"]}
    """

    _is_jobs_mixin: ClassVar[bool] = True
    _llm_turns: LLMTurns | None = None

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_tools(cls)

    async def start(self) -> None:
        """Follow the function calls of the worker's LLMs, then start."""
        if isinstance(self, PipelineWorker):
            watch_llms(self.pipeline)
        await super().start()

    def _make_turns(self, on_failure: TurnFailed) -> Turns | None:
        if isinstance(self, LLMContextWorker):
            self._llm_turns = LLMTurns(self, on_failure)
        return self._llm_turns
