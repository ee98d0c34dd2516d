"""``python -m pem.export --out FILE.onnx``. Import nothing from here: it would hide the function ``pem.export``."""

import sys

from pem.exporting.command import main

if __name__ == "__main__":
    sys.exit(main())
