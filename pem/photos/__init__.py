"""The one reader of photos: a file becomes upright RGB of 8 bits, or an ImageError says in one sentence why not.

Files come from strangers: Pillow gets only the formats and sizes that are allowed, and no metadata of JPEG and PNG.
"""

from pem.photos.exif import orientation
from pem.photos.limits import ImageError
from pem.photos.reader import FORMATS, Photo, load_image, open_photo, to_array, to_rgb

__all__ = ["FORMATS", "ImageError", "Photo", "load_image", "open_photo", "orientation", "to_array", "to_rgb"]
