#!/usr/bin/env bash
# With trigger_mode="always_last", a click that also cancels the running event is itself lost.
#
# "always_last" promises that of the clicks made while an event runs, the last one has its turn afterwards. One would
# expect that cancelling the running event (cancels=[event] on the same button) only brings that turn forward: the newest
# wish replaces the older one. Instead the browser cancels the running event and never sends the click that was put off.
# No error is shown. The next click works again. Without the cancellation both clicks reach the server.
#
# Seen with gradio 6.31.0 and Debian's Chromium:
#   always_last:              2 calls for 2 clicks
#   always_last with cancels: 1 call for 2 clicks
# Fails when that changes. Needs chromium.
set -euo pipefail
command -v chromium >/dev/null || { echo "There is no Chromium: apt-get install chromium."; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gradio==6.31.0 playwright==1.65.2 2>/dev/null
cd "$folder"
cat > clicks.py <<'PY'
"""Clicks twice while the first event runs, and counts the calls."""
import shutil
import sys
import time

import gradio as gr
from playwright.sync_api import sync_playwright

calls = []


def work():
    calls.append(time.monotonic())
    time.sleep(4)
    return f"call {len(calls)}"


with gr.Blocks() as page:
    button, told = gr.Button("Go", elem_id="go"), gr.Textbox(label="told")
    event = button.click(work, None, told, trigger_mode="always_last")
    if sys.argv[1] == "cancels":
        button.click(None, cancels=[event])

_, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    tab = browser.new_page()
    tab.goto(url)
    tab.locator("#go").click()
    while not calls:
        tab.wait_for_timeout(100)
    tab.locator("#go").click()
    tab.wait_for_timeout(12_000)
    browser.close()
page.close(verbose=False)
print(len(calls))
PY
alone=$("$folder/venv/bin/python" clicks.py alone | tail -1)
with_cancels=$("$folder/venv/bin/python" clicks.py cancels | tail -1)
echo "2 clicks: $alone calls; with cancels: $with_cancels"
[ "$alone" = 2 ] && [ "$with_cancels" = 1 ]
