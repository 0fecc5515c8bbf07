"""What may be served, judged before anything large is moved: licence, remote code, the Hub's own scanners."""

import json
import logging
from collections.abc import Sequence

from streamway.errors import PolicyError
from streamway.hub.repository import Repository
from streamway.hub.selection import ReadText, Selection

log = logging.getLogger("streamway.hub")

_ASKS_FOR_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_REFUSED_LEVELS = ("unsafe", "suspicious")


def find_remote_code(selection: Selection, read: ReadText) -> tuple[str, ...]:
    """Return which files ask an engine to run Python code from the repository (`auto_map`), with what they name."""
    found = []
    for file in selection.companions:
        if file.path not in _ASKS_FOR_CODE:
            continue
        try:
            wanted = json.loads(read(file)).get("auto_map")
        except (ValueError, AttributeError, RecursionError):
            continue  # what is no JSON asks for nothing; validation says what is wrong with it
        if wanted:
            found.append(f"{file.path}: {json.dumps(wanted, sort_keys=True)[:200]}")
    return tuple(found)


def judge(
    repository: Repository,
    selection: Selection,
    *,
    allowed_licences: Sequence[str],
    allow_remote_code: bool,
    remote_code: Sequence[str],
) -> None:
    """Refuse what the policies forbid.

    Args:
        repository: What the Hub says.
        selection: What would be taken.
        allowed_licences: Ids as model cards write them, in any case; empty allows every licence, also "unknown".
        allow_remote_code: Whether a model may ask for code of its own. The code is never taken along: such a model
            only works with an engine that has an implementation of it.
        remote_code: What find_remote_code found.

    Raises:
        PolicyError: with all that is wrong, not only the first.
    """
    problems = _licence_problems(repository, allowed_licences)
    if remote_code and not allow_remote_code:
        problems.append(f"it asks for code of its own to be run ({'; '.join(remote_code)})")
    flagged = flagged_files(repository, selection)
    if flagged:
        problems.append(f"the Hub's scanners complain about {', '.join(flagged)}")
    _refuse(repository, problems)
    if not repository.scan_done:
        log.warning("%s: the Hub's scanners have not finished with this commit.", repository.model_id)


def judge_licence(repository: Repository, allowed_licences: Sequence[str]) -> None:
    """Refuse a licence that is not allowed, also where everything else was judged long ago.

    Raises:
        PolicyError: it is not allowed.
    """
    _refuse(repository, _licence_problems(repository, allowed_licences))


def _licence_problems(repository: Repository, allowed_licences: Sequence[str]) -> list[str]:
    allowed = {licence.lower() for licence in allowed_licences}
    if not allowed or repository.licence.lower() in allowed:
        return []
    return [f"its licence is {repository.licence!r}, allowed are {', '.join(sorted(allowed))}"]


def _refuse(repository: Repository, problems: Sequence[str]) -> None:
    if problems:
        raise PolicyError(
            f"{repository.model_id} at {repository.commit_sha[:12]} may not be served: {'; and '.join(problems)}.",
            next_step=f"Read {repository.page}, then change the policy in the configuration or choose another model.",
        )


def flagged_files(repository: Repository, selection: Selection) -> tuple[str, ...]:
    """Return the files to be taken that the Hub's scanners call unsafe or suspicious."""
    taken = {file.path for file in selection.files}
    return tuple(
        f"{path} ({level})" for path, level in repository.scan_issues if path in taken and level in _REFUSED_LEVELS
    )
