"""Checkpoints that torch itself wrote give what torch had (fixtures/make_fixtures.py made them with torch 2.13)."""

import json
from pathlib import Path

import pytest
from byte_readers import BytesReader
from models import put, stored_rows
from torch_writer import CODES

from streamway.errors import UnsafePickleError
from streamway.weights import convert_weights
from streamway.weights.checkpoints import Checkpoint, read_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"


def opened(name: str) -> Checkpoint:
    return read_checkpoint(BytesReader((FIXTURES / name).read_bytes(), name))


def expected() -> dict[str, tuple[str, list[int], bytes]]:
    rows = {}
    for name, row in json.loads((FIXTURES / "expected.json").read_text()).items():
        code = CODES[row["dtype"].removeprefix("torch.")]
        shape = row["shape"] if code != "F4" else [*row["shape"][:-1], row["shape"][-1] * 2]
        rows[name] = (code, shape, bytes.fromhex(row["bytes"]))
    return rows


@pytest.mark.parametrize("name", ["legacy.bin", *(f"zip_protocol_{number}.bin" for number in (1, 2, 3, 4, 5))])
def test_checkpoints_of_torch_are_converted_byte_for_byte(tmp_path: Path, name: str) -> None:
    put(tmp_path / "source", {"pytorch_model.bin": (FIXTURES / name).read_bytes(), "config.json": {}})
    converted = convert_weights(snapshot_uri=str(tmp_path / "source"), weights_uri=str(tmp_path / "out"))
    assert converted.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    rows = expected()
    del rows["lm_head.weight"]
    assert stored_rows(str(tmp_path / "out" / "model.safetensors")) == rows


def test_a_training_checkpoint_gives_its_model_alone() -> None:
    found = opened("training.pt")
    assert [tensor.name for tensor in found.tensors] == ["weight", "bias"]
    assert (found.path, found.prefix) == (("model",), "module.")
    assert found.left_out[0] == "epoch (int)"
    assert found.left_out[1].startswith("optimizer (")


def test_a_state_dict_with_metadata_is_read() -> None:
    assert [tensor.name for tensor in opened("module.pt").tensors] == ["weight", "bias"]


def test_a_whole_model_is_refused_by_its_class() -> None:
    with pytest.raises(UnsafePickleError, match=r"whole_model\.pt.*torch\.nn\.modules\.linear\.Linear"):
        opened("whole_model.pt")
