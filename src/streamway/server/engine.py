"""The engines: which versions may serve a release, and what each must be told to do so.

vLLM is the engine of the sandbox and of the tests; SGLang takes the same release by the same streamer, behind the same
contract. docs/serving.md says what has been tried with it. Facts about versions were read in the engines' own sources
and release notes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamway.errors import SettingsError
from streamway.server.flag_history import Version

PORT = 8000
_FLOORS: Mapping[str, Version] = {"vllm": (0, 14, 1), "sglang": (0, 5, 12)}
_IMAGES = {"vllm": "vllm/vllm-openai", "sglang": "lmsysorg/sglang"}
_NEWEST = {"vllm": "v0.32.0", "sglang": "v0.5.23"}
# From here on the image carries the user `vllm` (2000, group 0) with a home it may write to (vllm#40275).
_NON_ROOT_SINCE = (0, 23, 0)
ENGINE_USER_ID = 2000

# https://github.com/distribution/reference: a registry's host and port, lower-case paths, a tag, a digest.
_REFERENCE = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)

TITLES = {"vllm": "vLLM", "sglang": "SGLang"}
"""The engines' names for people."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """An engine's image.

    Args:
        reference: As Kubernetes takes it.
        engine: `vllm` or `sglang`.
        version: Version in the tag, as numbers; None where the tag does not say.
    """

    reference: str
    engine: str
    version: Version | None

    @property
    def title(self) -> str:
        """The engine's name for people."""
        return TITLES[self.engine]

    @property
    def runs_without_root(self) -> bool:
        """Whether the image is known to have a user of its own that can run the engine."""
        named = _split(self.reference)[0].endswith(_IMAGES["vllm"])
        return named and self.version is not None and self.version >= _NON_ROOT_SINCE


def read_image(reference: str) -> Image:
    """Read an image reference, and refuse versions that must not serve.

    Raises:
        SettingsError: it is none, the image is not pinned, or its version is below the floor.
    """
    if not _REFERENCE.fullmatch(reference):
        raise SettingsError(
            f"image is {reference!r}, which is no image's name.",
            next_step="Write it as registry/repository:tag, the repository in lower case.",
        )
    repository, tag = _split(reference)
    engine = "sglang" if "sglang" in repository else "vllm"
    if tag in {"", "latest", "nightly"} and "@sha256:" not in reference:
        raise SettingsError(
            f"image is {reference!r}, which means another engine tomorrow.",
            next_step=f"Pin it, such as {_IMAGES[engine]}:{_NEWEST[engine]}, or by @sha256: digest.",
        )
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", tag)
    version = (int(match[1]), int(match[2]), int(match[3])) if match else None
    if version is not None and version < _FLOORS[engine]:
        floor = ".".join(map(str, _FLOORS[engine]))
        reason = _too_old_vllm(version) if engine == "vllm" else _too_old_sglang(version)
        raise SettingsError(
            f"image is {reference!r}; {TITLES[engine]} before {floor} {reason}.",
            next_step=f"Use {_IMAGES[engine]}:v{floor} or newer.",
        )
    return Image(reference=reference, engine=engine, version=version)


def _split(reference: str) -> tuple[str, str]:
    """Repository and tag of a reference; the tag is empty where a digest alone pins it."""
    named = reference.partition("@")[0]
    folder, slash, name = named.rpartition("/")
    name, _, tag = name.partition(":")
    return folder + slash + name, tag


def _too_old_vllm(version: Version) -> str:
    return (
        "runs a model's own code even where that is forbidden (CVE-2026-22807) and can be made to by a request "
        "(CVE-2026-22778)" + ("; before 0.11.1 it cannot stream from gs:// either" if version < (0, 11, 1) else "")
    )


def _too_old_sglang(version: Version) -> str:
    """Why, as the sources of 0.5.9 to 0.5.12 show; the load format came with 0.5.10 (sglang#17948)."""
    reason = "cannot read the processor of a multimodal model from gs:// (sglang#22749)"
    if version < (0, 5, 11):
        reason += (
            "; before 0.5.11 it streams quantised models into layers that are not (sglang#22701), and its rerank route "
            "runs code from a model's template (CVE-2026-5760)"
        )
    return reason + ("; before 0.5.10 it cannot stream from gs:// at all" if version < (0, 5, 10) else "")


def serve_command(image: Image, release_uri: str) -> list[str]:
    """The command that serves a release."""
    if image.engine == "sglang":
        return ["python3", "-m", "sglang.launch_server", f"--model-path={release_uri}"]
    return ["vllm", "serve", release_uri]


def serve_arguments(
    image: Image, *, served_model_name: str, gpu_count: int, engine_arguments: Sequence[str]
) -> list[str]:
    """Arguments of the command, the caller's last.

    The streamer's distributed mode is left out on one GPU, where it does nothing for speed and has returned empty
    output (vllm#41749, vllm#43163). SGLang has it on for every gs:// URI unless it is told otherwise.
    """
    arguments = [
        f"--served-model-name={served_model_name}",
        "--host=0.0.0.0",
        f"--port={PORT}",
        "--load-format=runai_streamer",
    ]
    if image.engine == "sglang":
        # vLLM always has its /metrics, which an autoscaler reads.
        arguments.append("--enable-metrics")
    if gpu_count > 1:
        parallel = "--tp-size" if image.engine == "sglang" else "--tensor-parallel-size"
        arguments.append(f"{parallel}={gpu_count}")
    if gpu_count > 1 or image.engine == "sglang":
        arguments.append(f"--model-loader-extra-config={json.dumps({'distributed': gpu_count > 1})}")
    return [*arguments, *engine_arguments]


def serve_environment(image: Image) -> dict[str, str]:
    """Variables that an engine needs to keep the contract.

    SGLang's /health generates a token, for which it takes a second at least, and fails while a long prompt is read: a
    busy pod would be taken out of its Service and restarted. Told not to, it answers as vLLM's does, from the end of
    the warm-up for as long as the engine lives: where a process of it dies or hangs, its watchdogs end the server.
    """
    return {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"} if image.engine == "sglang" else {}
