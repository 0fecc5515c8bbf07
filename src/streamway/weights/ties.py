"""Which of several names for the same bytes is stored, as the models that load them expect.

Output heads are tied to input embeddings: loaders read the embedding and tie the head themselves, so the embedding's
name is kept. A head is stored a second time only where config.json says that the model does not tie: its class would
then leave a missing head at random values, and a model that serves noise is worse than a matrix stored twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamway.weights.overlaps import group_tied
from streamway.weights.tensors import SourceTensor

_SHARED = ("shared.weight",)
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "token_embedding.weight",
    "embed_in.weight",
    "embeddings.weight",
    "embedding.weight",
)
_HEADS = (
    "lm_head.weight",
    "lm_head.bias",
    "embed_out.weight",
    "output.weight",
    "output_projection.weight",
    "decoder.weight",
    "decoder.bias",
)
_SHARED_RANK, _EMBEDDING_RANK, _OTHER_RANK, _HEAD_RANK = range(4)


@dataclass(frozen=True, kw_only=True)
class TiedNames:
    """What becomes of names that share bytes.

    Args:
        stored: Tensors to be stored, in the source's order.
        aliases: Dropped name to kept name.
        doubled: Names stored although their bytes are stored under another name too.
    """

    stored: tuple[SourceTensor, ...]
    aliases: Mapping[str, str]
    doubled: tuple[str, ...]


def resolve_ties(tensors: Sequence[SourceTensor], config: Mapping[str, Any]) -> TiedNames:
    """Choose the names to store.

    Args:
        tensors: Every tensor of one file.
        config: The model's config.json; empty where there is none.
    """
    untied = ties_embeddings(config) is False
    aliases: dict[str, str] = {}
    doubled: list[str] = []
    for group in group_tied(tensors):
        kept = min(group, key=lambda tensor: _rank(tensor.name))
        for tensor in group:
            if tensor is kept:
                continue
            if untied and _rank(tensor.name) == _HEAD_RANK and _rank(kept.name) <= _EMBEDDING_RANK:
                doubled.append(tensor.name)
            else:
                aliases[tensor.name] = kept.name
    stored = tuple(tensor for tensor in tensors if tensor.name not in aliases)
    return TiedNames(stored=stored, aliases=aliases, doubled=tuple(doubled))


def ties_embeddings(config: Mapping[str, Any]) -> bool | None:
    """Return what config.json says about tied embeddings, None where it says nothing."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None


def is_embedding(name: str) -> bool:
    """Tell whether a name is that of input embeddings."""
    return _rank(name) <= _EMBEDDING_RANK


def is_head(name: str) -> bool:
    """Tell whether a name is that of an output head."""
    return _rank(name) == _HEAD_RANK


def _rank(name: str) -> int:
    for rank, endings in ((_SHARED_RANK, _SHARED), (_EMBEDDING_RANK, _EMBEDDINGS), (_HEAD_RANK, _HEADS)):
        if any(name == ending or name.endswith(f".{ending}") for ending in endings):
            return rank
    return _OTHER_RANK
