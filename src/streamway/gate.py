"""The gate between a new revision and its traffic: it must have answered correctly.

Proving (smoke) and serving (server) are rooms that do not know each other; this is where one decides about the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from streamway import server, smoke, warm_start
from streamway.errors import StreamwayError


def smoke_test(
    *,
    name: str,
    namespace: str,
    revision: str,
    service: str,
    port: int,
    served_model_name: str,
    commit_sha: str,
    cluster: str = "",
    questions: Sequence[Mapping[str, Any]] = (),
    allowed_regression: float = 0.0,
    timeout_seconds: float = 300.0,
) -> smoke.SmokeReport:
    """Ask a held revision, then let the endpoint serve it and keep its warm-start kit; or return to what served before.

    Args:
        name: Name of the endpoint.
        namespace: Its namespace.
        revision: The revision that is held.
        service: Name of the Service to ask.
        port: Its port.
        served_model_name: The name that the API must report.
        commit_sha: The commit that must be deployed.
        cluster: As in `streamway.cluster.connect`.
        questions: Questions with expected answers, as plain values.
        allowed_regression: By what share latency and throughput may be worse than those of the release that served
            before; 0 does not compare.
        timeout_seconds: Longest time for the questions.

    Returns:
        The report of a test that passed.

    Raises:
        WrongAnswerError: an answer was wrong; carries the report, and says what serves now.
        SmokeTestError: the revision could not be asked; says what serves now.
        ClusterError: the cluster refuses.
    """
    before = server.read_status(name=name, namespace=namespace, cluster=cluster)
    try:
        verdict = smoke.smoke_test(
            commit_sha=commit_sha,
            service=service,
            port=port,
            served_model_name=served_model_name,
            cluster=cluster,
            namespace=namespace,
            questions=smoke.parse_questions(questions),
            previous_metrics=before.last_figures,
            allowed_regression=allowed_regression,
            timeout_seconds=timeout_seconds,
        )
    except StreamwayError as error:
        error.add_outcome(_reject(name=name, namespace=namespace, revision=revision, cluster=cluster))
        raise
    # A revision that serves and has passed before is left as it is: a rerun changes nothing in the cluster.
    if before.active != revision or not before.last_smoke_test:
        server.promote_revision(
            name=name,
            namespace=namespace,
            revision=revision,
            cluster=cluster,
            proof=smoke.summarise(verdict),
            figures=verdict.metrics,
        )
    warm_start.keep_kit(name=name, namespace=namespace, revision=revision, cluster=cluster)
    return verdict


def _reject(*, name: str, namespace: str, revision: str, cluster: str) -> str:
    try:
        return server.reject_revision(name=name, namespace=namespace, revision=revision, cluster=cluster)
    except StreamwayError as error:
        # What went wrong first matters more than that it could not be undone, but both must be told.
        return f"It could not be withdrawn either: {error.problem}"
