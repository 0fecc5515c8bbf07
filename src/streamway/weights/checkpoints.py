"""One torch checkpoint file, opened: its format recognised, its tensors checked and described as bytes."""

from dataclasses import dataclass

from streamway.errors import CheckpointError
from streamway.storage.segments import ByteReader
from streamway.weights.dtypes import DTYPES, TORCH_DTYPES, torch_element_bytes
from streamway.weights.state_dicts import find_state_dict
from streamway.weights.tensors import SourceTensor, strided_dimensions
from streamway.weights.torch_archive import read_torch_archive
from streamway.weights.torch_files import TorchFile
from streamway.weights.torch_legacy import read_torch_legacy
from streamway.weights.torch_objects import TensorRef
from streamway.weights.wording import show_name

_PROBE_BYTES = 512


@dataclass(frozen=True, slots=True)
class _OtherForm:
    """A kind of file that is often found where a checkpoint should be."""

    offset: int
    mark: bytes
    what: str
    step: str


_OTHER_FORMS = (
    _OtherForm(
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "Download it with the Hub's client, or run git lfs pull.",
    ),
    _OtherForm(
        257,
        b"ustar",
        "a tar archive, as torch wrote before 0.1.10",
        "Load it with torch where it is trusted, and save its state dict again.",
    ),
    _OtherForm(0, b"GGUF", "a GGUF file", "Use the safetensors repository that it was quantised from."),
    _OtherForm(8, b'{"', "a safetensors file under another name", "Rename it to model.safetensors."),
    _OtherForm(0, b"\x89HDF", "an HDF5 (TensorFlow) file", "Use the model's PyTorch or safetensors weights."),
    _OtherForm(0, b"PK\5\6", "an empty zip archive", "Download the file again."),
    _OtherForm(0, b"<", "a web page", "Download the file again; a proxy or a login page answered in its place."),
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The weights of one file.

    Args:
        tensors: Every tensor, in the file's order.
        form: "zip" or "legacy".
        path: Keys that led to the state dict.
        prefix: What was taken off every name.
        left_out: What else the file holds, one phrase each.
    """

    tensors: tuple[SourceTensor, ...]
    form: str
    path: tuple[str, ...]
    prefix: str
    left_out: tuple[str, ...]


def read_checkpoint(reader: ByteReader) -> Checkpoint:
    """Open a torch checkpoint of any format that can be read without executing it.

    Raises:
        UnsafePickleError: its pickle asks for more than tensors.
        CheckpointError: it is malformed, of another format, or holds what safetensors cannot.
    """
    opened = _open(reader)
    found = find_state_dict(opened.root, subject=reader.uri)
    tensors = tuple(_describe(name, tensor, opened) for name, tensor in found.tensors.items())
    _refuse_inflation(tensors, reader)
    return Checkpoint(tensors=tensors, form=opened.form, path=found.path, prefix=found.prefix, left_out=found.left_out)


def _open(reader: ByteReader) -> TorchFile:
    start = reader.read(0, min(_PROBE_BYTES, reader.size_bytes))
    if start.startswith(b"PK\3\4"):
        return read_torch_archive(reader)
    for form in _OTHER_FORMS:
        if start[form.offset : form.offset + len(form.mark)] == form.mark:
            raise CheckpointError(f"{reader.uri} is not a torch checkpoint: it is {form.what}.", next_step=form.step)
    if not start:
        raise CheckpointError(f"{reader.uri} is empty.", next_step="Download the file again.")
    return read_torch_legacy(reader)


def _describe(name: str, tensor: TensorRef, opened: TorchFile) -> SourceTensor:
    code = _safetensors_code(name, tensor, opened.reader.uri)
    element_bytes = torch_element_bytes(tensor.dtype)
    place = opened.storages[tensor.storage.key]
    shape, dimensions = tensor.shape, strided_dimensions(tensor.shape, tensor.strides, element_bytes)
    start = tensor.storage.start_bytes + tensor.offset * element_bytes
    described = SourceTensor(
        name=name,
        dtype=DTYPES[code],
        shape=_unpacked(shape) if code == "F4" else shape,
        reader=opened.reader,
        offset_bytes=place.offset + start,
        dimensions=dimensions,
        element_bytes=element_bytes,
        swap=opened.big_endian,
    )
    end = described.span[1] - place.offset
    limit = tensor.storage.start_bytes + min(tensor.storage.size_bytes, place.size_bytes)
    if described.size_bytes and end > limit:
        raise CheckpointError(
            f"{opened.reader.uri}: tensor {show_name(name)} ends at byte {end:,} of its storage, which has {limit:,}.",
            next_step="Download the file again; if it is the same, ask the model's owner for safetensors.",
        )
    return described


def _safetensors_code(name: str, tensor: TensorRef, subject: str) -> str:
    if tensor.view:
        raise CheckpointError(
            f"{subject}: tensor {show_name(name)} is a lazy {tensor.view} view, whose values are not its bytes.",
            next_step=f"Save it again after tensor.resolve_{tensor.view}().",
        )
    code = TORCH_DTYPES.get(tensor.dtype)
    if code is None:
        raise CheckpointError(
            f"{subject}: tensor {show_name(name)} has dtype {tensor.dtype}, which safetensors cannot hold.",
            next_step="Save the model again with a dtype that safetensors has, such as bfloat16.",
        )
    return code


def _unpacked(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Count float4 elements one by one, as safetensors does; torch counts pairs."""
    return (*shape[:-1], shape[-1] * 2) if shape else (2,)


def _refuse_inflation(tensors: tuple[SourceTensor, ...], reader: ByteReader) -> None:
    """Stop a small file from growing without end: expanded views repeat the same bytes.

    Every honest view is at most as large as its storage, save small expanded buffers.
    """
    allowance = reader.size_bytes + 64 * 1024 * 1024
    distinct = {tensor.identity: tensor for tensor in tensors}
    total = sum(tensor.size_bytes for tensor in distinct.values())
    if total > allowance:
        largest = max(tensors, key=lambda tensor: tensor.size_bytes)
        raise CheckpointError(
            f"{reader.uri}: its tensors add up to {total:,} bytes, and the file has {reader.size_bytes:,}; the largest "
            f"is {show_name(largest.name)} with {largest.size_bytes:,} bytes (an expanded view).",
            next_step="Save the model again without expanded tensors, or do not use this file.",
        )
