"""Judge any safetensors model, in a folder or under a prefix, by reading headers only.

The judgement is a report of findings, not an exception: everything that is wrong is said at once, with what to do.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamway.errors import NoWeightsError, StorageError, StreamwayError, WeightsError
from streamway.storage import open_reader
from streamway.storage.addresses import parent
from streamway.weights.configs import judge_config, name_quantisation
from streamway.weights.findings import ERROR, INFO, WARNING, Finding, error, info, warning
from streamway.weights.folders import (
    ADAPTER_CONFIG_NAME,
    WeightSet,
    reason_to_leave,
    sort_folder,
)
from streamway.weights.sets import ReadSet, read_set
from streamway.weights.shards import INDEX_NAME
from streamway.weights.sources import ModelSource, SourceFile, read_source
from streamway.weights.wording import show_name, show_size

_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json"}
_CODE_OWNERS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_READ = (ADAPTER_CONFIG_NAME, *_CODE_OWNERS, INDEX_NAME)
_MOST_LINES = 10
"""Of one kind of finding, for a person: the index of another model is wrong about every tensor."""
_SEVERITIES = (ERROR, WARNING, INFO)


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """What was found out about a model's weights.

    Args:
        uri: What was judged.
        kind: "model", "lora_adapter", "gguf", "pickle" or "none".
        files: Weight files that were read.
        tensors: How many tensors they hold.
        tensor_bytes: Their bytes.
        dtypes: Bytes of tensors by dtype.
        quantisation: How the weights are quantised; "" where they are not.
        remote_code: Classes that config files take from the repository's own code.
        findings: Errors first.
    """

    uri: str
    kind: str
    files: tuple[str, ...] = ()
    tensors: int = 0
    tensor_bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    quantisation: str = ""
    remote_code: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found that keeps a server from serving rightly."""
        return not any(finding.severity == ERROR for finding in self.findings)

    def lines(self) -> list[str]:
        """Render the report for a terminal."""
        dtypes = ", ".join(f"{code} {show_size(size)}" for code, size in self.dtypes.items())
        lines = [
            f"{self.uri}: {self.kind.replace('_', ' ')}, {'ok' if self.ok else 'NOT ok'}",
            f"  {self.tensors:,} tensors, {show_size(self.tensor_bytes)} in {len(self.files)} files"
            + (f" ({dtypes})" if dtypes else ""),
        ]
        told: Counter[str] = Counter()
        for finding in self.findings:
            told[finding.code] += 1
            if told[finding.code] > _MOST_LINES:
                continue
            lines.append(f"  {finding.severity:7} {finding.code}: {finding.subject}: {finding.message}")
            if finding.next_step:
                lines.append(f"          Next: {finding.next_step}")
        lines += [
            f"  {count - _MOST_LINES:,} more of {code}; --json lists them all."
            for code, count in told.items()
            if count > _MOST_LINES
        ]
        return lines


def validate(uri: str) -> ValidationReport:
    """Judge a folder, a prefix or a single safetensors file by ranged reads of headers.

    Args:
        uri: A local path or gs://.

    Raises:
        StorageError: it cannot be read at all.
    """
    source = _find_source(uri)
    broken = list(_broken_json(source))
    try:
        weights = _find_weights(source)
    except WeightsError as problem:
        return _report(source, _kind_without_set(source), None, None, [*broken, _as_finding(source, problem)])
    if weights.form == "pickle":
        return _report(source, "pickle", weights, None, [*broken, _pickled(weights)])
    found = read_set(source, weights)
    kind = "lora_adapter" if _is_adapter(weights) else "model"
    findings = [*broken, *found.findings, *_strays(source, weights)]
    findings += _adapter_findings(source) if kind == "lora_adapter" else _model_findings(source, found)
    return _report(source, kind, weights, found, findings)


def _find_source(uri: str) -> ModelSource:
    if not uri.endswith(".safetensors"):
        return read_source(uri)
    folder, name = parent(uri)
    reader = open_reader(uri)
    return ModelSource(uri=folder, files=(SourceFile(path=name, uri=uri, size_bytes=reader.size_bytes),))


def _broken_json(source: ModelSource) -> Iterator[Finding]:
    """Find JSON files that cannot be read; from then on they count as empty."""
    for name in _READ:
        try:
            source.read_json(name)
        except StorageError as problem:
            source.jsons[name] = {}
            yield error("not-json", name, problem.problem, "Download the file again.")


def _find_weights(source: ModelSource) -> WeightSet:
    adapter = source.find("adapter_model.safetensors")
    if adapter and (source.find(ADAPTER_CONFIG_NAME) or len(source.files) == 1):
        try:
            return sort_folder(source).weights
        except NoWeightsError:
            return WeightSet(form="safetensors", files=(adapter,))
    return sort_folder(source).weights


def _is_adapter(weights: WeightSet) -> bool:
    return weights.files[0].name.startswith("adapter_")


def _kind_without_set(source: ModelSource) -> str:
    names = [file.name for file in source.files if file.is_at_root]
    if any(name.endswith(".gguf") for name in names):
        return "gguf"
    return "lora_adapter" if ADAPTER_CONFIG_NAME in names else "none"


def _as_finding(source: ModelSource, problem: StreamwayError) -> Finding:
    code = "no-weights" if isinstance(problem, NoWeightsError) else "weight-set"
    return error(code, source.uri, problem.problem, problem.next_step)


def _pickled(weights: WeightSet) -> Finding:
    return error(
        "pickled-weights",
        weights.files[0].path,
        "is a torch pickle, which vLLM's streamer cannot stream and which can run code where it is loaded.",
        "Run streamway convert on the folder; it reads pickles without executing them.",
    )


def _strays(source: ModelSource, weights: WeightSet) -> Iterator[Finding]:
    """Name files that do harm beside the weight set: at the root every safetensors file is loaded."""
    used = {file.path for file in weights.files} | ({weights.index.path} if weights.index else set())
    for file in source.files:
        if file.path in used or (_is_adapter(weights) and file.name.startswith("adapter_")):
            continue
        reason = reason_to_leave(file.path, weights.form)
        if file.is_at_root and file.name.endswith(".safetensors"):
            yield error(
                "stray-weights",
                show_name(file.path),
                "is not part of the model, and vLLM's streamer loads every safetensors file at the root.",
                "Remove it from the folder, or publish the model with streamway, which leaves it behind.",
            )
        elif reason and reason != "not needed for serving":
            yield warning(
                "stray-file", show_name(file.path), f"is not served and makes every pod's download longer: {reason}."
            )


def _adapter_findings(source: ModelSource) -> Iterator[Finding]:
    base = source.read_json(ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
    yield info(
        "lora-adapter",
        "adapter_model.safetensors",
        f"is a LoRA adapter of {show_name(str(base or 'a model it does not name'))}; it cannot be served without it.",
    )


def _model_findings(source: ModelSource, found: ReadSet) -> Iterator[Finding]:
    if len(source.files) == 1 and source.files[0].name.endswith(".safetensors"):
        return  # one file was asked about, not a model
    config = source.read_json("config.json")
    if not config:
        yield error(
            "config-missing",
            "config.json",
            "is missing, so no engine knows what the tensors are.",
            "Add the model's config.json.",
        )
    if len(found.shards) and not any(finding.severity == ERROR for finding in found.findings):
        yield from judge_config(config, found.entries)
    yield from _text_findings(source, config)
    for owner, classes in _remote_code(source).items():
        yield warning(
            "remote-code",
            owner,
            f"takes {', '.join(classes[:4])} from the repository's own code, which runs only with --trust-remote-code.",
            "Read that code before you allow it.",
        )


def _text_findings(source: ModelSource, config: dict[str, Any]) -> Iterator[Finding]:
    names = {file.path for file in source.files if file.size_bytes}
    if not names & _TOKENIZERS and not any(name.endswith(".tiktoken") for name in names):
        yield warning(
            "tokenizer-missing", source.uri, "has no tokenizer, so text cannot be served.", "Add the tokenizer's files."
        )
    templates = any("chat_template" in name for name in names)
    templates = templates or bool(source.read_json("tokenizer_config.json").get("chat_template"))
    chats = any("ForCausalLM" in str(n) or "ConditionalGeneration" in str(n) for n in _architectures(config))
    if chats and not templates:
        yield warning(
            "chat-template-missing",
            source.uri,
            "has no chat template; only /v1/completions will work.",
            "Add chat_template.jinja, or use a model that was tuned for chat.",
        )


def _architectures(config: dict[str, Any]) -> Sequence[Any]:
    found = config.get("architectures")
    return found if isinstance(found, list) else ()


def _remote_code(source: ModelSource) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in _CODE_OWNERS:
        auto_map = source.read_json(name).get("auto_map")
        if isinstance(auto_map, dict) and auto_map:
            found[name] = [show_name(str(value), 80) for value in auto_map.values()]
    return found


def _report(
    source: ModelSource, kind: str, weights: WeightSet | None, found: ReadSet | None, findings: Sequence[Finding]
) -> ValidationReport:
    entries = found.entries if found else {}
    sizes: Counter[str] = Counter()
    for entry in entries.values():
        sizes[entry.dtype.code] += entry.size_bytes
    return ValidationReport(
        uri=source.uri,
        kind=kind,
        files=tuple(file.path for file in weights.files) if weights else (),
        tensors=len(entries),
        tensor_bytes=found.data_bytes if found else 0,
        dtypes=dict(sizes.most_common()),
        quantisation=name_quantisation(source.read_json("config.json"), entries) if found else "",
        remote_code=tuple(name for classes in _remote_code(source).values() for name in classes),
        findings=tuple(sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))),
    )
