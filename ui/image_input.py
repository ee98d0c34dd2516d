"""The photo field of the page. It has its own file: Gradio writes a .pyi file beside every subclass of a component."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

import gradio as gr
from gradio.data_classes import ImageData

from pem.photos import ImageError, open_photo
from ui.file_names import plain_name


class Upload(NamedTuple):
    """A visitor's photo, not decoded yet."""

    path: Path
    file_name: str  # as the visitor calls it, without folders


class SafeImage(gr.Image):
    """A gr.Image that does not decode photos: the engine does, when there is memory for it.

    Gradio's own reader clips 16-bit photos, drops transparency, returns palettes for GIFs and accepts decompression
    bombs. Here a photo becomes an Upload. A file whose header is no photo's becomes an ImageError that says why. The
    error is returned, not raised: if the field itself failed, nobody could tell whether the file was to blame.
    """

    is_template = True  # drawn in the browser as gr.Image is
    _put_in: ClassVar[set[str]] = set()

    @property
    def temp_files(self) -> set[str]:
        """The files that the server put into the field. Gradio copies the field for a session once it changed it there;
        all copies share them, or the next photo of that session would be taken for a foreign file."""
        return self._put_in

    @temp_files.setter
    def temp_files(self, _: set[str]) -> None:
        pass  # Gradio begins each copy with an empty set

    def preprocess(self, payload: ImageData | None) -> Upload | ImageError | None:
        if payload is None or payload.path is None:
            return None
        if not Path(payload.path).is_file():  # uploads are deleted after an hour
            return ImageError("The photo is no longer on the server; please choose it again.")
        try:
            open_photo(payload.path).close()
        except ImageError as error:
            return error
        return Upload(Path(payload.path), plain_name(payload.orig_name or payload.path))
