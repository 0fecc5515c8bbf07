"""What a judgement of weights consists of: findings that a person can act on and a program can count."""

from collections.abc import Iterable
from dataclasses import dataclass

from streamway.errors import SafetensorsError, WeightsError

ERROR, WARNING, INFO = "error", "warning", "info"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found.

    Args:
        severity: "error" where a server would fail or serve wrongly, "warning" where it may, "info" otherwise.
        code: A short name of the rule, the same for ever.
        subject: The file, tensor or setting.
        message: What is wrong, expected beside found.
        next_step: One thing to do; empty where there is nothing to do.
    """

    severity: str
    code: str
    subject: str
    message: str
    next_step: str = ""


def error(code: str, subject: str, message: str, next_step: str) -> Finding:
    """Something that keeps a server from serving rightly."""
    return Finding(severity=ERROR, code=code, subject=subject, message=message, next_step=next_step)


def warning(code: str, subject: str, message: str, next_step: str = "") -> Finding:
    """Something that may hurt."""
    return Finding(severity=WARNING, code=code, subject=subject, message=message, next_step=next_step)


def info(code: str, subject: str, message: str) -> Finding:
    """Something to know."""
    return Finding(severity=INFO, code=code, subject=subject, message=message)


def raise_first_error(findings: Iterable[Finding], kind: type[WeightsError] = SafetensorsError) -> None:
    """Turn the first error among findings into an exception.

    Raises:
        WeightsError: of the given kind, where there is an error.
    """
    for finding in findings:
        if finding.severity == ERROR:
            raise kind(f"{finding.subject}: {finding.message}", next_step=finding.next_step)
