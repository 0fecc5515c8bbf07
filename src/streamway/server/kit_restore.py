"""Run in the pod before the engine: put the kept cache of an earlier start in place, if it is the one that is expected.

A kit is code that the engine will run, so nothing of it is unpacked before all of it has the expected digest. Whatever
goes wrong, the pod starts: without the kit it only takes longer. This file is put into the pod's manifest as it stands,
so it uses nothing but Python's own library.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import posixpath
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request

METADATA_HOST = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
TOKEN = f"http://{METADATA_HOST}/computeMetadata/v1/instance/service-accounts/default/token"
CHUNK = 1 << 20
ATTEMPTS = 4
DEADLINE_SECONDS = 90.0


class RefusedError(Exception):
    """The kit is not what it should be."""


def download(uri: str, path: str, size: int) -> str:
    """Write the kit to a file and return its SHA-256; wait for a network or an identity that is a moment late."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    attempt = 0
    while True:
        try:
            return download_once(uri, path, size, deadline)
        except OSError as error:
            passing = not isinstance(error, urllib.error.HTTPError) or error.code >= 500 or error.code == 429
            if not passing or attempt == ATTEMPTS or time.monotonic() > deadline:
                raise
        time.sleep(min(2**attempt * 0.25, 2))
        attempt += 1


def download_once(uri: str, path: str, size: int, deadline: float) -> str:
    """Read the object once."""
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    base = os.environ.get("STORAGE_EMULATOR_HOST", "")
    headers = {}
    if not base:
        base = "https://storage.googleapis.com"
        ask = urllib.request.Request(TOKEN, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(ask, timeout=10) as answer:
            headers["Authorization"] = f"Bearer {json.load(answer)['access_token']}"
    base = base if "://" in base else f"http://{base}"
    url = f"{base}/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer, open(path, "wb") as file:  # noqa: PTH123
        while chunk := answer.read(CHUNK):
            done += len(chunk)
            if done > size:
                raise RefusedError(f"it has more than the expected {size} bytes")
            if time.monotonic() > deadline:
                raise RefusedError(f"it did not come within {DEADLINE_SECONDS:.0f} s")
            digest.update(chunk)
            file.write(chunk)
    if done < size:
        raise ConnectionError(f"it ended after {done} of {size} bytes")
    return digest.hexdigest()


def unpack(path: str, folder: str, limit: int) -> int:
    """Unpack plain files with plain names, and nothing else; return how many."""
    count = written = 0
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = member.name
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise RefusedError(f"{name!r} in it is no plain file")
            plain = name == posixpath.normpath(name) and name.isprintable() and not name.startswith("/")
            if not plain or ".." in name.split("/"):
                raise RefusedError(f"{name!r} in it is no plain name")
            written += member.size
            if written > limit:
                raise RefusedError(f"it unpacks to more than {limit} bytes")
            target = os.path.join(folder, name)  # noqa: PTH118
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
            source = archive.extractfile(member)
            assert source is not None
            with source, open(target, "xb") as file:  # noqa: PTH123
                shutil.copyfileobj(source, file, CHUNK)
            os.chmod(target, 0o700 if member.mode & 0o100 else 0o600)  # noqa: PTH101
            os.utime(target, (member.mtime, member.mtime))
            count += 1
    return count


def restore(mount: str, uri: str, expected: str, size: int) -> int:
    """Put the kit in place all at once; return how many files it has."""
    packed, fresh, final = (f"{mount}/{name}" for name in (".kit.tar", ".restoring", "vllm"))
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        found = download(uri, packed, size)
        if found != expected:
            raise RefusedError(f"its SHA-256 is {found}, expected {expected}")
        os.mkdir(fresh, 0o700)  # noqa: PTH102
        count = unpack(packed, fresh, size)
        os.rename(fresh, final)  # noqa: PTH104
        return count
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if os.path.exists(packed):  # noqa: PTH110
            os.remove(packed)  # noqa: PTH107


def main(mount: str) -> str:
    """Restore the kit that the environment names; return what became of it."""
    uri, expected = os.environ.get("KIT_URI", ""), os.environ.get("KIT_SHA256", "")
    if not uri:
        return "There is no warm-start kit for this server yet; the engine prepares everything itself."
    if os.path.exists(f"{mount}/vllm"):  # noqa: PTH110
        return "The engine's cache is in place already."
    began = time.monotonic()
    try:
        size = int(os.environ.get("KIT_BYTES", "0"))
        count = restore(mount, uri, expected, size)
    except RefusedError as error:
        return f"The warm-start kit {uri} is refused: {error}. The engine starts without it."
    except (OSError, ValueError, KeyError, http.client.HTTPException, tarfile.TarError) as error:
        return f"The warm-start kit {uri} cannot be used: {error}. The engine starts without it."
    seconds = time.monotonic() - began
    # This line is looked for: the digest tells whoever measures starts that this one had a kit.
    return f"Restored warm-start kit {expected}: {count} files, {size / 2**20:.1f} MiB, in {seconds:.1f} s."


if __name__ == "__main__":
    outcome = main(sys.argv[1])
    sys.stdout.write(outcome + "\n")
    with open(sys.argv[2], "w") as log:  # noqa: PTH123
        log.write(outcome)
