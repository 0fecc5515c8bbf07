"""How a container's view of the world is fitted to a process of this machine, which has no mounts and no network of its
own.

Paths: where a volume would be mounted, its folder is named instead, in commands, arguments and variables.

Addresses: every pod has a loopback address of its own (127.64.0.0/10), which is its podIP. "All addresses" (0.0.0.0)
in a command, argument or variable becomes that address, so that two pods can both listen on port 8000, and
`localhost:8000` of a declared port becomes it too. A program that is told no address listens on all of them; then the
next pod finds its port taken, and is given a free one: the port's number is replaced in commands, arguments and
variables, probes and the service proxy use the real one, and the API goes on showing containerPort. Network
namespaces would need no such care, but unprivileged processes may not create them everywhere, and a pod must reach the
other stand-ins, which listen on 127.0.0.1.
"""

import re
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ALL_ADDRESSES = re.compile(r"(?<![\w.])0\.0\.0\.0(?![\w.])")
_ALL_ADDRESSES_6 = ("::", "[::]")


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A place in a container that is a folder or file of this machine.

    Args:
        path: The mount path.
        source: The folder or file.
    """

    path: str
    source: Path

    def literal(self, _: object) -> str:
        """Give the source for a substitution, as it is."""
        return str(self.source)


@dataclass(frozen=True, kw_only=True)
class Rewriter:
    """Rewrites one container's texts.

    Args:
        address: The pod's address.
        ports: Declared ports and where they really are.
        mounts: The container's mounts.
    """

    address: str
    ports: dict[int, int]
    mounts: tuple[Mount, ...] = ()

    def text(self, text: str) -> str:
        """Rewrite one argument or value."""
        for mount in sorted(self.mounts, key=lambda one: len(one.path), reverse=True):
            pattern = rf"(?<![\w./-]){re.escape(mount.path.rstrip('/'))}(?![\w.-])"
            text = re.sub(pattern, mount.literal, text)
        text = self.address if text in _ALL_ADDRESSES_6 else _ALL_ADDRESSES.sub(self.address, text)
        for declared, real in self.ports.items():
            text = re.sub(rf"(?<![\w.])(?:localhost|127\.0\.0\.1):{declared}(?!\d)", f"{self.address}:{real}", text)
            if real != declared:
                text = re.sub(rf"(?<![\w.-]){declared}(?![\w.-])", str(real), text)
        return text

    def all(self, texts: Iterable[str]) -> list[str]:
        """Rewrite a command line."""
        return [self.text(text) for text in texts]

    def path(self, path: str) -> str:
        """Rewrite a path that stands alone, such as a working directory."""
        return self.text(path)


def choose_address() -> str:
    """Choose a pod's address; with four million to choose from, two clusters on one machine do not meet."""
    number = secrets.randbelow((1 << 22) - 2) + 1
    return f"127.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def assign_ports(address: str, declared: Iterable[int]) -> dict[int, int]:
    """Say where each declared port of a pod really is: where it says, unless something else is there."""
    return {port: port if _is_free(address, port) else _free_port(address) for port in declared}


def _is_free(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A port that was closed a moment ago is free, one that someone listens on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
