"""The gate's record: which stage a release has passed, written beside its manifest."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def record_passage(
    model_id: str,
    commit_sha: str,
    release_root: str,
    run_uri: str,
    stage: str,
) -> NamedTuple("Outputs", [("manifest_sha256", str)]):
    """Write down that this release has passed this stage, with the digest of its manifest and what it answered.

    Args:
        model_id: Hugging Face model id.
        commit_sha: The commit, as 40 hex digits.
        release_root: Where the release is.
        run_uri: Where this run keeps its journal; its smoke test is the evidence.
        stage: What it has passed, such as staging.

    Returns:
        manifest_sha256: Digest of the manifest that passed.
    """
    from streamway import report
    from streamway.storage import gates

    with report.step("record_passage", run_uri) as step:
        proved = report.RunJournal.load(run_uri).record("smoke_test")
        passage = gates.record_passage(
            model_id=model_id,
            commit_sha=commit_sha,
            release_root=release_root,
            stage=stage,
            run_uri=run_uri,
            evidence={**proved.result, "passed": proved.status == "succeeded"} if proved else {},
        )
        step.keep(passage)
    return (passage.manifest_sha256,)
