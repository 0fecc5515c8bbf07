"""Groups that know their commands by name and one line, so that help and completion import no room of the house."""

import importlib
from typing import Any

import click


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run, or asked for their own help.

    What it lists, for `--help` and for a shell's completion, are announcements that hold a name and a line.
    """

    def announce(self, name: str, source: str, summary: str) -> None:
        """Add a command without importing it.

        Args:
            name: The word that a person types.
            source: Where the command is, as `module:attribute`.
            summary: The line that stands beside its name in help; the command's own help begins with it.
        """
        self.add_command(_Announcement(name, source, summary))

    def load(self, name: str) -> click.Command:
        """Return a command of this group, imported by now."""
        command = self.commands[name]
        return command.load() if isinstance(command, _Announcement) else command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, _Announcement) else command, rest


class _Announcement(click.Command):
    def __init__(self, name: str, source: str, summary: str) -> None:
        super().__init__(name, short_help=summary)
        self._module, _, self._attribute = source.partition(":")

    def load(self) -> Any:
        return getattr(importlib.import_module(self._module), self._attribute)
