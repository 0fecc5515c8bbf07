"""What can be said of a run that failed although no step wrote why.

A step writes down why it failed; one that was killed, or whose worker never came to run it, cannot. A pipeline service
only says which task it was, if that. So it is worked out here which step is silent, what that usually means, and where
its log is.
"""

import re
from dataclasses import dataclass

from streamway.report.journal import KNOWN_STEPS, RunJournal
from streamway.report.sections import TITLES

_VERTEX = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/pipelineJobs/(?P<id>[^/]+)")
_KUBEFLOW = re.compile(r"https?://.+/pipelineJobs/(?P<id>[-\w]+)")
_CONSOLE = "https://console.cloud.google.com/vertex-ai/locations/{location}/pipelines/runs/{id}?project={project}"
_WORKFLOW = re.compile(r"[a-z0-9][-a-z0-9.]{0,252}")


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A failure that no step has written down.

    Args:
        step: The step that is silent; empty where every step has ended well.
        problem: What is known of it.
        next_step: Where its log is, and what to look for.
    """

    step: str
    problem: str
    next_step: str


def explain_silence(journal: RunJournal, *, state: str, message: str = "", resource: str = "") -> Silence:
    """Say which step did not report, and where to look.

    Args:
        journal: What the steps have written.
        state: How the pipeline ended, in the runner's word.
        message: What the runner itself says, which may name tasks.
        resource: What the service calls the run: on Vertex AI projects/P/locations/L/pipelineJobs/ID, and
            URL/pipelineJobs/ID for a run that is looked at through the API of Kubeflow.
    """
    seen_from_outside = _KUBEFLOW.fullmatch(resource)
    if seen_from_outside and state != "CANCELLED" and not (journal.records or journal.unfinished or journal.unreadable):
        return _explain_unread(journal, state, message, seen_from_outside["id"])
    step = _silent_step(journal, message)
    if state == "CANCELLED":
        during = f" while {TITLES[step]} was at work" if step and _began(journal, step) else ""
        return Silence(
            step=step,
            problem=f"The run was cancelled{during}.",
            next_step="Start it again when it is wanted: it goes on where it stopped.",
        )
    return Silence(step=step, problem=_problem(journal, state, step), next_step=_where(journal, step, resource))


def _explain_unread(journal: RunJournal, state: str, message: str, run_id: str) -> Silence:
    """Say where the reason is, although not what it is: Kubeflow's API does not tell a run's name in its journal."""
    step = next((name for name in KNOWN_STEPS if _names(message, name)), "")
    where = f" in {TITLES[step]}" if step else ""
    return Silence(
        step=step,
        problem=f"The run ended as {state}{where}. Why is in its journal, which is named after its workflow, and "
        "Kubeflow's API does not tell that name.",
        next_step="Read its report: the artifact of the task report-run on its page, and report.html in the newest "
        f"folder of {journal.run_uri.rpartition('/')[0]}/. The logs are shown by\n"
        f"kubectl logs --all-containers --prefix --selector pipeline/runid={run_id} --namespace kubeflow",
    )


def _names(message: str, step: str) -> bool:
    return re.search(rf"\b{step.replace('_', '-')}\b", message) is not None


def _silent_step(journal: RunJournal, message: str) -> str:
    """Return the step that began and did not end; or that the service names; or that should have come next."""
    if journal.unfinished:
        return journal.unfinished[-1].name
    ended = {record.name for record in journal.records} | {record.name for record in journal.unreadable}
    named = [name for name in KNOWN_STEPS if _names(message, name)]
    return next((name for name in (*named, *journal.steps) if name not in ended), "")


def _problem(journal: RunJournal, state: str, step: str) -> str:
    after = f" after {TITLES[journal.records[-1].name]}" if journal.records else ""
    ended = f"The run ended as {state}{after}, and no step wrote why"
    if journal.unreadable and not journal.unfinished:
        return f"{ended}; the record of {TITLES[journal.unreadable[0].name]} cannot be read."
    if not step:
        return f"{ended}: every step says that it succeeded. What failed is outside of them."
    if began := _began(journal, step):
        return (
            f"{ended}. {TITLES[step]} began at {began} and left no record of its end, so its worker was killed or "
            "lost. A worker that runs out of memory is killed without a word."
        )
    return (
        f"{ended}. {TITLES[step]} never began to work: its worker was not started, or ended before it came to run the "
        "step. The image may not be there or not be ours, or its account may not write beside the releases."
    )


def _where(journal: RunJournal, step: str, resource: str) -> str:
    task = f"the task {step.replace('_', '-')}" if step else "the last task"
    if found := _VERTEX.fullmatch(resource):
        return (
            f"Read the log of {task} at {_CONSOLE.format_map(found.groupdict())} or by\n"
            f"gcloud logging read 'resource.labels.pipeline_job_id=\"{found['id']}\"' --project={found['project']}\n"
            "Then start the run again: what has been moved is not moved twice."
        )
    logs = ""
    if _WORKFLOW.fullmatch(journal.name):
        selector = f"workflows.argoproj.io/workflow={journal.name}"
        logs = f", or on Kubeflow by\nkubectl logs --all-containers --prefix --selector {selector} --namespace kubeflow"
    again = "Then start the run again: what has been moved is not moved twice."
    return f"Read the log of {task} on the run's page{logs}\n{again}"


def _began(journal: RunJournal, step: str) -> str:
    record = next((record for record in journal.unfinished if record.name == step), None)
    return f"{record.started[:19].replace('T', ' ')} UTC" if record else ""
