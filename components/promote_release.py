"""Promotion: a release that has passed elsewhere, copied to where it shall serve now."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_release(
    model_id: str,
    commit_sha: str,
    source_root: str,
    release_root: str,
    run_uri: str,
    release: dsl.Output[dsl.Model],
    requires: list = [],  # noqa: B006
    memory_mib: int = 256,
) -> NamedTuple("Outputs", [("manifest_uri", str), ("size_bytes", int), ("moved_bytes", int)]):
    """Check that a release has passed what it must, and publish it under another root without the Hub.

    Inside Cloud Storage nothing travels: objects are copied server-side, and the manifest is written last.

    Args:
        model_id: Hugging Face model id.
        commit_sha: The commit, as 40 hex digits.
        source_root: Where the release is: gs://BUCKET/PREFIX, or a folder.
        release_root: Where it shall be.
        run_uri: Where this run keeps its journal.
        requires: Stages that the release must have passed at its source, such as staging; empty asks for none.
        memory_mib: Most memory that bytes in flight may take, in MiB.

    Returns:
        release: The published model; its URI is what the engine is pointed at.
        manifest_uri: Where its manifest is.
        size_bytes: Size of the release, in bytes.
        moved_bytes: Bytes that travelled in this run; copies inside Cloud Storage do not count.
    """
    from streamway import report
    from streamway.storage import gates

    with report.step("promote_release", run_uri) as step:
        promoted = gates.promote_release(
            model_id=model_id,
            commit_sha=commit_sha,
            source_root=source_root,
            release_root=release_root,
            requires=requires,
            memory_bytes=int(memory_mib) << 20,
            on_progress=step.progress,
        )
        step.keep({**vars(promoted), "promoted_from": source_root, "required_stages": requires})
    release.uri = promoted.uri
    release.metadata.update(manifest_uri=promoted.manifest_uri, size_bytes=promoted.size_bytes)
    return (promoted.manifest_uri, promoted.size_bytes, promoted.moved_bytes)
