"""A pipeline as the one file that Vertex AI, Kubeflow and the local runner all read.

The same source compiles to the same bytes, so a compiled file can be reviewed, signed and compared.
"""

import difflib
import re
import tempfile
from pathlib import Path

from streamway.errors import LaunchError

IMAGE_REFERENCE = re.compile(r"[A-Za-z0-9][\w.\-/:@]*")
_MOVING_TAGS = {"", "latest"}


def compile_pipeline(name: str, output_path: Path, *, image: str = "") -> Path:
    """Compile a pipeline.

    Args:
        name: One of streamway.pipelines.PIPELINES, such as `serve_model`.
        output_path: The YAML file to write; replaced atomically.
        image: Image that the components run in, by tag or digest; empty keeps the default one.

    Returns:
        The path written.

    Raises:
        LaunchError: no such pipeline, or not an image reference, or one that may mean another image tomorrow.
    """
    from kfp import compiler

    from streamway.components.image import IMAGE
    from streamway.pipelines import PIPELINES

    if name not in PIPELINES:
        near = difflib.get_close_matches(name, PIPELINES, n=1)
        hint = f"; perhaps you meant {near[0]}?" if near else ""
        raise LaunchError(f"There is no pipeline {name!r}{hint}", next_step=f"Choose one of {', '.join(PIPELINES)}.")
    if image:
        _check_image(image)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_path.parent, prefix=".compile-") as folder:
        draft = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(PIPELINES[name], str(draft))
        if image:
            text = draft.read_text(encoding="utf-8")
            draft.write_text(text.replace(f"image: {IMAGE}\n", f"image: {image}\n"), encoding="utf-8")
        draft.replace(output_path)
    return output_path


def _check_image(image: str) -> None:
    """Refuse what does not say which image it is, today and when a schedule fires in a year."""
    if not IMAGE_REFERENCE.fullmatch(image):
        raise LaunchError(
            f"{image!r} is not an image reference.",
            next_step="Give one such as REGION-docker.pkg.dev/PROJECT/REPOSITORY/streamway@sha256:...",
        )
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    if tag in _MOVING_TAGS and "@sha256:" not in image:
        raise LaunchError(
            f"{image!r} may be another image tomorrow; expected one with a tag of its own, or a digest.",
            next_step="Add the tag that it was pushed with, such as :0.1.0, or its digest as @sha256:...",
        )
