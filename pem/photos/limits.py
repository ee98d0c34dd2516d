"""What a photo may be, and the error that says what it is not."""

from __future__ import annotations

MIN_SIDE_PX = 8
MAX_SIDE_PX = 65_500  # the longest that a JPEG can be
MAX_PIXELS = 40_000_000
MAX_METADATA_BYTES = 1 << 20  # of one piece

# What is said of every unknown exception: for broken data Pillow's parsers raise half a dozen unrelated types.
DAMAGED = "The image file is damaged or incomplete."


class ImageError(ValueError):
    """A file that cannot be used as a photo. Its message is one sentence for the person who chose the file."""


def check_size(width: int, height: int) -> None:
    """Raises ImageError for a photo of too many or too few pixels."""
    if width * height > MAX_PIXELS:
        wanted = f"make it smaller than {MAX_PIXELS // 10**6} megapixels"
    elif max(width, height) > MAX_SIDE_PX:
        wanted = f"it may have at most {MAX_SIDE_PX} a side"
    elif min(width, height) < MIN_SIDE_PX:
        wanted = f"it needs at least {MIN_SIDE_PX} a side"
    else:
        return
    raise ImageError(f"The image has {width} x {height} pixels; {wanted}.")
