"""What an engine must be told, and what must not be said to it, by version.

vLLM is the engine that is tried end to end; SGLang takes the same release by the same streamer, behind the same
contract.

Facts about versions were read in vLLM's own argument parser and release notes; each refusal gives its reason, because
an engine that crashes on an unknown flag says so only at the end of a long log.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from streamway.errors import SettingsError
from streamway.server import vllm_flags

PORT = 8000
_FLOOR = (0, 14, 1)
# From here on the image carries the user `vllm` (2000, group 0) with a home it may write to (vllm#40275).
_NON_ROOT_SINCE = (0, 23, 0)
ENGINE_USER_ID = 2000

# https://github.com/distribution/reference: a registry's host and port, lower-case paths, a tag, a digest.
_REFERENCE = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)

_OURS = {
    "--model": "the release is the model",
    "--served-model-name": "use served_model_name",
    "--host": "the server listens on all addresses of its pod",
    "--port": f"the server listens on {PORT}",
    "--load-format": "weights are streamed by the Run:ai model streamer",
    "--model-loader-extra-config": "the streamer's settings follow from the pod's resources",
    "--tensor-parallel-size": "use gpu_count",
    "-tp": "use gpu_count",
    "--tp-size": "use gpu_count",
    "--model-path": "the release is the model",
    "--api-key": "arguments are readable by everyone who may read pods; put VLLM_API_KEY into a Secret",
}
_GONE = {
    "--disable-log-requests": "it was removed from vLLM, where requests are not logged unless "
    "--enable-log-requests is given, and current versions stop at it with 'unrecognized arguments'",
    "--use-v2-block-manager": "it was removed from vLLM, which has only that block manager",
    "--worker-use-ray": "it was removed from vLLM in favour of --distributed-executor-backend",
    "--device": "it was removed from vLLM, which finds the device by itself",
    "--num-scheduler-steps": "it was removed from vLLM with the first engine",
    "--guided-decoding-backend": "it was removed from vLLM in favour of --structured-outputs-config",
}
_MULTI_NODE = {"--pipeline-parallel-size", "-pp", "--nnodes", "--node-rank", "--master-addr", "--headless"}


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
    version: tuple[int, int, int] | None

    @property
    def runs_without_root(self) -> bool:
        """Whether the image is known to have a user of its own that can run the engine."""
        repository = self.reference.partition("@")[0].rpartition(":")[0] or self.reference
        return repository.endswith("vllm/vllm-openai") and self.version is not None and self.version >= _NON_ROOT_SINCE


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
    _name, _, tag = reference.partition("@")[0].rpartition("/")[2].partition(":")
    if tag in {"", "latest", "nightly"} and "@sha256:" not in reference:
        raise SettingsError(
            f"image is {reference!r}, which means another engine tomorrow.",
            next_step="Pin it, such as vllm/vllm-openai:v0.32.0, or by @sha256: digest.",
        )
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", tag)
    version = (int(match[1]), int(match[2]), int(match[3])) if match else None
    engine = "sglang" if "sglang" in reference.partition("@")[0].rpartition(":")[0] else "vllm"
    if engine == "vllm" and version is not None and version < _FLOOR:
        raise SettingsError(
            f"image is {reference!r}; vLLM before {'.'.join(map(str, _FLOOR))} runs a model's own code even where "
            "that is forbidden (CVE-2026-22807) and can be made to by a request (CVE-2026-22778)"
            + ("; before 0.11.1 it cannot stream from gs:// either." if version < (0, 11, 1) else "."),
            next_step="Use vllm/vllm-openai:v0.14.1 or newer.",
        )
    return Image(reference=reference, engine=engine, version=version)


def check_arguments(arguments: Sequence[str], image: Image) -> None:
    """Refuse arguments that are ours to give, gone from vLLM, unknown to it, or meant for several nodes.

    Raises:
        SettingsError: names the argument and the reason.
    """
    for argument in arguments:
        if not isinstance(argument, str):
            raise SettingsError(f"engine_arguments has {argument!r}, expected a text.", next_step="Put it in quotes.")
        flag = argument.partition("=")[0].replace("_", "-") if argument.startswith("-") else ""
        for table, what in ((_GONE, "is refused"), (_OURS, "is not yours to set")):
            if flag in table and not (table is _GONE and _is_still_in(image, flag)):
                raise SettingsError(
                    f"engine_arguments has {argument!r}, which {what}: {table[flag]}.",
                    next_step=f"Remove {flag} from engine_arguments.",
                )
        if flag in _MULTI_NODE:
            raise SettingsError(
                f"engine_arguments has {argument!r}, which spreads a model over several nodes; "
                "one server is one pod on one node here.",
                next_step="Remove it, and choose an accelerator whose node holds the model.",
            )
        if flag.startswith("--") and image.engine == "vllm" and image.version is not None:
            _check_known(argument, flag, image.version)


def _is_still_in(image: Image, flag: str) -> bool:
    """Whether the image's version is one of those that had an option, or lies between them."""
    having = vllm_flags.versions_with(flag)
    return bool(having) and image.version is not None and having[0] <= image.version <= having[-1]


def _check_known(argument: str, flag: str, version: tuple[int, int, int]) -> None:
    known = vllm_flags.known_flags(version)
    # Settings inside a JSON option may be given as --option.name.
    plain = flag.partition(".")[0]
    switched_on = plain.replace("--no-", "--", 1)
    if not known or plain in known or switched_on in known:
        return
    raise SettingsError(
        f"engine_arguments has {argument!r}, which vLLM {_dotted(version)} does not know.{_hint(plain, known)}",
        next_step=f"Correct it; `vllm serve --help=all` of {_dotted(version)} lists every option.",
    )


def _hint(flag: str, known: frozenset[str]) -> str:
    """Say which versions know an option, or which option was meant."""
    if others := vllm_flags.versions_with(flag) or vllm_flags.versions_with(flag.replace("--no-", "--", 1)):
        return f" Versions {_dotted(others[0])} to {_dotted(others[-1])} do."
    near = get_close_matches(flag, known, n=1)
    return f" Perhaps you meant {near[0]}?" if near else ""


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


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
    output (vllm#41749, vllm#43163).
    """
    arguments = [
        f"--served-model-name={served_model_name}",
        "--host=0.0.0.0",
        f"--port={PORT}",
        "--load-format=runai_streamer",
    ]
    if gpu_count > 1:
        parallel = "--tp-size" if image.engine == "sglang" else "--tensor-parallel-size"
        arguments.append(f"{parallel}={gpu_count}")
        arguments.append(f"--model-loader-extra-config={json.dumps({'distributed': True})}")
    return [*arguments, *engine_arguments]
