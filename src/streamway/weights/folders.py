"""Sort a model's files: the one weight set that is served, the companions that go with it, and what stays behind.

vLLM's streamer loads every `*.safetensors` at the root of what it is pointed at, and every pod pays for every file, so
a release holds one weight set and an allow-list of companions, and nothing else. What is left behind is named with its
reason.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamway.errors import NoWeightsError, SafetensorsError, WeightsError
from streamway.storage.allowed import is_companion
from streamway.weights.shards import INDEX_NAME, SINGLE_NAME
from streamway.weights.sources import ModelSource, SourceFile
from streamway.weights.wording import show_name

PICKLE_INDEX_NAME = "pytorch_model.bin.index.json"
PICKLE_SINGLE_NAME = "pytorch_model.bin"
ADAPTER_CONFIG_NAME = "adapter_config.json"

_SAFETENSORS = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_FRAMEWORKS = (
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".tflite",
    ".mlmodel",
    ".npz",
    ".pb",
    ".gguf",
    ".ggml",
)
_TRAINING_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state.*|trainer_state|random_states.*)\.\w+"
)
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_FOLDERS_LEFT = ("original", "onnx", "openvino", "coreml", "gguf", "metal", "runs", "checkpoints", "logs")


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """The files that together hold the model once.

    Args:
        form: "safetensors" or "pickle".
        files: Its shards, in order of name.
        weight_map: Tensor to file, as the index says; None where there is no index.
        index: The index, None where there is none.
    """

    form: str
    files: tuple[SourceFile, ...]
    weight_map: Mapping[str, str] | None = field(default=None, repr=False)
    index: SourceFile | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model's files, sorted.

    Args:
        weights: What is served.
        companions: What goes with it.
        left_behind: (path, reason) of everything else.
    """

    weights: WeightSet
    companions: tuple[SourceFile, ...]
    left_behind: tuple[tuple[str, str], ...]


def sort_folder(source: ModelSource) -> ModelFolder:
    """Find the one weight set and the companions of a model.

    Raises:
        NoWeightsError: there is none that can be served; what was found instead is named.
        SafetensorsError: two sets compete and nothing tells which one is meant.
    """
    weights = _choose_weights(source)
    used = {file.path for file in weights.files} | ({weights.index.path} if weights.index else set())
    companions: list[SourceFile] = []
    left_behind: list[tuple[str, str]] = []
    for file in source.files:
        if file.path in used:
            continue
        reason = reason_to_leave(file.path, weights.form)
        if reason:
            left_behind.append((file.path, reason))
        else:
            companions.append(file)
    return ModelFolder(weights=weights, companions=tuple(companions), left_behind=tuple(left_behind))


def reason_to_leave(path: str, form: str) -> str:
    """Say why a file that is not part of the weight set is not served either; "" for a companion."""
    if is_companion(path):
        return ""
    folder, name = path.partition("/")[0] if "/" in path else "", path.rpartition("/")[2]
    if folder in _FOLDERS_LEFT or folder.startswith("checkpoint-"):
        return f"{folder}/ holds the model in another form"
    if name.endswith(_SAFETENSORS) or "safetensors.index." in name:
        return "a second set of weights"
    if _TRAINING_STATE.fullmatch(name):
        return "state of the training"
    if name.endswith((*_PICKLES, ".bin.index.json")):
        return "pickled weights beside the ones that are served" if form == "safetensors" else "a second set of weights"
    if name.endswith(_OTHER_FRAMEWORKS):
        return "weights for another engine"
    if name.startswith("adapter_"):
        return "an adapter beside the full model"
    return "not needed for serving"


def _choose_weights(source: ModelSource) -> WeightSet:
    root = [file for file in source.files if file.is_at_root]
    safetensors = [file for file in root if file.name.endswith(_SAFETENSORS) and not _is_beside(file.name)]
    if safetensors:
        return _choose_set(source, safetensors, "safetensors", INDEX_NAME, SINGLE_NAME)
    pickles = [file for file in root if _is_pickled_model(file.name)]
    if pickles:
        return _choose_set(source, pickles, "pickle", PICKLE_INDEX_NAME, PICKLE_SINGLE_NAME)
    raise _no_weights(source)


def _is_beside(name: str) -> bool:
    return name.startswith(("adapter_", "consolidated"))


def _is_pickled_model(name: str) -> bool:
    return name.endswith(_PICKLES) and not _is_beside(name) and not _TRAINING_STATE.fullmatch(name)


def _choose_set(
    source: ModelSource, candidates: Sequence[SourceFile], form: str, index_name: str, single_name: str
) -> WeightSet:
    by_name = {file.name: file for file in candidates}
    index = source.find(index_name)
    if index:
        weight_map = read_weight_map(source, index)
        missing = sorted(set(weight_map.values()) - set(by_name))
        if not missing:
            shards = tuple(by_name[name] for name in sorted(set(weight_map.values())))
            return WeightSet(form=form, files=shards, weight_map=weight_map, index=index)
        if single_name not in by_name:
            raise SafetensorsError(
                f"{index.uri} names {show_name(missing[0])}, and {len(missing)} of its "
                f"{len(set(weight_map.values()))} shards are not there.",
                next_step="Download the model again, all of its shards.",
            )
    if single_name in by_name:
        return WeightSet(form=form, files=(by_name[single_name],))
    return WeightSet(form=form, files=_only_group(source.uri, candidates))


def _only_group(uri: str, candidates: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    """Return the shards where names alone tell that they are one set."""
    groups: dict[object, list[SourceFile]] = {}
    for file in candidates:
        numbered = _NUMBERED.fullmatch(file.name)
        key: object = numbered.group("stem", "count", "suffix") if numbered else file.name
        groups.setdefault(key, []).append(file)
    if len(groups) > 1:
        names = ", ".join(sorted(show_name(file.name) for file in candidates)[:6])
        raise SafetensorsError(
            f"{uri} has {len(groups)} sets of weights at its root, and no index tells which one is the model: {names}.",
            next_step="Remove all but one, or add the index that names the shards.",
        )
    (group,) = groups.values()
    numbered = _NUMBERED.fullmatch(group[0].name)
    if numbered and int(numbered["count"]) != len(group):
        raise SafetensorsError(
            f"{uri} has {len(group)} of the {int(numbered['count'])} shards that {group[0].name} speaks of.",
            next_step="Download the model again, all of its shards.",
        )
    return tuple(sorted(group, key=lambda file: file.name))


def read_weight_map(source: ModelSource, index: SourceFile) -> dict[str, str]:
    """Read an index's map of tensors to files.

    Raises:
        SafetensorsError: it is not a map of names to files beside it.
    """
    weight_map: Any = source.read_json(index.path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
        raise SafetensorsError(
            f"{index.uri} has no weight_map of tensors to files beside it.", next_step="Download the index again."
        )
    return dict(weight_map)


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not set(value) & set("/\\\0") and value not in (".", "..")


def _no_weights(source: ModelSource) -> WeightsError:
    names = [file.name for file in source.files if file.is_at_root]
    if ADAPTER_CONFIG_NAME in names:
        base = source.read_json(ADAPTER_CONFIG_NAME).get("base_model_name_or_path") or "its base model"
        return NoWeightsError(
            f"{source.uri} is a LoRA adapter of {show_name(str(base))}, not a full model.",
            next_step="Serve its base model, or merge the adapter into it first (peft's merge_and_unload).",
        )
    if found := _ending(names, (".gguf",)):
        return NoWeightsError(
            f"{source.uri} has its weights only as GGUF ({found}), which vLLM's streamer cannot stream.",
            next_step="Use the repository that this one was quantised from; its model card names it as base_model.",
        )
    if found := next((name for name in names if name.startswith("consolidated")), ""):
        return NoWeightsError(
            f"{source.uri} has its weights only in their author's own layout ({found}), under names that "
            "Hugging Face's config.json does not describe.",
            next_step="Use the repository of the same model in Hugging Face's layout (often with the suffix -hf).",
        )
    if found := _ending(names, _OTHER_FRAMEWORKS):
        return NoWeightsError(
            f"{source.uri} has weights only for another framework ({found}).",
            next_step="Ask the model's owner for safetensors.",
        )
    listed = ", ".join(show_name(name, 60) for name in names[:8]) or "no files at its root"
    return NoWeightsError(
        f"{source.uri} has no weights: expected *.safetensors or pytorch_model*.bin at its root, found {listed}.",
        next_step="Check the model id and revision; the repository may hold only code or a tokenizer.",
    )


def _ending(names: Iterable[str], suffixes: tuple[str, ...]) -> str:
    return next((name for name in names if name.endswith(suffixes)), "")
