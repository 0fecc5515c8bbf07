"""Who asks, and how: what every write needs to know about its request."""

from dataclasses import dataclass, field

MASTERS = "system:masters"
AUTHENTICATED = "system:authenticated"


@dataclass(frozen=True, kw_only=True)
class User:
    """An authenticated user.

    Args:
        name: User name.
        groups: The groups it is in.
    """

    name: str
    groups: tuple[str, ...] = (AUTHENTICATED,)


ADMINISTRATOR = User(name="kubernetes-admin", groups=(MASTERS, AUTHENTICATED))


@dataclass(kw_only=True)
class Caller:
    """One request's sender and wishes.

    Args:
        user: Who asks.
        manager: Under which name changed fields are owned.
        dry_run: Judge everything, store nothing.
        field_validation: What unknown fields lead to: Strict, Warn or Ignore.
        warnings: Filled with what the client shall be warned of.
    """

    user: User = ADMINISTRATOR
    manager: str = "unknown"
    dry_run: bool = False
    field_validation: str = "Ignore"
    warnings: list[str] = field(default_factory=list)


def component(name: str) -> Caller:
    """Make the caller of a control-plane component, which writes under its own name."""
    return Caller(user=User(name=f"system:{name}", groups=(MASTERS, AUTHENTICATED)), manager=name)
