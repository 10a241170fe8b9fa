"""The mixin that adds jobs to any worker class."""

from typing import Any

from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.llm import LLMContextWorker

from pipecat_jobs._llm.conversing import find_conversations
from pipecat_jobs._llm.ownership import check_tools
from pipecat_jobs._llm.parts import find_llms
from pipecat_jobs._llm.turns import LLMTurns
from pipecat_jobs._llm.watch import watch, watch_llms
from pipecat_jobs._worker.mixin import TurnFailed, Turns, WorkerJobs


class JobsMixin(WorkerJobs):
    """Adds jobs that always end to any Pipecat worker class.

    Name it last among the bases of a worker class of your own:
    :class:`~pipecat_jobs.MixinOrderError` refuses a class in which it would hide what another base
    extends. Where Pipecat's ``BaseWorker`` is the only other base, leave that out: it is a base of
    the mixin. :mod:`pipecat_jobs.workers` has Pipecat's four workers with the mixin.

    The mixin replaces the job system of :class:`~pipecat.workers.base_worker.BaseWorker` and keeps
    its methods, hooks and bus messages, so that it exchanges jobs with plain Pipecat workers as
    well.

    Class attributes to set in a subclass:

    - ``takes_jobs_when_inactive`` (True): whether the worker takes jobs while another worker holds
      the conversation. When False, an inactive worker refuses them at once.
    - ``job_request_concurrency`` ("auto"): the number of jobs of ``on_job_request`` (the method and
      the event handlers) that may be open at once, or None for no limit; further jobs wait in order
      of arrival. "auto" is 1 for a worker that owns an LLM context, because a context holds one
      turn at a time and two jobs could get each other's text; it is None for other workers.
    - ``job_affinity`` ("auto"): which jobs run in the same process, when a bus spans several
      processes that have the worker. "requester": all jobs of one requester, while the process
      lives. "prefer": the same, but a job that would wait for a free slot goes to another process.
      None: each job goes to any process with a free slot. "auto" is "requester" for a
      ``BackendLLMWorker``, "prefer" for other workers that own an LLM context, and None for all
      other workers. In a handler, :func:`~pipecat_jobs.job_moved` tells whether the requester's
      earlier jobs ran in another process.
    - ``job_cancel_grace`` (1.0): seconds that a cancelled handler has to clean up. After that its
      job ends, and the handler is reported in the log.
    - ``job_interceptors`` (empty): :class:`~pipecat_jobs.JobInterceptor` objects that watch or wrap
      every job that a worker of the class requests or handles, the outermost first.

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
        """Start the worker; observe the function calls of its LLMs. Pipecat's runner calls this."""
        if isinstance(self, PipelineWorker):
            # Before the watch, so that the watch knows whose run begins.
            assert self._llm_turns is not None
            self._llm_turns.follow()
            watch_llms(self.pipeline)
        await super().start()

    async def stop(self) -> None:
        """Stop the worker; settle what it reports. Pipecat's runner calls this."""
        try:
            await super().stop()
        finally:
            if isinstance(self, PipelineWorker):
                for conversation in find_conversations(self):
                    conversation.close()
                for llm in find_llms(self):
                    watch(llm).unfollow()

    def _make_turns(self, on_failure: TurnFailed) -> Turns | None:
        if isinstance(self, PipelineWorker):
            self._llm_turns = LLMTurns(self, on_failure, self.job_cancel_grace)
            if isinstance(self, LLMContextWorker):
                self._llm_turns.follow()
        return self._llm_turns
