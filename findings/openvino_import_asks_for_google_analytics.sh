#!/usr/bin/env bash
# "import openvino" reports to Google Analytics, before any model is read.
#
# The wheel brings the package openvino-telemetry. The import itself sends an event ("general_import"), in the background
# and without a question; its opt-out is a command of its own. A server that promises to contact nobody breaks that
# promise with this one import. Where the network is closed nothing is seen of it. Without the package
# openvino-telemetry the import works as well, and reports nothing.
#
# Seen with openvino 2026.4.1, openvino-telemetry 2025.2.0, a new home folder, and CI not set. Name lookups are noted and
# refused, so that nothing is sent here:
#   with openvino-telemetry: www.google-analytics.com
#   without: nobody
# Fails when that changes. Needs Python 3.10 or newer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.2.6 2>/dev/null
cd "$folder"
# Python runs this file first, in every process: the report is sent by a child.
cat > sitecustomize.py <<'PY'
"""Notes whose address is looked up, and refuses."""
import socket


def refuse(host, *args, **kwargs):
    with open("asked", "a") as file:
        print(host, file=file)
    raise OSError("not here")


socket.getaddrinfo = refuse
PY
cat > asked.py <<'PY'
"""Prints whose address the import of openvino looks up."""
import pathlib
import sys
import time

if sys.argv[1] == "without":
    sys.modules["openvino_telemetry"] = None
import openvino  # noqa: E402, F401

asked = pathlib.Path("asked")
deadline = time.monotonic() + 10
while not asked.exists() and time.monotonic() < deadline:
    time.sleep(0.1)
print(*sorted(set(asked.read_text().split())) if asked.exists() else ["nobody"])
PY
run() { rm -f asked; env -u CI -u TF_BUILD -u JENKINS_URL -u http_proxy -u https_proxy -u HTTP_PROXY -u HTTPS_PROXY \
    HOME="$folder" PYTHONPATH="$folder" "$folder/venv/bin/python" asked.py "$1" 2>/dev/null; }
found="with openvino-telemetry: $(run with)
without: $(run without)"
echo "$found"
expected="with openvino-telemetry: www.google-analytics.com
without: nobody"
[ "$found" = "$expected" ] || { echo "This has changed."; exit 1; }
