"""The options of an engine by version, kept small: those of the first version, and what each later one changed.

An engine that does not know an option says so only when a node has been found, the image pulled and the log written;
a table says it before anything moves.
"""

from dataclasses import dataclass
from functools import cached_property

Version = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class FlagHistory:
    """Which options each version of an engine knows.

    Args:
        first: Oldest version.
        names: Its options, without their dashes.
        changes: For each later version its number, and then what it added, and took away (-).
    """

    first: Version
    names: str
    changes: str

    def known(self, version: Version) -> frozenset[str]:
        """Return every option that a version knows; empty where the version is not in the table."""
        return self._tables.get(version, frozenset())

    def versions_with(self, flag: str) -> list[Version]:
        """Return the versions that know an option, oldest first."""
        return [version for version, flags in self._tables.items() if flag in flags]

    @cached_property
    def _tables(self) -> dict[Version, frozenset[str]]:
        names = frozenset(self.names.split())
        version = self.first
        tables = {version: names}
        for word in self.changes.split():
            if word[0].isdigit():
                major, minor, patch = map(int, word.split("."))
                version = (major, minor, patch)
            elif word.startswith("-"):
                names -= {word[1:]}
            else:
                names |= {word}
            tables[version] = names
        return {version: frozenset(f"--{name}" for name in table) for version, table in tables.items()}
