"""The end of a run: its page is made and kept, whatever the run has left behind."""

import logging

from streamway import storage
from streamway.errors import StreamwayError
from streamway.report.history import earlier_starts, release_uri_of, remember_start
from streamway.report.journal import RunJournal
from streamway.report.page import render_page
from streamway.storage.kits import StoredKit, read_kits

logger = logging.getLogger("streamway.report")


def finish_run(
    run_uri: str, *, state: str, message: str = "", name: str = "", namespace: str = "", resource: str = ""
) -> str:
    """Make the page of a run, keep it beside the journal, and remember how the server started.

    Nothing that is missing or broken keeps the page from being made; a bucket that cannot be written costs only the
    copy there.

    Args:
        run_uri: Where the run keeps its journal.
        state: How the pipeline ended, in the runner's word, such as SUCCEEDED.
        message: What the runner itself says of a failure.
        name: The endpoint of the run, so that one whose deployment has failed is shown beside earlier starts too.
        namespace: The endpoint's namespace.
        resource: What the service calls the run; with it, the page says where logs are.

    Returns:
        A complete HTML document.
    """
    journal = _load(run_uri)
    earlier = earlier_starts(journal, name=name, namespace=namespace)
    if state == "SUCCEEDED" and journal.failed is None:
        remember_start(journal)
    kits = _kits(journal)
    page = render_page(journal, state=state, message=message, earlier=earlier, kits=kits, resource=resource)
    try:
        storage.write_file(storage.join(run_uri, "report.html"), page.encode())
    except (StreamwayError, OSError) as error:
        logger.warning("the report could not be kept beside the journal: %s", str(error).splitlines()[0])
    return page


def _kits(journal: RunJournal) -> tuple[StoredKit, ...]:
    """Read what is kept of the engine's cache beside the release that this run served."""
    release_uri = release_uri_of(journal) if journal.record("deploy_server") else ""
    try:
        return tuple(read_kits(release_uri).values()) if release_uri else ()
    except (StreamwayError, OSError) as error:
        logger.warning("the release's kits cannot be read: %s", str(error).splitlines()[0])
        return ()


def _load(run_uri: str) -> RunJournal:
    try:
        return RunJournal.load(run_uri)
    except (StreamwayError, OSError) as error:
        logger.warning("the journal of the run cannot be read: %s", str(error).splitlines()[0])
        return RunJournal(run_uri=run_uri, records=())
