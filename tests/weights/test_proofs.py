"""The proof finds every difference between a result and its source, and names the tensor."""

import itertools
from pathlib import Path

import pytest
from byte_readers import BytesReader
from hypothesis import given, settings
from hypothesis import strategies as st
from models import small_model
from torch_writer import checkpoint_bytes

from streamway.errors import WeightsError
from streamway.storage import open_reader, read_file, write_file, write_files
from streamway.storage.digests import crc32c
from streamway.storage.segments import FilePlan
from streamway.weights.checkpoints import read_checkpoint
from streamway.weights.proofs import Witness, WitnessReader, prove_shard
from streamway.weights.shards import Shard, build_shard


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for files: once on disk, once in a bucket."""
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket_uri")


def written(root: str) -> tuple[Shard, str, Witness]:
    """Write a small model as a conversion does."""
    source = f"{root}/pytorch_model.bin"
    write_file(source, checkpoint_bytes({k: v for k, v in small_model().items() if k != "lm_head.weight"}))
    shard = build_shard("model.safetensors", read_checkpoint(open_reader(source)).tensors)
    witness = Witness(shard.tensors)
    uri = f"{root}/{shard.name}"
    write_files([FilePlan(uri=uri, segments=witness.segments(shard))])
    return shard, uri, witness


def test_an_equal_result_is_proved(root: str) -> None:
    shard, uri, witness = written(root)
    proved = prove_shard(shard, uri, witness)
    assert {tensor.name: tensor.size_bytes for tensor in proved} == {t.name: t.size_bytes for t in shard.tensors}
    data = read_file(uri)
    first = shard.tensors[0]
    assert proved[0].crc32c == crc32c(data[len(shard.header) : len(shard.header) + first.size_bytes])


def test_what_an_earlier_process_moved_is_proved_from_its_source(root: str) -> None:
    shard, uri, _ = written(root)
    assert prove_shard(shard, uri, Witness(shard.tensors)) == prove_shard(shard, uri, Witness(shard.tensors))


def test_what_the_disk_gave_back_while_it_was_written_must_be_what_the_sources_add_up_to(tmp_path: Path) -> None:
    shard, uri, witness = written(str(tmp_path))
    stored = crc32c(read_file(uri))
    assert prove_shard(shard, uri, witness, disk_crc32c=stored) == prove_shard(shard, uri, witness)
    with pytest.raises(WeightsError, match=r"model\.safetensors: tensor .* other bytes"):
        prove_shard(shard, uri, witness, disk_crc32c=stored ^ 1)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.999])
def test_one_changed_byte_is_found(root: str, where: float) -> None:
    shard, uri, witness = written(root)
    data = bytearray(read_file(uri))
    data[len(shard.header) + int(where * shard.data_bytes)] ^= 1
    write_file(uri, bytes(data))
    with pytest.raises(WeightsError, match=r"model\.safetensors: tensor .* other bytes"):
        prove_shard(shard, uri, witness)


def test_another_shape_is_found(root: str) -> None:
    shard, uri, witness = written(root)
    write_file(uri, read_file(uri).replace(b'"shape":[6,4]', b'"shape":[4,6]'))
    with pytest.raises(WeightsError, match=r"embed_tokens\.weight has another dtype or shape"):
        prove_shard(shard, uri, witness)


def test_another_dtype_is_found(root: str) -> None:
    shard, uri, witness = written(root)
    write_file(uri, read_file(uri).replace(b'"dtype":"F32"', b'"dtype":"I32"'))
    with pytest.raises(WeightsError, match=r"layers\.0\.scale has another dtype or shape"):
        prove_shard(shard, uri, witness)


def test_another_name_is_found(root: str) -> None:
    shard, uri, witness = written(root)
    write_file(uri, read_file(uri).replace(b"layers.0.scale", b"layers.9.scale"))
    with pytest.raises(WeightsError, match=r"layers\.[09]\.scale is not in both"):
        prove_shard(shard, uri, witness)


@settings(deadline=None, max_examples=150)
@given(
    edges=st.lists(st.integers(0, 100), min_size=2, max_size=6, unique=True).map(sorted),
    parts=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 40)), max_size=8),
)
def test_a_witness_knows_every_range_however_it_was_read(edges: list[int], parts: list[tuple[int, int]]) -> None:
    data = bytes(range(100)) + b"!"
    spans = list(itertools.pairwise(edges))
    source = BytesReader(data)
    witness = WitnessReader(source, spans)
    for offset, length in parts:
        witness.read(offset, min(length, 100 - offset))
    for start, end in spans:
        assert witness.checksum(start, end) == crc32c(data[start:end])


def test_a_witness_reads_nothing_twice() -> None:
    source = BytesReader(bytes(range(100)))
    witness = WitnessReader(source, [(0, 30), (30, 70), (80, 100)])
    witness.read(0, 50)
    witness.read(50, 50)
    given_bytes = source.given_bytes
    for start, end in ((0, 30), (30, 70), (80, 100)):
        witness.checksum(start, end)
    assert source.given_bytes == given_bytes == 100
