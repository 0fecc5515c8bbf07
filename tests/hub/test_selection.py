"""One weight set is chosen, with what goes with it and nothing twice."""

import json
from collections.abc import Iterable, Mapping

import pytest

from streamway.errors import NoWeightsError
from streamway.hub.repository import HubFile, Repository
from streamway.hub.selection import Selection, select_files


def index(*names: str) -> str:
    return json.dumps({"weight_map": {f"tensor-{n}": name for n, name in enumerate(names)}})


def select(paths: Iterable[str], texts: Mapping[str, str] | None = None) -> Selection:
    files = tuple(HubFile(path=path, size_bytes=10, sha256="a" * 64, blob_id="b" * 40) for path in sorted(paths))
    repository = Repository(
        endpoint="https://hub",
        model_id="org/m",
        revision="main",
        commit_sha="c" * 40,
        licence="mit",
        gated=False,
        private=False,
        scan_done=True,
        scan_issues=(),
        files=files,
    )
    return select_files(repository, lambda file: (texts or {})[file.path].encode())


def weights_of(paths: Iterable[str], texts: Mapping[str, str] | None = None) -> set[str]:
    return {file.path for file in select(paths, texts).weights}


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
PICKLED = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def test_safetensors_are_taken_before_pickles() -> None:
    selection = select(["model.safetensors", "pytorch_model.bin", "config.json"])
    assert [file.path for file in selection.files] == ["config.json", "model.safetensors"]
    assert not selection.pickled


def test_shards_come_with_their_index() -> None:
    paths = [*SHARDS, "model.safetensors.index.json", "consolidated.safetensors"]
    assert weights_of(paths, {"model.safetensors.index.json": index(*SHARDS)}) == set(paths[:3])


def test_pickled_shards_come_with_their_index() -> None:
    paths = [*PICKLED, "pytorch_model.bin.index.json", "optimizer.pt", "training_args.bin"]
    selection = select(paths, {"pytorch_model.bin.index.json": index(*PICKLED)})
    assert {file.path for file in selection.weights} == set(paths[:3])
    assert selection.pickled


def test_a_complete_row_of_shards_needs_no_index() -> None:
    assert weights_of(SHARDS) == set(SHARDS)


def test_a_single_file_of_another_name_is_taken() -> None:
    assert weights_of(["llama-7b.safetensors"]) == {"llama-7b.safetensors"}
    assert weights_of(["model.pth", "scheduler.pt", "rng_state.pth"]) == {"model.pth"}


def test_an_index_decides_between_several_sets() -> None:
    paths = [*SHARDS, "model.safetensors.index.json", "model.safetensors", "other.safetensors"]
    assert weights_of(paths, {"model.safetensors.index.json": index(*SHARDS)}) == {*SHARDS, paths[2]}


def test_copies_in_subfolders_and_other_precisions_are_left() -> None:
    paths = [
        "model.safetensors",
        "model.fp16.safetensors",
        "original/consolidated.00.pth",
        "onnx/model.onnx",
        "gguf/model.gguf",
        "model-q4.gguf",
        "tf_model.h5",
        "flax_model.msgpack",
        "adapter_model.safetensors",
        "README.md",
        "modeling_custom.py",
        ".gitattributes",
    ]
    assert [file.path for file in select(paths).files] == ["model.safetensors"]


def test_companions_of_every_kind_are_taken() -> None:
    companions = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "chat_template.jinja",
        "special_tokens_map.json",
        "LICENSE",
        "1_Pooling/config.json",
        "modules.json",
    }
    assert {file.path for file in select([*companions, "model.safetensors"]).companions} == companions


def test_several_sets_without_an_index_are_not_guessed() -> None:
    with pytest.raises(NoWeightsError, match=r"several files.*a\.safetensors, b\.safetensors"):
        select(["a.safetensors", "b.safetensors"])


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [(SHARDS[:1], "1 of 2 shards"), ((*SHARDS, "model-00001-of-00003.safetensors"), "several files")],
)
def test_an_incomplete_row_of_shards_is_refused(paths: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(NoWeightsError, match=complaint):
        select(paths)


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        (["config.json", "consolidated.00.pth", "params.json"], r"own layout \(consolidated\.00\.pth\)"),
        (["config.json", "consolidated.safetensors"], r"own layout \(consolidated\.safetensors\)"),
        (["config.json", "adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
        (["adapter_config.json", "adapter_model.bin"], "is an adapter"),
    ],
)
def test_what_would_be_refused_once_it_is_here_is_refused_at_the_hub(paths: list[str], complaint: str) -> None:
    with pytest.raises(NoWeightsError, match=complaint) as caught:
        select(paths)
    assert caught.value.next_step


def test_shards_that_an_index_names_must_be_there() -> None:
    with pytest.raises(NoWeightsError, match=r"names 2 shards, of which 1 are not there: model-00002"):
        select([SHARDS[0], "model.safetensors.index.json"], {"model.safetensors.index.json": index(*SHARDS)})


DEEP = pytest.param("[" * 100_000, id="deep")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\0", DEEP])
def test_a_broken_index_is_said_to_be(text: str) -> None:
    with pytest.raises(NoWeightsError, match=r"model\.safetensors\.index\.json is not an index of weights: \S"):
        select([*SHARDS, "model.safetensors.index.json"], {"model.safetensors.index.json": text})


def test_other_formats_are_named_with_advice() -> None:
    with pytest.raises(NoWeightsError, match="it has them as GGUF, ONNX") as caught:
        select(["model.gguf", "onnx/model.onnx", "config.json"])
    assert "repository that this one was made from" in caught.value.next_step


def test_a_repository_without_weights_is_said_to_be() -> None:
    with pytest.raises(NoWeightsError, match="no weights at its root"):
        select(["config.json", "README.md"])


def test_an_adapter_is_told_from_a_model() -> None:
    with pytest.raises(NoWeightsError, match="is an adapter"):
        select(["adapter_config.json", "adapter_model.safetensors"])
