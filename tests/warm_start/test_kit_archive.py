"""What may become a kit, and what of a kit may be unpacked: plain files with plain names, no more than allowed."""

import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as some

from streamway import storage
from streamway.errors import KitRefusedError
from streamway.server import kit_restore
from streamway.server.kit_archive import check_name, pack_kit

MIB = 1024**2
SCRIPT = Path(kit_restore.__file__).read_text()
NAMES = some.text("abcé_.-", min_size=1, max_size=120).filter(lambda name: name not in (".", ".."))
TREES = some.dictionaries(some.tuples(NAMES, NAMES), some.binary(max_size=2000), max_size=6)


def entry(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"x", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if kind == tarfile.REGTYPE else 0
    for field, value in more.items():
        setattr(info, field, value)
    return info, data


def archive(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as made:
        for info, data in entries:
            made.addfile(info, io.BytesIO(data))
    return written.getvalue()


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    """In pieces that fall where they like, as from a network."""
    return (data[start : start + size] for start in range(0, len(data), size))


HOSTILE = [
    (entry("../outside"), "no plain name"),
    (entry("a/../../outside"), "no plain name"),
    (entry("/etc/passwd"), "no plain name"),
    (entry("a//b"), "no plain name"),
    (entry("a\nb"), "no plain name"),
    (entry("link", tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link"),
    (entry("link", tarfile.LNKTYPE, linkname="model"), "a hard link"),
    (entry("device", tarfile.CHRTYPE), "a device"),
    (entry("disk", tarfile.BLKTYPE), "a device"),
    (entry("pipe", tarfile.FIFOTYPE), "a pipe"),
    (entry("sparse", b"S"), "no plain file"),
    (entry("new", b"x"), "no plain file"),
]


@pytest.mark.parametrize(("hostile", "words"), HOSTILE, ids=lambda value: value if isinstance(value, str) else None)
def test_a_hostile_entry_is_refused_by_its_name(
    tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes], words: str
) -> None:
    with pytest.raises(KitRefusedError, match=words) as caught:
        pack_kit(pieces(archive(entry("good"), hostile)), tmp_path / "kit.tar", max_bytes=MIB)

    assert repr(hostile[0].name) in caught.value.problem


@examples(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_what_tar_sends_is_kept_byte_for_byte(tmp_path: Path, tree: dict[tuple[str, str], bytes]) -> None:
    source = Path(str(tmp_path / hashlib.sha256(repr(tree).encode()).hexdigest()[:16]))
    for (folder, name), data in tree.items():
        (source / folder).mkdir(parents=True, exist_ok=True)
        (source / folder / name).write_bytes(data)
    source.mkdir(exist_ok=True)
    sent = subprocess.run(["tar", "-cf", "-", "."], cwd=source, capture_output=True, check=True).stdout

    packed = pack_kit(pieces(sent), tmp_path / "kit.tar", max_bytes=MIB)

    with tarfile.open(packed.path) as kit:
        found = {member.name: kit.extractfile(member).read() for member in kit}  # type: ignore[union-attr]
    assert found == {f"{folder}/{name}": data for (folder, name), data in tree.items()}
    assert packed.file_count == len(tree)
    assert packed.sha256 == hashlib.sha256(packed.path.read_bytes()).hexdigest()


@examples(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=some.integers(0, 3000), place=some.integers(0, 3000), value=some.integers(0, 255))
def test_a_damaged_archive_is_refused_or_holds_plain_files(tmp_path: Path, cut: int, place: int, value: int) -> None:
    data = bytearray(archive(entry("a/b", data=b"1" * 600), entry("c", data=b"2" * 10)))
    data[place % len(data)] = value
    try:
        packed = pack_kit(pieces(bytes(data)[: len(data) - cut]), tmp_path / "kit.tar", max_bytes=MIB)
    except KitRefusedError:
        return
    with tarfile.open(packed.path) as kit:
        assert all(member.isreg() and check_name(member.name) == member.name for member in kit)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_of_either_format_are_read(tmp_path: Path, form: int) -> None:
    name = "/".join(["d" * 40] * 4)

    packed = pack_kit(pieces(archive(entry(name), form=form)), tmp_path / "kit.tar", max_bytes=MIB)

    with tarfile.open(packed.path) as kit:
        assert kit.getnames() == [name]


def test_a_name_that_claims_a_gigabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    header = info.tobuf(tarfile.GNU_FORMAT)

    def endless() -> Iterator[bytes]:
        yield header
        raise AssertionError("it is read")

    with pytest.raises(KitRefusedError, match="a name of 1073741824 bytes"):
        pack_kit(endless(), tmp_path / "kit.tar", max_bytes=MIB)


def test_a_file_that_never_ends_is_refused_at_the_limit(tmp_path: Path) -> None:
    info = tarfile.TarInfo("big")
    info.size = 8 * 2**30 - 1
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield info.tobuf(tarfile.GNU_FORMAT)
        while True:
            sent += MIB
            yield bytes(MIB)

    with pytest.raises(KitRefusedError, match="larger than 1 MiB"):
        pack_kit(endless(), tmp_path / "kit.tar", max_bytes=MIB)
    assert (tmp_path / "kit.tar").stat().st_size <= 2 * MIB
    assert sent <= 4 * MIB


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitRefusedError, match="twice"):
        pack_kit(pieces(archive(entry("a"), entry("./a"))), tmp_path / "kit.tar", max_bytes=MIB)


def restore(mount: Path, uri: str, sha256: str, size: int, **environment: str) -> str:
    """Run the script as the pod does."""
    mount.mkdir(exist_ok=True)
    told = mount.with_suffix(".told")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(mount), str(told)],
        env={"KIT_URI": uri, "KIT_SHA256": sha256, "KIT_BYTES": str(size), "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert told.read_text() == done.stdout.strip()
    return done.stdout


@pytest.fixture
def put(parts: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts bytes in the bucket and restores them with the right digest."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", parts.storage_url)

    def run(mount: Path, data: bytes, *, sha256: str = "", size: int = 0) -> str:
        digest = hashlib.sha256(data).hexdigest()
        uri = f"gs://kits/restore/{digest}.tar"
        storage.write_file(uri, data)
        return restore(mount, uri, sha256 or digest, size or len(data), STORAGE_EMULATOR_HOST=parts.storage_url)

    return run


def test_a_kit_is_restored_whole_with_its_modes(put: Any, tmp_path: Path) -> None:
    said = put(tmp_path / "mount", archive(entry("a/run.so", mode=0o755, mtime=1000), entry("b", data=b"22")))

    place = tmp_path / "mount" / "vllm"
    assert said.startswith("Restored warm-start kit")
    assert {path.relative_to(place).as_posix() for path in place.rglob("*")} == {"a", "a/run.so", "b"}
    assert (place / "b").read_bytes() == b"22"
    assert (place / "a/run.so").stat().st_mode & 0o100
    assert [path.name for path in (tmp_path / "mount").iterdir()] == ["vllm"]


@pytest.mark.parametrize(("hostile", "_words"), HOSTILE, ids=lambda value: value if isinstance(value, str) else None)
def test_a_hostile_kit_is_refused_even_with_the_right_digest(
    put: Any, tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes], _words: str
) -> None:
    said = put(tmp_path / "mount", archive(entry("good"), hostile))

    assert "The engine starts without it." in said
    assert list((tmp_path / "mount").iterdir()) == []
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"sha256": "0" * 64}, "its SHA-256 is"), ({"size": 100}, "more than the expected 100 bytes")],
    ids=["digest", "size"],
)
def test_a_kit_that_is_not_the_expected_one_leaves_nothing(
    put: Any, tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    said = put(tmp_path / "mount", archive(entry("a")), **wrong)

    assert words in said
    assert list((tmp_path / "mount").iterdir()) == []


def test_a_kit_that_unpacks_to_more_than_itself_is_refused(put: Any, tmp_path: Path) -> None:
    info = tarfile.TarInfo("hole")
    info.size = 2**40
    said = put(tmp_path / "mount", info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))

    assert "unpacks to more than" in said or "cannot be used" in said
    assert list((tmp_path / "mount").iterdir()) == []


def test_a_bucket_that_does_not_answer_costs_only_time(tmp_path: Path) -> None:
    said = restore(tmp_path / "mount", "gs://kits/x.tar", "0" * 64, 10, STORAGE_EMULATOR_HOST="127.0.0.1:1")

    assert "cannot be used" in said
    assert "The engine starts without it." in said


def test_a_container_that_runs_again_leaves_what_is_in_place(put: Any, tmp_path: Path) -> None:
    put(tmp_path / "mount", archive(entry("a")))

    assert "in place already" in put(tmp_path / "mount", archive(entry("a")))
