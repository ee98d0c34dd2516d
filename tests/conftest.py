"""The served page, shared by the tests that call it and the ones that look at it; what the summary says of tests that
were skipped; and the end of a run that does not end by itself."""

from __future__ import annotations

import faulthandler
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

SECONDS_TO_EXIT = 60


@pytest.fixture(scope="session")
def page_url() -> Iterator[str]:
    """The address of the real page with a model whose answers are known."""
    from halves_model import HalvesBaseline, HalvesModel
    from processes import free_port

    import app  # Gradio takes seconds to import, and most tests do without it

    page = app.build_page(HalvesModel(), HalvesBaseline())
    # Two processes of tests that look for a free port one after the other, as Gradio does, may find the same one.
    _, url, _ = app.launch(page, server_port=free_port(), prevent_thread_lock=True, quiet=True)
    yield url
    page.close(verbose=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how to run the tests that were skipped for want of a program. Their reasons end with the command."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped"))
    for reason, count in reasons.items():
        if "apt-get install" in reason:
            terminalreporter.write_line(f"{count} test{'s were' if count > 1 else ' was'} skipped. {reason}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """A thread or a destructor that hangs behind the last test is shown and ended as well."""
    of_several = hasattr(config, "workerinput")  # it waits for the others, which end it
    if sys.__stderr__ is not None and not of_several:
        faulthandler.dump_traceback_later(SECONDS_TO_EXIT, exit=True, file=sys.__stderr__)
