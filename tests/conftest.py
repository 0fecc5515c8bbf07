"""What every test starts from, whichever way the tests themselves were started."""

import signal

import pytest

# A shell that runs the tests in the background has them ignore Ctrl-C, and every process that they start would inherit
# that, also those whose answer to Ctrl-C is what a test looks at.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that no worker is left with one when the others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
