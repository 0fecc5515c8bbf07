"""Container images, which here are environments of this machine: a table says which image is where."""

import json
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from streamway.errors import SandboxError


@dataclass(frozen=True, kw_only=True)
class Image:
    """One row of the table.

    Args:
        image: The image's name with its tag; patterns are allowed.
        path: A folder to put first on PATH, empty for none.
        environment: What the image's ENV sets, and this machine's addresses.
        entrypoint: What runs when a container names no command.
        cmd: Its default arguments.
        pull_seconds: How long pulling it takes, the first time.
        pull_error: Why it cannot be pulled; empty when it can.
        size_bytes: What the Pulled event says.
    """

    image: str
    path: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    pull_seconds: float = 0.0
    pull_error: str = ""
    size_bytes: int = 1_000_000


class ImageTable:
    """The table of images, read again when its file changes.

    Args:
        path: The file; None for an empty table.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._read_at = 0
        self._images: tuple[Image, ...] = ()
        self._pulled: set[str] = set()
        self.find("")

    def find(self, name: str) -> Image | None:
        """Find the row of an image.

        Raises:
            SandboxError: the file is no such table.
        """
        self._refresh()
        short = name.removeprefix("docker.io/").removeprefix("library/")
        for image in self._images:
            if fnmatchcase(name, image.image) or fnmatchcase(short, image.image):
                return image
        return None

    def is_present(self, name: str) -> bool:
        """Tell whether an image has been pulled before."""
        return name in self._pulled

    def remember(self, name: str) -> None:
        """Note that an image has been pulled."""
        self._pulled.add(name)

    def _refresh(self) -> None:
        if self._path is None or not self._path.exists():
            return
        changed_at = self._path.stat().st_mtime_ns
        if changed_at == self._read_at:
            return
        try:
            rows = json.loads(self._path.read_text())
            self._images = tuple(_image(row) for row in rows)
        except (ValueError, TypeError, AttributeError) as error:
            raise SandboxError(
                f"The table of images {self._path} cannot be read: {error}.",
                next_step='Write a JSON list of objects, each with at least "image".',
            ) from error
        self._read_at = changed_at


def _image(row: dict[str, object]) -> Image:
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in row.items() if value is not None
    }
    return Image(**fields)  # type: ignore[arg-type]


def reference(name: str) -> str:
    """Write an image's full name, with its registry and tag, as container runtimes do."""
    first, slash, _ = name.partition("/")
    full = name if slash and ("." in first or ":" in first or first == "localhost") else f"docker.io/{name}"
    if full.startswith("docker.io/") and full.count("/") == 1:
        full = full.replace("docker.io/", "docker.io/library/")
    return full if ":" in full.rpartition("/")[2] or "@" in full else f"{full}:latest"
