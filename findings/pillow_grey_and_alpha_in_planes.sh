#!/usr/bin/env bash
# Pillow opens a compressed TIFF whose grey and alpha lie in planes of their own, and loses the alpha.
#
# PlanarConfiguration 2 stores each channel apart. Pillow reads such a file right when it is RGB. For grey with alpha one
# would expect the same, or a refusal. It decodes without an error and gives the right greys, but an alpha of 0 in every
# pixel: an opaque picture becomes an invisible one, which on a white page is white.
#
# Seen with Pillow 12.3.0, on a file that tifffile 2025.5.10 wrote and reads back exactly:
#   grey and alpha: the greys are equal, the alpha is 0 instead of 255 everywhere
#   three channels as RGB in planes: equal
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==12.3.0 tifffile==2025.5.10 numpy==2.2.6 2>/dev/null
cd "$folder"
cat > planes.py <<'PY'
import numpy as np
import tifffile
from PIL import Image

ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (40, 1))
opaque = np.full_like(ramp, 255)
options = {"planarconfig": "separate", "compression": "zlib"}
tifffile.imwrite("grey.tif", np.stack((ramp, opaque)), photometric="minisblack", extrasamples=["unassalpha"], **options)
tifffile.imwrite("rgb.tif", np.stack((ramp, ramp[:, ::-1], opaque)), photometric="rgb", **options)
assert np.array_equal(tifffile.imread("grey.tif"), np.stack((ramp, opaque)))
grey, rgb = (Image.open(name) for name in ("grey.tif", "rgb.tif"))
greys, alphas = (np.asarray(grey)[:, :, channel] for channel in range(2))
equal = np.array_equal(np.asarray(rgb), np.stack((ramp, ramp[:, ::-1], opaque), axis=2))
print(f"{grey.mode}: greys {'equal' if np.array_equal(greys, ramp) else 'differ'}, alpha {np.unique(alphas)} for 255;")
print(f"RGB in planes: {'equal' if equal else 'differs'}")
assert grey.mode == "LA" and np.array_equal(greys, ramp) and not alphas.any() and equal
PY
"$folder/venv/bin/python" planes.py
