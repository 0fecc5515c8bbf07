"""Step 1: a model's files, from the Hugging Face Hub to the staging place of one commit."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pull_model(
    model_id: str,
    release_root: str,
    run_uri: str,
    snapshot: dsl.Output[dsl.Model],
    revision: str = "main",
    token_secret: str = "",
    allowed_licences: list = [],  # noqa: B006
    allow_remote_code: bool = False,
    memory_mib: int = 256,
) -> NamedTuple("Outputs", [("commit_sha", str), ("licence", str), ("size_bytes", int), ("moved_bytes", int)]):
    """Pull the files that serving needs, each checked against the Hub's own checksum.

    The revision is resolved to a commit once, and everything after this step is that commit. Access, licence, remote
    code and scan status are judged before any weight moves. A commit that is already published moves nothing. Pickled
    weights stay at the Hub until the conversion reads them there, so that they move once.

    Args:
        model_id: Hugging Face model id, as `org/name`, in the Hub's own case.
        release_root: Where releases live: gs://BUCKET/PREFIX, or a folder.
        run_uri: Where this run keeps its journal.
        revision: Branch, tag or commit.
        token_secret: Secret Manager resource name of a Hub token (projects/P/secrets/S/versions/V); empty for
            public models.
        allowed_licences: Licence ids that may be served, such as apache-2.0; empty allows any.
        allow_remote_code: Whether a model that brings its own Python code may be pulled.
        memory_mib: Most memory that bytes in flight may take, in MiB.

    Returns:
        snapshot: The model's files at one commit.
        commit_sha: The commit, as 40 hex digits.
        licence: Licence id from the model card.
        size_bytes: Size of the files that serving needs, in bytes.
        moved_bytes: Bytes that travelled from the Hub in this run.
    """
    from streamway import hub, report

    with report.step("pull_model", run_uri) as step:
        pulled = hub.pull_model(
            model_id=model_id,
            release_root=release_root,
            revision=revision,
            token=hub.read_token(token_secret),
            allowed_licences=allowed_licences,
            allow_remote_code=allow_remote_code,
            leave_pickled=True,
            memory_bytes=int(memory_mib) << 20,
            on_progress=step.progress,
        )
        step.keep(pulled)
    snapshot.uri = pulled.uri
    snapshot.metadata.update(model_id=pulled.model_id, commit_sha=pulled.commit_sha, licence=pulled.licence)
    return (pulled.commit_sha, pulled.licence, pulled.size_bytes, pulled.moved_bytes)
