"""Memory that the machine really has, so that the benchmarks measure programs and not the host under them.

A virtual machine's host takes back memory that lies idle and hands it out again at the first touch. Where these figures
were taken that costs ten times the copying: 4 GiB written to a file took 1.4 s after `settle`, 12.5 s after twenty idle
seconds. It hits whatever runs first, or writes most, so it is removed for every contender alike.
"""

import os
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 1 << 20


def settle(folder: Path, reads: Iterable[Path] = ()) -> None:
    """Fill the page cache, so that what is written next takes over pages that the machine already holds.

    A sparse file as large as the memory is read for it, which needs no disk. What earlier steps left to be written
    is written first, so that it slows nobody down.

    Args:
        folder: Where the sparse file may lie, on the disk to be measured.
        reads: Files and folders that the next step reads; they end up in the page cache as well.
    """
    os.sync()
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        file.truncate(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    _read(ballast)
    for path in reads:
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                _read(file)


def _read(path: Path) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
