"""The exit handler: one page for the run, whether it succeeded or failed."""

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report_run(
    run_uri: str,
    page: dsl.Output[dsl.HTML],
    status: dsl.PipelineTaskFinalStatus,
    name: str = "",
    namespace: str = "",
):
    """Write the run's report from what its steps left in the journal.

    Args:
        run_uri: Where this run keeps its journal.
        status: How the steps ended, filled in by the pipeline.
        name: Name of the endpoint, to show its earlier starts; empty shows none beside a failed deployment.
        namespace: Kubernetes namespace of the endpoint.

    Returns:
        page: The report.
    """
    from pathlib import Path

    from streamway import report

    html = report.finish_run(
        run_uri,
        state=status.state,
        message=status.error_message or "",
        name=name,
        namespace=namespace,
        resource=status.pipeline_job_resource_name or "",
    )
    Path(page.path).write_text(html, encoding="utf-8")
