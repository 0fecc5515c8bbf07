"""Of several names for the same bytes the one that loaders look for is stored, and the others are recorded."""

import pytest
from byte_readers import BytesReader
from torch_writer import Tensor, checkpoint_bytes, tensor

from streamway.weights.checkpoints import read_checkpoint
from streamway.weights.ties import resolve_ties, ties_embeddings

BYTES = bytes(range(16))


def resolved(names: list[str], config: dict[str, object]) -> tuple[list[str], dict[str, str], tuple[str, ...]]:
    shared = tensor(BYTES, (4,))
    state = {name: Tensor(shared.storage, (4,)) for name in names}
    ties = resolve_ties(read_checkpoint(BytesReader(checkpoint_bytes(state))).tensors, config)
    return [item.name for item in ties.stored], dict(ties.aliases), ties.doubled


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["lm_head.weight", "model.embed_tokens.weight"], "model.embed_tokens.weight"),
        (["transformer.wte.weight", "lm_head.weight"], "transformer.wte.weight"),
        (["decoder.embed_tokens.weight", "shared.weight", "lm_head.weight"], "shared.weight"),
        (["cls.predictions.decoder.weight", "bert.word_embeddings.weight"], "bert.word_embeddings.weight"),
        (["cls.predictions.decoder.bias", "cls.predictions.bias"], "cls.predictions.bias"),
        (["embed_out.weight", "gpt_neox.embed_in.weight"], "gpt_neox.embed_in.weight"),
        (["output.weight", "tok_embeddings.weight"], "tok_embeddings.weight"),
        (["b.weight", "a.weight"], "b.weight"),
    ],
)
def test_the_name_that_loaders_look_for_is_kept(names: list[str], kept: str, config: dict[str, object]) -> None:
    stored, aliases, doubled = resolved(names, config)
    assert stored == [kept]
    assert aliases == {name: kept for name in names if name != kept}
    assert doubled == ()


@pytest.mark.parametrize("config", [{"tie_word_embeddings": False}, {"text_config": {"tie_word_embeddings": False}}])
def test_a_head_is_stored_again_where_the_model_does_not_tie(config: dict[str, object]) -> None:
    stored, aliases, doubled = resolved(["model.embed_tokens.weight", "lm_head.weight"], config)
    assert stored == ["model.embed_tokens.weight", "lm_head.weight"]
    assert (aliases, doubled) == ({}, ("lm_head.weight",))


def test_other_shared_tensors_stay_aliases_where_the_model_does_not_tie() -> None:
    stored, aliases, _ = resolved(["shared.weight", "encoder.embed_tokens.weight"], {"tie_word_embeddings": False})
    assert stored == ["shared.weight"]
    assert aliases == {"encoder.embed_tokens.weight": "shared.weight"}


def test_the_outer_setting_wins_over_the_inner_one() -> None:
    assert ties_embeddings({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}) is True
    assert ties_embeddings({"text_config": "x"}) is None
