"""Pulling images, in the kubelet's words."""

import asyncio
from collections.abc import Callable

from streamway.sandbox.cluster.node.images import Image, ImageTable, reference

Say = Callable[[str, str, str], None]


class PullFailedError(Exception):
    """An image cannot be had; the message is the container runtime's."""


class Puller:
    """Fetches images for containers.

    Args:
        table: Which images there are.
    """

    def __init__(self, table: ImageTable) -> None:
        self._table = table

    async def pull(self, name: str, policy: str, say: Say) -> Image:
        """Have an image at hand.

        Args:
            name: The image.
            policy: Always, IfNotPresent or Never.
            say: Records an event: type, reason, message.

        Raises:
            PullFailedError: it cannot be had.
        """
        image = self._table.find(name)
        if policy == "Never" and image is None:
            raise PullFailedError(f'Container image "{name}" is not present with pull policy of Never')
        if image is not None and (policy == "Never" or (policy == "IfNotPresent" and self._table.is_present(name))):
            say("Normal", "Pulled", f'Container image "{name}" already present on machine')
            return image
        say("Normal", "Pulling", f'Pulling image "{name}"')
        if image is None or image.pull_error:
            why = _failure(name, image.pull_error if image else "")
            say("Warning", "Failed", f'Failed to pull image "{name}": {why}')
            raise PullFailedError(why)
        seconds = 0.0 if self._table.is_present(name) else image.pull_seconds
        await asyncio.sleep(seconds)
        self._table.remember(name)
        took = f"{seconds:.3g}s"
        text = f'Successfully pulled image "{name}" in {took} ({took} including waiting).'
        say("Normal", "Pulled", f"{text} Image size: {image.size_bytes} bytes.")
        return image


def _failure(name: str, given: str) -> str:
    if given:
        return given
    full = reference(name)
    return (
        f'rpc error: code = NotFound desc = failed to pull and unpack image "{full}": failed to resolve reference'
        f' "{full}": {full}: not found'
    )
