"""A pipeline as the one file that Vertex AI, Kubeflow and the local runner all read.

The same source compiles to the same bytes, so a compiled file can be reviewed, signed and compared.
"""

import difflib
import re
import tempfile
from pathlib import Path

from streamway.errors import LaunchError

IMAGE_REFERENCE = re.compile(r"[A-Za-z0-9][\w.\-/:@]*")


def compile_pipeline(name: str, output_path: Path, *, image: str = "") -> Path:
    """Compile a pipeline.

    Args:
        name: One of streamway.pipelines.PIPELINES, such as `serve_model`.
        output_path: The YAML file to write; replaced atomically.
        image: Image that the components run in, by tag or digest; empty keeps the default one.

    Returns:
        The path written.

    Raises:
        LaunchError: no such pipeline, or not an image reference.
    """
    from kfp import compiler

    from streamway.components.image import IMAGE
    from streamway.pipelines import PIPELINES

    if name not in PIPELINES:
        near = difflib.get_close_matches(name, PIPELINES, n=1)
        hint = f"; perhaps you meant {near[0]}?" if near else ""
        raise LaunchError(f"There is no pipeline {name!r}{hint}", next_step=f"Choose one of {', '.join(PIPELINES)}.")
    if image and not IMAGE_REFERENCE.fullmatch(image):
        raise LaunchError(
            f"{image!r} is not an image reference.",
            next_step="Give one such as REGION-docker.pkg.dev/PROJECT/REPOSITORY/streamway@sha256:...",
        )
    output_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_path.parent, prefix=".compile-") as folder:
        draft = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(PIPELINES[name], str(draft))
        if image:
            text = draft.read_text(encoding="utf-8")
            draft.write_text(text.replace(f"image: {IMAGE}\n", f"image: {image}\n"), encoding="utf-8")
        draft.replace(output_path)
    return output_path
