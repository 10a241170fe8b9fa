"""The worker that owns an LLM context and answers jobs with turns of its LLM."""

from pipecat.workers.llm import LLMContextWorker as PipecatLLMContextWorker

from pipecat_jobs._llm.pipeline_workers import LLMWorker


class LLMContextWorker(PipecatLLMContextWorker, LLMWorker):
    """Pipecat's ``LLMContextWorker`` with jobs that always end, and with :meth:`llm_turn`.

    An LLM turn that a job has started, with :meth:`llm_turn` or with a frame that the job's handler
    queued, ends with the job. Cancelling the job closes the provider's stream and cancels the
    functions that the LLM has called. A turn that was not started by a job goes on.

    Example::

        class Debater(LLMContextWorker):
            @job(name="argue")
            async def argue(self, message):
                text = await self.llm_turn(f"Topic: {message.payload['topic']}")
                return {"role": self.name, "text": text}


        llm = OpenAILLMService(api_key="your key")
        debater = Debater("critic_2", llm=llm)
    """
