"""Pipecat's workers without an LLM context, with the mixin added."""

from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.workers.llm import LLMWorker as PipecatLLMWorker

from pipecat_jobs._llm.mixin import JobsMixin

# Each is a subclass of the previous one, as in Pipecat, so that isinstance() checks go on working.


class BaseWorker(JobsMixin):
    """Pipecat's ``BaseWorker`` with jobs that always end: a worker without a pipeline.

    See :class:`~pipecat_jobs.JobsMixin` for the class attributes that configure its jobs.

    Example::

        class Library(BaseWorker):
            @job(name="find_book")
            async def find_book(self, message):
                return {"shelf": f"{message.payload['title']} is on shelf 7"}


        await self.add_workers(Library("library"))
        async with self.job("library", name="find_book", payload={"title": "Emma"}) as j:
            pass

        print(j.response["shelf"])
    """


class PipelineWorker(PipecatPipelineWorker, BaseWorker):
    """Pipecat's ``PipelineWorker`` with jobs that always end: a worker with a pipeline of yours.

    Example::

        from pipecat.pipeline.pipeline import Pipeline
        from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair


        @job_tool("wiki", job="research")
        async def look_up(topic: str):
            '''Look a topic up in an encyclopedia.'''
            return {"topic": topic}


        llm = OpenAILLMService(api_key="your key")
        user, assistant = LLMContextAggregatorPair(LLMContext(tools=[look_up]))
        bot = PipelineWorker(Pipeline([user, llm, assistant]), name="bot")
    """


class LLMWorker(PipecatLLMWorker, PipelineWorker):
    """Pipecat's ``LLMWorker`` with jobs that always end: a worker with an LLM service.

    Example::

        class Host(LLMWorker):
            @job_tool("wiki", job="research", timeout=30)
            async def look_up(self, topic: str):
                '''Look a topic up in an encyclopedia.'''
                return {"topic": topic}


        llm = OpenAILLMService(api_key="your key")
        host = Host("host", llm=llm)
    """
