"""Which files of a repository serving needs: one weight set, its companions, and nothing twice.

Repositories hold the same weights several times: as safetensors and as pickles, consolidated and in shards, in
half precision beside the full one, as ONNX or GGUF in subfolders. Only one set may reach the engine.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from streamway.errors import NoWeightsError
from streamway.hub.repository import HubFile, Repository
from streamway.storage.allowed import is_companion

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[a-z]+)")
_NOT_SAFETENSORS = ("consolidated*", "adapter_*", "*.fp16.*", "*.bf16.*", "*.fp32.*", "*.int8.*", "*.non_ema.*")
_NOT_PICKLES = (
    *("training_args*", "optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*"),
    *("adapter_*", "consolidated*"),
    *("*.fp16.*", "*.bf16.*", "*.fp32.*", "*.non_ema.*", "*_states*"),
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_FORMATS = {".gguf": "GGUF", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".ot": "Rust"}

ReadText = Callable[[HubFile], bytes]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is taken of a repository.

    Args:
        weights: The files of one weight set, with its index if it has one.
        companions: Configuration, tokenizer, templates, licence.
        pickled: Whether the weights must be converted.
    """

    weights: tuple[HubFile, ...]
    companions: tuple[HubFile, ...]
    pickled: bool

    @property
    def files(self) -> tuple[HubFile, ...]:
        """All of it, in order of path."""
        return tuple(sorted((*self.weights, *self.companions), key=lambda file: file.path))

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def select_files(repository: Repository, read: ReadText) -> Selection:
    """Choose one weight set and its companions.

    Args:
        repository: What there is.
        read: Fetches a small file, for indexes.

    Raises:
        NoWeightsError: there are no weights that can be served, or it cannot be told which are meant.
    """
    root = {file.path: file for file in repository.files if "/" not in file.path}
    companions = tuple(file for file in repository.files if is_companion(file.path))
    _refuse_adapter(repository, root)
    for suffixes, refused, pickled in (
        ((".safetensors",), _NOT_SAFETENSORS, False),
        (_PICKLES, _NOT_PICKLES, True),
    ):
        weights = _weight_set(repository, root, suffixes, refused, read)
        if weights:
            return Selection(weights=weights, companions=companions, pickled=pickled)
    raise _no_weights(repository)


def _weight_set(
    repository: Repository,
    root: Mapping[str, HubFile],
    suffixes: Sequence[str],
    refused: Sequence[str],
    read: ReadText,
) -> tuple[HubFile, ...]:
    candidates = {
        path: file
        for path, file in root.items()
        if path.endswith(tuple(suffixes)) and not any(fnmatchcase(path, pattern) for pattern in refused)
    }
    for name in ("model.safetensors", "pytorch_model.bin"):
        if name.endswith(tuple(suffixes)):
            index = root.get(f"{name}.index.json")
            if index:
                return _indexed(repository, index, candidates, read)
            if name in candidates:
                return (candidates[name],)
    indexes = [file for path, file in root.items() if path.endswith(tuple(f"{s}.index.json" for s in suffixes))]
    if len(indexes) == 1:
        return _indexed(repository, indexes[0], candidates, read)
    return _unnamed_set(repository, candidates)


def _indexed(
    repository: Repository, index: HubFile, candidates: Mapping[str, HubFile], read: ReadText
) -> tuple[HubFile, ...]:
    try:
        names = sorted({str(name) for name in json.loads(read(index))["weight_map"].values()})
        if not names:
            raise ValueError("it names no file")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NoWeightsError(
            f"{repository.model_id}: {index.path} is not an index of weights: {error}.",
            next_step=f"Report it on {repository.page}/discussions.",
        ) from error
    missing = [name for name in names if name not in candidates]
    if missing:
        raise NoWeightsError(
            f"{repository.model_id}: {index.path} names {len(names)} shards, of which {len(missing)} are not there: "
            f"{', '.join(missing[:5])}.",
            next_step="Choose a revision that is complete.",
        )
    return (index, *(candidates[name] for name in names))


def _unnamed_set(repository: Repository, candidates: Mapping[str, HubFile]) -> tuple[HubFile, ...]:
    """Accept weights that need no index to be understood: one file, or one complete row of shards."""
    shards = {path: match for path in candidates if (match := _SHARD.fullmatch(path))}
    if not shards and len(candidates) <= 1:
        return tuple(candidates.values())
    sets = {(match["stem"], match["count"], match["suffix"]) for match in shards.values()}
    if len(sets) == 1 and len(shards) == len(candidates):
        count = int(next(iter(sets))[1])
        if len(shards) == count:
            return tuple(candidates[path] for path in sorted(candidates))
        raise NoWeightsError(
            f"{repository.model_id} holds {len(shards)} of {count} shards: {', '.join(sorted(candidates)[:5])}.",
            next_step="Choose a revision that is complete.",
        )
    raise NoWeightsError(
        f"{repository.model_id} holds several files that could be its weights, and no index says which: "
        f"{', '.join(sorted(candidates)[:8])}.",
        next_step="Ask the authors for an index, or serve a repository that holds one weight set.",
    )


def _refuse_adapter(repository: Repository, root: Mapping[str, HubFile]) -> None:
    if "adapter_config.json" in root and "config.json" not in root:
        raise _adapter(repository)


def _adapter(repository: Repository) -> NoWeightsError:
    return NoWeightsError(
        f"{repository.model_id} is an adapter (adapter_config.json), not a model.",
        next_step="Merge it into its base model, or serve the base model.",
    )


def _no_weights(repository: Repository) -> NoWeightsError:
    others = {
        name for file in repository.files for suffix, name in _OTHER_FORMATS.items() if file.path.endswith(suffix)
    }
    paths = [file.path for file in repository.files]
    if "adapter_config.json" in paths:
        return _adapter(repository)
    if found := next((path for path in paths if path.startswith("consolidated")), ""):
        return NoWeightsError(
            f"{repository.model_id} has its weights only in their author's own layout ({found}), under names that "
            "Hugging Face's config.json does not describe.",
            next_step="Choose the repository of the same model in Hugging Face's layout (often with the suffix -hf).",
        )
    problem = f"{repository.model_id} has no weights at its root as safetensors or torch checkpoints"
    if others:
        return NoWeightsError(
            f"{problem}; it has them as {', '.join(sorted(others))}.",
            next_step="Choose the repository that this one was made from; its model card usually names it.",
        )
    return NoWeightsError(f"{problem}.", next_step=f"Look at {repository.page}/tree/{repository.commit_sha}.")
