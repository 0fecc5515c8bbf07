"""Step 2: one verified set of safetensors, whatever the repository held."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def convert_weights(
    model_id: str,
    commit_sha: str,
    release_root: str,
    run_uri: str,
    snapshot: dsl.Input[dsl.Model],
    weights: dsl.Output[dsl.Model],
    token_secret: str = "",
    memory_mib: int = 256,
) -> NamedTuple("Outputs", [("tensors", int), ("converted", bool), ("moved_bytes", int)]):
    """Turn torch checkpoints into safetensors without running their pickle, and validate what already is safetensors.

    Pickled weights that the pull left at the Hub are read from there, and held to the Hub's checksum as they pass.
    Every tensor of the result is proved equal to its source in name, dtype, shape and bytes, or recorded as an
    alias. A model that is already good safetensors passes through without moving a byte.

    Args:
        model_id: Hugging Face model id.
        commit_sha: The commit that was pulled.
        release_root: Where releases live: gs://BUCKET/PREFIX, or a folder.
        run_uri: Where this run keeps its journal.
        snapshot: The model's files at one commit.
        token_secret: Secret Manager resource name of a Hub token (projects/P/secrets/S/versions/V); empty for
            public models.
        memory_mib: Most memory that bytes in flight may take, in MiB.

    Returns:
        weights: What the release will hold.
        tensors: Number of tensors.
        converted: Whether the weights had to be converted.
        moved_bytes: Bytes written in this run.
    """
    from streamway import hub, report, storage
    from streamway import weights as room

    with report.step("convert_weights", run_uri) as step:
        layout = storage.ModelLayout(release_root=release_root, model_id=model_id, commit_sha=commit_sha)
        converted = room.convert_weights(
            snapshot_uri=snapshot.uri,
            weights_uri=layout.weights_uri,
            open_left=hub.open_left_files(token_secret=token_secret),
            release_root=release_root,
            memory_bytes=int(memory_mib) << 20,
            on_progress=step.progress,
        )
        step.keep(converted)
    weights.uri = converted.uri
    weights.metadata.update(tensors=converted.tensors, converted=converted.converted)
    return (converted.tensors, converted.converted, converted.moved_bytes)
