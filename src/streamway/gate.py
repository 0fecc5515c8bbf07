"""The gate between a new revision and its traffic: it must have answered correctly.

Proving (smoke) and serving (server) are rooms that do not know each other; this is where one decides about the other.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamway import server, smoke, warm_start
from streamway.cluster import connect
from streamway.errors import SmokeTestError, StreamwayError
from streamway.server.lease import CLAIM_SECONDS, Holding, hold_endpoint

logger = logging.getLogger("streamway.gate")


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """What the answers of a revision are held to.

    Args:
        questions: Questions with expected answers, as plain values; none asks for a sound answer only.
        allowed_regression: By what share latency and throughput may be worse than those of the release that served
            before; 0 does not compare.
        chat_required: Whether a model that cannot chat fails, instead of being asked for what it serves.
        min_context_length: Shortest context that the model must be served with, in tokens; 0 for any.
        timeout_seconds: Longest time for the questions.
    """

    questions: Sequence[Mapping[str, Any]] = ()
    allowed_regression: float = 0.0
    chat_required: bool = False
    min_context_length: int = 0
    timeout_seconds: float = 300.0

    def ask(self, *, previous_figures: Mapping[str, float], **place: Any) -> smoke.SmokeReport:
        """Ask what `place` says, as `streamway.smoke.smoke_test` takes it, and compare it with these figures."""
        return smoke.smoke_test(
            **place,
            questions=smoke.parse_questions(self.questions),
            previous_metrics=previous_figures,
            allowed_regression=self.allowed_regression,
            chat_required=self.chat_required,
            min_context_tokens=self.min_context_length,
            timeout_seconds=self.timeout_seconds,
        )


def smoke_test(
    *,
    name: str,
    namespace: str,
    revision: str,
    service: str,
    port: int,
    served_model_name: str,
    commit_sha: str,
    expected: Expectations,
    cluster: str = "",
    run: str = "",
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
        expected: What its answers are held to.
        cluster: As in `streamway.cluster.connect`.
        run: What all steps of this run call it; takes up what `deploy_server` claimed for it.

    Returns:
        The report of a test that passed.

    Raises:
        WrongAnswerError: an answer was wrong; carries the report, and says what serves now. A revision that serves
            and has passed before is left where it is.
        SmokeTestError: the revision could not be asked; says what serves now.
        ClusterError: the cluster refuses, or another run is changing the endpoint; then nothing was touched.
    """
    connection = connect(cluster)
    with hold_endpoint(connection, namespace, name, run=run, revision=revision, wait_seconds=CLAIM_SECONDS) as holding:
        endpoint = _Held(name=name, namespace=namespace, revision=revision, cluster=cluster, holding=holding)
        before = server.read_status(name=name, namespace=namespace, cluster=cluster)
        _check_is_there(before, revision)
        serves = before.active == revision
        has_passed = serves and bool(before.last_smoke_test)
        try:
            verdict = expected.ask(
                commit_sha=commit_sha,
                # Where it serves already, this step has been here before, or another run for the same.
                service=name if serves else service,
                port=port,
                served_model_name=served_model_name,
                cluster=cluster,
                namespace=namespace,
                # The figures of a revision that serves are its own, and noise is no regression.
                previous_figures={} if serves else before.last_figures,
            )
        except Exception as error:
            # Whatever it is, a mistake of ours too: users must not be left with what has not answered, or with nothing.
            suspicion = endpoint.suspect_kit() if isinstance(error, smoke.WrongAnswerError) else ""
            # What has proved itself is not taken down because it is asked again, or asked something else.
            outcome = endpoint.say_how_to_go_back(before) if has_passed else endpoint.reject()
            if isinstance(error, StreamwayError):
                error.add_outcome(f"{suspicion} {outcome}".lstrip())
            raise
        except KeyboardInterrupt:
            # A cancelled task, or Ctrl-C; where the revision took the GPU of the one before, nothing serves now.
            logger.warning("stopped: %s", endpoint.abandon())
            raise
        # A revision that serves and has passed before is left as it is: a rerun changes nothing in the cluster.
        if not has_passed:
            endpoint.promote(verdict)
        warm_start.keep_kit(name=name, namespace=namespace, revision=revision, cluster=cluster)
    return verdict


def prover(
    *,
    name: str,
    namespace: str,
    served_model_name: str,
    commit_sha: str,
    expected: Expectations,
    cluster: str = "",
) -> server.Verify:
    """Return what proves a revision within its rollout, before the Service selects it; arguments as in `smoke_test`."""

    def prove(candidate: server.Candidate) -> server.Proof:
        before = server.read_status(name=name, namespace=namespace, cluster=cluster)
        try:
            verdict = expected.ask(
                commit_sha=commit_sha,
                service=candidate.service,
                port=candidate.port,
                served_model_name=served_model_name,
                cluster=cluster,
                namespace=namespace,
                previous_figures=before.last_figures,
            )
        except smoke.WrongAnswerError as error:
            revision = candidate.revision
            suspicion = warm_start.suspect_kit(name=name, namespace=namespace, revision=revision, cluster=cluster)
            if suspicion:
                error.add_outcome(suspicion)
            raise
        return server.Proof(said=smoke.summarise(verdict), figures=verdict.metrics)

    return prove


def _check_is_there(status: server.EndpointStatus, revision: str) -> None:
    if all(row.name != revision for row in status.revisions):
        raise SmokeTestError(
            f"Endpoint {status.name} has no revision {revision} any more: another run has judged it since. "
            f"{f'Revision {status.active} serves' if status.active else 'Nothing serves'}.",
            next_step="Look at the report of the other run; run again to deploy the release anew.",
        )


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A revision of an endpoint that is ours to judge."""

    name: str
    namespace: str
    revision: str
    cluster: str
    holding: Holding

    def promote(self, verdict: smoke.SmokeReport) -> None:
        server.promote_revision(
            name=self.name,
            namespace=self.namespace,
            revision=self.revision,
            cluster=self.cluster,
            proof=smoke.summarise(verdict),
            figures=verdict.metrics,
            holding=self.holding,
        )

    def suspect_kit(self) -> str:
        return warm_start.suspect_kit(
            name=self.name, namespace=self.namespace, revision=self.revision, cluster=self.cluster
        )

    def abandon(self) -> str:
        try:
            return server.abandon_revision(
                name=self.name,
                namespace=self.namespace,
                revision=self.revision,
                cluster=self.cluster,
                holding=self.holding,
            )
        except StreamwayError as error:
            return f"it could not be withdrawn: {error.problem}"

    def say_how_to_go_back(self, status: server.EndpointStatus) -> str:
        serves = f"Revision {self.revision} serves on: it passed at {status.tested_at}, and only a rollout replaces it."
        if not status.previous:
            return serves
        command = f"streamway rollback {self.name} --namespace {self.namespace}"
        return f"{serves} To go back to revision {status.previous}: {command}."

    def reject(self) -> str:
        try:
            return server.reject_revision(
                name=self.name,
                namespace=self.namespace,
                revision=self.revision,
                cluster=self.cluster,
                holding=self.holding,
            )
        except StreamwayError as error:
            # What went wrong first matters more than that it could not be undone, but both must be told.
            return f"It could not be withdrawn either: {error.problem}"
