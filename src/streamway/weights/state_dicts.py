"""Find the weights in what was pickled, and name everything else that was there.

`torch.save` is given a state dict, or a training checkpoint that has one inside; the tensors of optimisers and the
like must not be served. Nothing is guessed: where two state dicts compete, or none can be found, the error lists the
keys that a person needs to decide.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from streamway.errors import CheckpointError
from streamway.weights.pickle_machine import Opaque
from streamway.weights.torch_objects import TensorRef
from streamway.weights.wording import show_name

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts keep the state dict, as Lightning, fairseq, DeepSpeed and timm write them."""

_WRAPPED = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of every name of the model that they wrap."""
_MAX_DEPTH = 8
_MAX_NAME = 4096
_MOST_NAMED = 8
_CONTROL_OR_SURROGATE = re.compile("[\x00-\x1f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """The weights of one checkpoint.

    Args:
        tensors: Every tensor by its name.
        path: Keys that lead to them, such as ("model",).
        prefix: What was taken off every name: "module." or "_orig_mod." where a wrapper was saved, or both.
        left_out: What else the checkpoint holds and serving does not need, one phrase each.
    """

    tensors: dict[str, TensorRef]
    path: tuple[str, ...]
    prefix: str
    left_out: tuple[str, ...]


def find_state_dict(root: Any, *, subject: str) -> StateDict:
    """Find the one state dict in a checkpoint.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    path: tuple[str, ...] = ()
    left_out: list[str] = []
    current = root
    while not _holds_tensors(current):
        key = _only_wrapper(current, path, subject)
        left_out += _name_left_out(path, [item for item in current.items() if item[0] != key])
        current, path = current[key], (*path, key)
        if len(path) > _MAX_DEPTH:
            raise CheckpointError(f"{subject}: its state dict is nested more than {_MAX_DEPTH} deep.")
    tensors = {name: value for name, value in current.items() if isinstance(value, TensorRef)}
    left_out += _name_left_out(path, [item for item in current.items() if item[0] not in tensors])
    _check_names(tensors, subject)
    prefix = _wrapping(tensors)
    named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return StateDict(tensors=named, path=path, prefix=prefix, left_out=tuple(left_out))


def _wrapping(names: Collection[str]) -> str:
    """Return what wrappers, also one in another, put in front of every name."""
    prefix = ""
    for _ in range(_MAX_DEPTH):
        longer = (prefix + part for part in _WRAPPED)
        prefix = next((p for p in longer if all(name.startswith(p) and name != p for name in names)), prefix)
    return prefix


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, TensorRef) for item in value.values())


def _only_wrapper(current: Any, path: tuple[str, ...], subject: str) -> str:
    if not isinstance(current, dict):
        raise CheckpointError(
            f"{subject}: {_place(path)} is a {_kind(current)}, expected a dict of named tensors.",
            next_step="Save the model's state dict: torch.save(model.state_dict(), ...).",
        )
    found = [key for key in WRAPPERS if _count_tensors(current.get(key))]
    if len(found) == 1:
        return found[0]
    keys = ", ".join(show_name(str(key), 40) for key in list(current)[:8]) or "nothing"
    problem = f"has competing state dicts under {' and '.join(found)}" if found else "has no tensors by name"
    raise CheckpointError(
        f"{subject}: {_place(path)} {problem}; it has the keys {keys}.",
        next_step="Save the state dict that should be served, alone: torch.save(model.state_dict(), ...).",
    )


def _check_names(tensors: dict[Any, TensorRef], subject: str) -> None:
    for name in tensors:
        if type(name) is not str:
            raise CheckpointError(f"{subject}: a tensor is named by a {type(name).__name__}, expected text.")
        if not name or len(name) > _MAX_NAME or name == "__metadata__" or _CONTROL_OR_SURROGATE.search(name):
            raise CheckpointError(f"{subject}: {show_name(name)} cannot be the name of a tensor in safetensors.")


def _name_left_out(path: tuple[str, ...], items: Sequence[tuple[Any, Any]]) -> Iterator[str]:
    """Name the first few and count the rest: a small pickle can hold one large list under any number of keys."""
    for key, value in items[:_MOST_NAMED]:
        yield _describe(path, key, value)
    if len(items) > _MOST_NAMED:
        yield f"{len(items) - _MOST_NAMED:,} more"


def _describe(path: tuple[str, ...], key: Any, value: Any) -> str:
    place = ".".join(show_name(part, 40) for part in (*path, str(key)))
    tensors = _count_tensors(value)
    return f"{place} ({tensors} tensors)" if tensors else f"{place} ({_kind(value)})"


def _kind(value: Any) -> str:
    return (
        value.what if isinstance(value, Opaque) else "tensor" if isinstance(value, TensorRef) else type(value).__name__
    )


def _place(path: tuple[str, ...]) -> str:
    return f"what it holds under {'.'.join(path)}" if path else "what it holds"


def _count_tensors(value: Any) -> int:
    return sum(1 for _ in _walk(value))


def _walk(value: Any) -> Iterator[TensorRef]:
    """Yield every tensor inside a value; each container once, so that loops and shared parts end."""
    pending, seen = [value], {id(value)}
    while pending:
        current = pending.pop()
        if isinstance(current, TensorRef):
            yield current
            continue
        children = current.values() if isinstance(current, dict) else current
        if isinstance(current, dict | list | tuple):
            for child in children:
                if isinstance(child, TensorRef) or (isinstance(child, dict | list | tuple) and id(child) not in seen):
                    seen.add(id(child))
                    pending.append(child)
