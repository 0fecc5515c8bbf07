"""Which of a caller's own arguments an engine is not given: ours, removed ones, unknown ones, those for several nodes.

Facts about versions were read in the engines' own argument parsers and release notes; each refusal gives its reason,
because an engine that crashes on an unknown flag says so only at the end of a long log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from streamway.errors import SettingsError
from streamway.server.engine import PORT, Image
from streamway.server.flag_history import FlagHistory, Version
from streamway.server.sglang_flags import FLAGS as SGLANG_FLAGS
from streamway.server.vllm_flags import FLAGS as VLLM_FLAGS

_OURS = {
    "--served-model-name": "use served_model_name",
    "--host": "the server listens on all addresses of its pod",
    "--port": f"the server listens on {PORT}",
    "--load-format": "weights are streamed by the Run:ai model streamer",
    "--model-loader-extra-config": "the streamer's settings follow from the pod's resources",
    "--model": "the release is the model",
    "--tensor-parallel-size": "use gpu_count",
}


@dataclass(frozen=True, kw_only=True)
class _Rules:
    """What one engine's arguments must obey.

    Args:
        flags: Its options by version.
        help: The command that lists them.
        ours: Options that follow from the spec, and from what.
        gone: Options that were removed, and why.
        several_nodes: Options that spread a model over several nodes.
        called: Its names for what the other engine calls otherwise.
    """

    flags: FlagHistory
    help: str
    ours: Mapping[str, str]
    gone: Mapping[str, str] = field(default_factory=dict)
    several_nodes: frozenset[str]
    called: Mapping[str, str]


_RULES = {
    "vllm": _Rules(
        flags=VLLM_FLAGS,
        help="vllm serve --help=all",
        ours=_OURS
        | {
            "-tp": "use gpu_count",
            "--api-key": "arguments are readable by everyone who may read pods; put VLLM_API_KEY into a Secret",
        },
        gone={
            "--disable-log-requests": "it was removed from vLLM, where requests are not logged unless "
            "--enable-log-requests is given, and current versions stop at it with 'unrecognized arguments'",
            "--use-v2-block-manager": "it was removed from vLLM, which has only that block manager",
            "--worker-use-ray": "it was removed from vLLM in favour of --distributed-executor-backend",
            "--device": "it was removed from vLLM, which finds the device by itself",
            "--num-scheduler-steps": "it was removed from vLLM with the first engine",
            "--guided-decoding-backend": "it was removed from vLLM in favour of --structured-outputs-config",
        },
        several_nodes=frozenset(
            {"--pipeline-parallel-size", "-pp", "--nnodes", "--node-rank", "--master-addr", "--headless"}
        ),
        called={
            "--context-length": "--max-model-len",
            "--mem-fraction-static": "--gpu-memory-utilization",
            "--max-running-requests": "--max-num-seqs",
        },
    ),
    "sglang": _Rules(
        flags=SGLANG_FLAGS,
        help="python3 -m sglang.launch_server --help",
        ours=_OURS
        | {
            "--model-path": "the release is the model",
            "--tp-size": "use gpu_count",
            "--tp": "use gpu_count",
            # It has no variable for either.
            "--api-key": "arguments are readable by everyone who may read pods, and SGLang takes its key nowhere else",
            "--admin-api-key": "arguments are readable by everyone who may read pods, and SGLang takes its key "
            "nowhere else",
        },
        several_nodes=frozenset(
            {
                *("--pipeline-parallel-size", "--pp-size", "--pp"),
                *("--nnodes", "--node-rank", "--dist-init-addr", "--nccl-init-addr"),
            }
        ),
        called={
            "--max-model-len": "--context-length",
            "--gpu-memory-utilization": "--mem-fraction-static",
            "--max-num-seqs": "--max-running-requests",
            "--enforce-eager": "--disable-cuda-graph",
        },
    ),
}


def check_arguments(arguments: Sequence[str], image: Image) -> None:
    """Refuse arguments that are ours to give, gone from the engine, unknown to it, or meant for several nodes.

    Raises:
        SettingsError: names the argument and the reason.
    """
    rules = _RULES[image.engine]
    for argument in arguments:
        if not isinstance(argument, str):
            raise SettingsError(f"engine_arguments has {argument!r}, expected a text.", next_step="Put it in quotes.")
        if argument.startswith("-"):
            _check_allowed(argument, rules, image)
        if argument.startswith("--") and image.version is not None:
            _check_known(argument, image, image.version)


def check_served_model_name(name: str, image: Image) -> None:
    """Refuse a name in the API that the engine stops at.

    Raises:
        SettingsError: names it and the reason.
    """
    if image.engine == "sglang" and ":" in name:
        raise SettingsError(
            f"served_model_name is {name!r}, expected one without a colon: SGLang reads what follows as an adapter's.",
            next_step="Choose another name, or leave it empty for the Hugging Face id.",
        )


def _check_allowed(argument: str, rules: _Rules, image: Image) -> None:
    flag = argument.partition("=")[0].replace("_", "-")
    for table, what in ((rules.gone, "is refused"), (rules.ours, "is not yours to set")):
        if flag in table and not (table is rules.gone and _is_still_in(image, flag)):
            raise SettingsError(
                f"engine_arguments has {argument!r}, which {what}: {table[flag]}.",
                next_step=f"Remove {flag} from engine_arguments.",
            )
    if flag in rules.several_nodes:
        raise SettingsError(
            f"engine_arguments has {argument!r}, which spreads a model over several nodes; "
            "one server is one pod on one node here.",
            next_step="Remove it, and choose an accelerator whose node holds the model.",
        )


def _is_still_in(image: Image, flag: str) -> bool:
    """Whether the image's version is one of those that had an option, or lies between them."""
    having = _RULES[image.engine].flags.versions_with(flag)
    return bool(having) and image.version is not None and having[0] <= image.version <= having[-1]


def _check_known(argument: str, image: Image, version: Version) -> None:
    rules = _RULES[image.engine]
    known = rules.flags.known(version)
    spellings = _spellings(image.engine, argument.partition("=")[0])
    if not known or not known.isdisjoint(spellings):
        return
    raise SettingsError(
        f"engine_arguments has {argument!r}, which {image.title} {_dotted(version)} does not know."
        f"{_hint(rules, spellings, known)}",
        next_step=f"Correct it; `{rules.help}` of {_dotted(version)} lists every option.",
    )


def _spellings(engine: str, written: str) -> tuple[str, ...]:
    """Names by which an engine would look an option up."""
    if engine == "sglang":
        return (written,)
    # Settings inside a JSON option may be given as --option.name, and what can be switched off has a --no- form.
    plain = written.replace("_", "-").partition(".")[0]
    return plain, plain.replace("--no-", "--", 1)


def _hint(rules: _Rules, spellings: Sequence[str], known: frozenset[str]) -> str:
    """Say which versions know an option, what this engine calls it, or which option was meant."""
    for flag in spellings:
        if others := rules.flags.versions_with(flag):
            return f" Versions {_dotted(others[0])} to {_dotted(others[-1])} do."
        if flag in rules.called:
            return f" It has {rules.called[flag]} for that."
    near = get_close_matches(spellings[0], known, n=1)
    return f" Perhaps you meant {near[0]}?" if near else ""


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
