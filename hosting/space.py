"""Lays out a folder that can be uploaded as a Hugging Face Space: python -m hosting.space --out DIR"""

from __future__ import annotations

import argparse
import re
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = (
    *("app.py", "pem", "ui", "analysis", "assets", "docs"),
    *("LICENSE", "README.md", "SECURITY.md", "requirements.txt"),
)
LARGE = ("*.safetensors", "*.onnx", "*.png", "*.jpg", "*.gz")  # the Hub takes such files by LFS only
# ZeroGPU brings its own torch and lends a GPU call by call. A CPU needs none of the 4 GB of libraries for GPUs.
HARDWARE = {"zero": "zero-a10g", "cpu": "cpu-basic"}
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu\n"
# Runs a model of the Hub instead of the bundled one.
START = '''"""Serves the page with a model of the Hub, which was downloaded when the Space was built."""

import os

os.environ.setdefault("PEM_MODEL", "{model}")

import app

app.main([])
'''


def lay_out(out: Path, hardware: str, model: str | None = None) -> None:
    """Writes the Space into a new or empty folder.

    ``model`` is "owner/repo@commit" on the Hub; without one the bundled weights go along. Raises ValueError.
    """
    repository, commit = "", ""
    if model is not None:
        found = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", model)
        if found is None:
            raise ValueError(
                f"{model!r} does not pin a model; give OWNER/REPO@COMMIT with all 40 digits of the commit."
            )
        repository, commit = found.groups()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder; choose another one.")
    out.mkdir(parents=True, exist_ok=True)
    left_out = shutil.ignore_patterns("__pycache__", ".*", *(["*.safetensors", "*.onnx"] if model else []))
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, out / part, ignore=left_out)
        else:
            shutil.copy(ROOT / part, out / part)
    for path in out.rglob("*"):  # the checkout may be one that nobody can write to
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    settings = [f"suggested_hardware: {HARDWARE[hardware]}"]
    if model is not None:
        settings += ["preload_from_hub:", f"  - {repository} model.safetensors {commit}"]
        _replace(out / "README.md", "app_file: app.py", "app_file: space.py")
        (out / "space.py").write_text(START.format(model=model), encoding="utf-8")
    _replace(out / "README.md", "license: apache-2.0", "\n".join(["license: apache-2.0", *settings]))
    if hardware == "cpu":
        requirements = out / "requirements.txt"
        requirements.write_text(CPU_WHEELS + requirements.read_text(encoding="utf-8"), encoding="utf-8")
    attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE)
    (out / ".gitattributes").write_text(attributes, encoding="utf-8")


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
    file.write_text(text.replace(old, new), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m hosting.space", description="Lays out a Hugging Face Space.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--hardware", choices=HARDWARE, default="zero", help="what the Space will run on (zero)")
    parser.add_argument(
        "--model", metavar="OWNER/REPO@COMMIT", help="download this model.safetensors of the Hub (the bundled weights)"
    )
    options = parser.parse_args(arguments)
    try:
        lay_out(options.out, options.hardware, options.model)
    except ValueError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{options.out} cannot be written ({error.strerror}); choose another --out.")
    print(f"Upload it: hf upload OWNER/SPACE {options.out} . --repo-type space")


if __name__ == "__main__":
    main()
