"""The mixin that gives jobs to any worker class."""

from typing import Any

from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.llm import LLMContextWorker

from pipecat_jobs._llm.ownership import check_tools
from pipecat_jobs._llm.turns import LLMTurns
from pipecat_jobs._llm.watch import watch_llms
from pipecat_jobs._worker.mixin import TurnFailed, Turns, WorkerJobs


class JobsMixin(WorkerJobs):
    """Gives any Pipecat worker jobs that always end.

    Name it last among the bases of a worker class of your own:
    :class:`~pipecat_jobs.MixinOrderError` refuses a class in which it would hide what another base
    extends. Where Pipecat's ``BaseWorker`` is the only other base, leave that out: it is a base of
    the mixin. :mod:`pipecat_jobs.workers` has Pipecat's four workers with the mixin.

    The mixin replaces the job system of :class:`~pipecat.workers.base_worker.BaseWorker` and keeps
    its methods, hooks and bus messages, so that it exchanges jobs with plain Pipecat workers as
    well.

    Class attributes to set in a subclass:

    - ``takes_jobs_when_inactive`` (True): whether the worker accepts jobs while another worker
      holds the conversation. When False, an inactive worker refuses them at once.
    - ``job_request_concurrency`` ("auto"): how many jobs of ``on_job_request`` (the method and the
      event handlers) may be open at once, None for any number; further jobs wait in order of
      arrival. "auto" is one for a worker that owns an LLM context, because a context holds one
      turn at a time and the answers of two jobs could be confused; it is any number for the
      other workers.
    - ``job_affinity`` ("auto"): which jobs run in the same process, on a bus that spans processes
      several of which host the worker. "requester": all jobs of one requester, while that process
      lives. "prefer": the same, but a job goes to another process rather than wait for a free
      slot. None: each job goes to any process that has a free slot. "auto" is "requester" for a
      ``BackendLLMWorker``, "prefer" for every other worker that owns an LLM context, and None for
      the rest. In a handler, :func:`~pipecat_jobs.job_moved` tells whether the requester's earlier
      jobs ran in another process.
    - ``job_cancel_grace`` (1.0): seconds that a cancelled handler has to clean up; then its job
      ends without it.
    - ``job_interceptors`` (none): :class:`~pipecat_jobs.JobInterceptor` objects that watch or wrap
      every job that a worker of the class asks or is asked, the outermost first.

    Example::

        class Mine(SomeWorker, JobsMixin):
            @job(name="look_up")
            async def look_up(self, message):
                return {"found": message.payload["word"]}
    """

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
