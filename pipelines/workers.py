"""How large the workers of tasks are, and what is tried again: literals, because KFP fixes them when it compiles.

No task is cached by KFP. A cached success would hide a deleted endpoint or a moved branch; and what was published
under a commit is found by every step itself, so a second run moves nothing anyway.

KFP has no timeout for a task. Each step has its own: a watchdog on bytes where bytes move, `timeout_seconds` where
something is waited for.
"""

from kfp import dsl


def mover(task: dsl.PipelineTask, title: str) -> dsl.PipelineTask:
    """Size a task that moves bytes; its memory does not depend on the model.

    Should its worker be lost, it goes on where it was.
    """
    return _on_worker(task, title, cpu="4", memory="4G", retries=1)


def asker(task: dsl.PipelineTask, title: str) -> dsl.PipelineTask:
    """Size a task that asks services and waits; asking twice does no harm."""
    return _on_worker(task, title, cpu="1", memory="2G", retries=1)


def judge(task: dsl.PipelineTask, title: str) -> dsl.PipelineTask:
    """Size a task whose verdict stands: what has failed it must not pass by being asked again."""
    return _on_worker(task, title, cpu="1", memory="2G", retries=0)


def _on_worker(task: dsl.PipelineTask, title: str, *, cpu: str, memory: str, retries: int) -> dsl.PipelineTask:
    task.set_display_name(title).set_caching_options(False).set_cpu_limit(cpu).set_memory_limit(memory)
    if retries:
        task.set_retry(num_retries=retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="300s")
    return task
