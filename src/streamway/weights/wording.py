"""How names and sizes are worded, so that what a hostile file says cannot disturb a terminal or a log."""


def show_name(text: str, limit: int = 160) -> str:
    """Make a name fit for a message: one line, printable, short."""
    printable = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return printable if len(printable) <= limit else f"{printable[:limit]}..."


def show_size(count: int) -> str:
    """Write a number of bytes in the unit that suits it."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"
