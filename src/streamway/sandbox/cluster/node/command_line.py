"""From a container's spec and image to what is really run on this machine."""

import os
import shutil
from pathlib import Path

from streamway.sandbox.cluster.node.environment import ConfigError, build_environment, expand
from streamway.sandbox.cluster.node.images import Image
from streamway.sandbox.cluster.node.processes import Command
from streamway.sandbox.cluster.node.rewriting import Mount, Rewriter
from streamway.sandbox.cluster.node.surroundings import PodSurroundings
from streamway.sandbox.cluster.objects import Object, name_of

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build_command(around: PodSurroundings, spec: Object, image: Image) -> Command:
    """Put a container's command, environment and directory together.

    Args:
        around: The pod.
        spec: The container.
        image: Its image.

    Raises:
        ConfigError: something the container refers to is not there.
    """
    rewriter = rewriter_of(around, spec)
    root = around.folder / "root" / spec["name"]
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    own = {"HOME": str(root), "HOSTNAME": name_of(around.pod), "TMPDIR": str(root / "tmp")}
    environment = own | build_environment(around.facts, spec, image.environment)
    given = environment.get("PATH", _SYSTEM_PATH)
    environment["PATH"] = f"{image.path}:{given}" if image.path else given
    argv = [*(spec.get("command") or image.entrypoint)]
    argv += spec.get("args") or ([] if spec.get("command") else image.cmd)
    if not argv:
        raise ConfigError("no command specified")
    argv = rewriter.all(expand(text, environment) for text in argv)
    environment = {name: rewriter.text(value) for name, value in environment.items()}
    return Command(argv=argv, environment=environment, directory=_directory(spec, root, rewriter))


def _directory(spec: Object, root: Path, rewriter: Rewriter) -> Path:
    """Give the working directory; one that only the real image has is replaced by the container's own folder."""
    wanted = spec.get("workingDir")
    place = Path(rewriter.text(wanted)) if wanted else root
    return place if place.is_dir() else root


def rewriter_of(around: PodSurroundings, spec: Object) -> Rewriter:
    """Give what fits a container's texts to this machine."""
    path = spec.get("terminationMessagePath") or "/dev/termination-log"
    told = Mount(path=path, source=termination_file(around, spec))
    mounts = (*around.volumes.mounts(spec), told)
    return Rewriter(address=around.facts.pod_ip, ports=around.ports, mounts=mounts)


def termination_file(around: PodSurroundings, spec: Object) -> Path:
    """Give the file that a container writes its last words to."""
    return around.folder / f"termination-{spec['name']}"


def check_executable(program: str, command: Command) -> None:
    """Look a program up as the container would.

    Raises:
        FileNotFoundError: it is not there.
        PermissionError: it cannot be executed.
    """
    if os.sep in program:
        place = command.directory / program
        if not place.exists():
            raise FileNotFoundError(2, "no such file or directory", program)
        if not os.access(place, os.X_OK):
            raise PermissionError(13, "permission denied", program)
    elif shutil.which(program, path=command.environment["PATH"]) is None:
        raise FileNotFoundError(2, "executable file not found in $PATH", program)
