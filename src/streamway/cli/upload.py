"""`streamway upload`: a converted model, or any folder of good safetensors, published as a release."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from streamway import storage, weights
from streamway.cli import output
from streamway.cli.options import json_option, memory_option
from streamway.errors import WeightsError
from streamway.report.words import format_bytes
from streamway.storage.records import WEIGHTS_RECORD


@click.command()
@click.argument("weights_uri")
@click.argument("release_root")
@memory_option
@json_option
def upload(weights_uri: str, release_root: str, memory_mib: int, as_json: bool) -> None:
    """Publish the converted model in WEIGHTS_URI under RELEASE_ROOT, its manifest last.

    A folder that no pull and no conversion to gs:// has recorded is judged first, and published as local/NAME under
    a digest of its content.
    """
    with _prepared(weights_uri) as ready, output.narrated(), output.progress("Upload") as on_progress:
        published = storage.upload_model(
            weights_uri=ready, release_root=release_root, memory_bytes=memory_mib << 20, on_progress=on_progress
        )
    moved = f"{format_bytes(published.moved_bytes)} moved of {format_bytes(published.size_bytes)}"
    output.give(published, as_json=as_json, lines=[published.uri, moved])


@contextlib.contextmanager
def _prepared(weights_uri: str) -> Iterator[str]:
    """Give weights with a record: these, or a record of a folder's own files, which stay where they are.

    Raises:
        WeightsError: the folder holds no safetensors that a server would serve rightly.
        StorageError: it cannot be read.
    """
    recorded = storage.exists(storage.join(weights_uri, WEIGHTS_RECORD))
    if recorded or storage.is_gs(weights_uri) or storage.find_release(weights_uri):
        yield weights_uri
        return
    judged = weights.validate(weights_uri)
    if not judged.ok:
        worst = judged.findings[0]
        raise WeightsError(
            f"{weights_uri} cannot be published: {worst.subject}: {worst.message}", next_step=worst.next_step
        )
    with tempfile.TemporaryDirectory(prefix="streamway-") as folder:
        record_path = Path(folder) / Path(weights_uri).resolve().name
        weights.convert_weights(snapshot_uri=weights_uri, weights_uri=str(record_path))
        yield str(record_path)
