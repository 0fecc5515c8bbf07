"""Step 6: the endpoint must answer, correctly, as the model that was deployed."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def smoke_test(
    commit_sha: str,
    run_uri: str,
    name: str,
    revision: str,
    service: str,
    port: int,
    served_model_name: str,
    metrics: dsl.Output[dsl.Metrics],
    answers: dsl.Output[dsl.HTML],
    cluster: str = "",
    namespace: str = "models",
    questions: list = [],  # noqa: B006
    allowed_regression: float = 0.0,
    chat_required: bool = False,
    min_context_length: int = 0,
    timeout_seconds: float = 300.0,
) -> NamedTuple("Outputs", [("passed", bool)]):
    """Ask the new revision questions with known answers, and only then let the endpoint serve it.

    A wrong answer fails the run, and the revision that served before serves on, or again.

    Args:
        commit_sha: The commit that must be deployed.
        run_uri: Where this run keeps its journal.
        name: Name of the endpoint.
        revision: The revision that is held.
        service: Name of the Service to ask.
        port: Its port.
        served_model_name: The name that the API must report.
        cluster: As in deploy_server.
        namespace: Kubernetes namespace.
        questions: Questions with expected answers, each with `prompt` and `expect` (a regular expression); empty
            asks only for a sound answer, or of a model that only embeds for a sound embedding.
        allowed_regression: By what share latency and throughput may be worse than those of the release that served
            before, such as 0.5; 0 does not compare.
        chat_required: Whether a model that cannot chat fails, instead of being asked for what it serves.
        min_context_length: Shortest context that the model must be served with, in tokens; 0 for any.
        timeout_seconds: Longest time for the whole test.

    Returns:
        metrics: Latency and throughput.
        answers: What was asked and answered, as a page.
        passed: True; a test that fails raises instead.
    """
    from pathlib import Path

    from streamway import gate, report, smoke

    with report.step("smoke_test", run_uri) as step:
        try:
            verdict = gate.smoke_test(
                name=name,
                namespace=namespace,
                revision=revision,
                service=service,
                port=int(port),
                served_model_name=served_model_name,
                commit_sha=commit_sha,
                cluster=cluster,
                run=run_uri,
                expected=gate.Expectations(
                    questions=questions,
                    allowed_regression=allowed_regression,
                    chat_required=chat_required,
                    min_context_length=int(min_context_length),
                    timeout_seconds=timeout_seconds,
                ),
            )
        except smoke.WrongAnswerError as error:
            Path(answers.path).write_text(smoke.render_html(error.report))
            raise
        step.keep(verdict)
    for metric, value in verdict.metrics.items():
        metrics.log_metric(metric, value)
    Path(answers.path).write_text(smoke.render_html(verdict))
    return (verdict.passed,)
