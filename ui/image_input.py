"""The photo field, in a module of its own: Gradio writes a .pyi file beside every subclass of a component."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import gradio as gr
from gradio.data_classes import ImageData

from pem.photos import ImageError, open_photo
from ui.file_names import plain_name


class Upload(NamedTuple):
    """A visitor's photo, not decoded yet."""

    path: Path
    file_name: str  # as the visitor calls it, without folders


class SafeImage(gr.Image):
    """gr.Image that leaves decoding to whoever has the room for it.

    Gradio's own reading clips 16-bit photos, drops transparency, hands out palettes for GIFs and accepts decompression
    bombs. Here every photo becomes an Upload, and what its header shows to be none the ImageError that says why: not
    raised, for of an event that failed in the field itself nobody could tell whether the file was to blame.
    """

    is_template = True  # drawn in the browser as gr.Image is

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
