"""Step 3: an immutable release in the bucket, its manifest last."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def upload_model(
    release_root: str,
    run_uri: str,
    weights: dsl.Input[dsl.Model],
    release: dsl.Output[dsl.Model],
    memory_mib: int = 256,
) -> NamedTuple("Outputs", [("manifest_uri", str), ("size_bytes", int), ("moved_bytes", int)]):
    """Publish the model under its commit: every object checked by crc32c, the manifest written last.

    Nothing unverified ever appears under the release's prefix, and a release that is already there moves nothing.

    Args:
        release_root: Where releases live: gs://BUCKET/PREFIX, or a folder.
        run_uri: Where this run keeps its journal.
        weights: What the release will hold.
        memory_mib: Most memory that bytes in flight may take, in MiB.

    Returns:
        release: The published model; its URI is what the engine is pointed at.
        manifest_uri: Where the manifest is.
        size_bytes: Size of the release, in bytes.
        moved_bytes: Bytes that travelled in this run; copies inside Cloud Storage do not count.
    """
    from streamway import report, storage

    with report.step("upload_model", run_uri) as step:
        published = storage.upload_model(
            weights_uri=weights.uri,
            release_root=release_root,
            memory_bytes=int(memory_mib) << 20,
            on_progress=step.progress,
        )
        step.keep(published)
    release.uri = published.uri
    release.metadata.update(manifest_uri=published.manifest_uri, size_bytes=published.size_bytes)
    return (published.manifest_uri, published.size_bytes, published.moved_bytes)
