"""The served page, shared by the tests that call it and the ones that look at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def page_url() -> Iterator[str]:
    """The address of the real page with a model whose answers are known."""
    from halves_model import HalvesModel, HalvesTwin

    import app  # Gradio takes seconds to import, and most tests do without it

    page = app.build_page(HalvesModel(), HalvesTwin())
    _, url, _ = app.launch(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close(verbose=False)
