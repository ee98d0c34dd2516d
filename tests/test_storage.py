"""Files of visitors are gone within an hour, and with the server, or when the next server starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import processes
import pytest
from halves_model import HalvesBaseline, HalvesModel

from ui import storage
from ui.engine import BASELINE, Engine, ResultGone
from ui.storage import Storage, new_folder

ROOT = Path(__file__).parent.parent
PHOTO = np.zeros((96, 128, 3), np.uint8)
# Starts and stops like the real server, but with an empty page.
SERVE = """
import signal

import app

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes its background processes ignore it

def build_page(settings):
    with app.gr.Blocks() as page:
        pass
    (app.STORAGE.uploads / "photo.png").write_bytes(b"a visitor's")
    (app.STORAGE.downloads / "overlay.png").write_bytes(b"a visitor's")
    return page

launch = app.launch

def launch_and_say(page, *_, **__):
    launch(page, prevent_thread_lock=True, quiet=True)
    print(app.STORAGE.root, flush=True)

app.build_page, app.launch = build_page, launch_and_say
app.main()
"""


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Storage]:
    made = Storage(tmp_path)
    yield made
    made.remove()


@pytest.fixture
def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("ui.storage.time.time", lambda: now + 3600 - storage.SWEEP_SECONDS)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Linux and macOS")
def test_a_server_that_is_stopped_leaves_nothing_and_the_next_one_clears_up_after_one_that_was_killed(
    tmp_path: Path,
) -> None:
    environment = {"PATH": "", "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        with processes.started([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, env=environment) as server:
            assert server.stdout is not None
            root = Path(server.stdout.readline().strip())
            assert [path for path in tmp_path.glob("pem-studio-*") if path.is_dir()] == [root]
            assert root.stat().st_mode & 0o777 == 0o700 and len([*root.rglob("*.png")]) == 2
            server.send_signal(number)
            server.wait()
        assert root.exists() == (number == signal.SIGKILL)
    assert [*tmp_path.glob("pem-studio-*")] == []


def test_a_server_leaves_the_folder_of_another_alone(kept: Storage, tmp_path: Path) -> None:
    other = Storage(tmp_path)
    assert kept.root.is_dir() and other.root.is_dir() and kept.root != other.root
    other.remove()
    assert kept.root.is_dir() and not other.root.exists()


def test_old_files_go_and_new_ones_stay(kept: Storage, an_hour_later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off = kept.uploads / "tmp1234"  # a part of an upload
    example = new_folder(kept.uploads) / "cat.jpg"
    for file in (broken_off, new_folder(kept.uploads) / "photo.png", new_folder(kept.downloads) / "a.zip", example):
        file.write_bytes(b"x")
    kept.kept = lambda: {str(example)}
    called = []
    kept.sweep_with.append(lambda: called.append(True))
    kept.sweep()
    assert [path for path in kept.root.rglob("*") if path.is_file()] == [example] and called == [True]
    monkeypatch.undo()
    (kept.uploads / "new.png").write_bytes(b"x")
    kept.sweep()
    assert (kept.uploads / "new.png").exists() and kept.downloads.is_dir()


def test_the_oldest_files_make_room_for_new_ones(kept: Storage) -> None:
    kept.quota_bytes = 300
    files = [kept.uploads / name for name in ("example", "old", "middle", "new")]
    for file in files:
        file.write_bytes(bytes(60))
        time.sleep(0.05)  # clocks of file systems are coarse
    kept.kept = lambda: {str(files[0])}
    kept.make_room(60)
    assert all(file.exists() for file in files)
    kept.make_room(160)
    assert [file.name for file in files if file.exists()] == ["example", "new"]
    kept.make_room(10**9)
    assert [file.name for file in files if file.exists()] == ["example"]


def test_many_small_files_make_room_too(kept: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_FILES", 3)
    files = []
    for number in range(4):
        files.append(kept.uploads / str(number) / "photo.png")
        files[-1].parent.mkdir()
        files[-1].write_bytes(b"x")
        time.sleep(0.05)
    kept.make_room(1)
    assert [file.name for file in sorted(kept.uploads.iterdir())] == ["2", "3"]


def test_an_upload_that_was_broken_off_does_not_stay_for_an_hour(
    kept: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off, complete = kept.uploads / "tmp123", kept.uploads / "folder" / "photo.png"
    complete.parent.mkdir()
    for file in (broken_off, complete):
        file.write_bytes(b"x")
    kept.sweep()
    assert broken_off.exists()
    later = time.time() + storage.BROKEN_OFF_SECONDS + 10
    monkeypatch.setattr("ui.storage.time.time", lambda: later)
    kept.sweep()
    assert not broken_off.exists() and complete.exists()


def test_downloads_make_room_too(kept: Storage) -> None:
    kept.quota_bytes = 150
    for _ in range(5):
        kept.write_download("overlay.png", bytes(100))
    assert len([*kept.downloads.rglob("*.png")]) == 1


def test_a_download_makes_only_as_much_room_as_it_needs(kept: Storage) -> None:
    kept.quota_bytes = 300
    files = [kept.write_download("overlay.png", bytes(100)) for _ in range(3)]
    assert all(file.stat().st_size == 100 for file in files) and len({file.parent for file in files}) == 3


def test_folders_that_a_cleaner_removed_are_made_anew(kept: Storage) -> None:
    kept.root.rename(kept.root.with_name("elsewhere"))
    assert new_folder(kept.downloads).is_dir() and kept.downloads.is_dir()
    kept.sweep()
    kept.make_room(1)


def test_a_photo_and_what_was_made_of_it_are_forgotten(kept: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(HalvesModel(), baseline=HalvesBaseline(), storage=kept, budget_bytes=0)  # type: ignore[arg-type]
    old, start = engine.run(PHOTO), time.monotonic()
    monkeypatch.setattr("ui.results.monotonic", lambda: start + storage.KEEP_SECONDS + 1)
    new = engine.run(PHOTO)
    engine.result(old + BASELINE)
    assert len([*kept.results.iterdir()]) == 3
    engine.results.forget_older(storage.KEEP_SECONDS)
    assert [engine.results.get(result_id) is None for result_id in (old, old + BASELINE, new)] == [True, True, False]
    assert len([*kept.results.iterdir()]) == 1


def test_results_that_do_not_fit_into_memory_are_read_from_files(kept: Storage) -> None:
    engine = Engine(HalvesModel(), storage=kept, budget_bytes=0)  # type: ignore[arg-type]
    first = engine.run(PHOTO, file_name="first.png")
    before = engine.read(engine.result(first), "panoptic").segmentation.ids
    engine.run(PHOTO[:, :64])
    result = engine.result(first)
    assert result.file_name == "first.png" and result.original_size == PHOTO.shape[:2]
    assert np.array_equal(engine.read(result, "panoptic").segmentation.ids, before)


def test_a_result_whose_file_made_room_is_gone(kept: Storage) -> None:
    engine = Engine(HalvesModel(), storage=kept, budget_bytes=0)  # type: ignore[arg-type]
    old, _ = engine.run(PHOTO), engine.run(PHOTO)
    kept.quota_bytes = 0
    kept.make_room(0)
    with pytest.raises(ResultGone, match="no longer kept"):
        engine.result(old)


def test_results_that_cannot_be_written_stay_in_memory(kept: Storage, caplog: pytest.LogCaptureFixture) -> None:
    kept.results.rmdir()
    kept.results.write_bytes(b"")  # no folder: nothing can be written into it
    engine = Engine(HalvesModel(), storage=kept)  # type: ignore[arg-type]
    result_id = engine.run(PHOTO)
    assert engine.result(result_id).original_size == PHOTO.shape[:2] and "stays in memory only" in caplog.text


def test_no_id_leads_to_another_file(kept: Storage) -> None:
    engine = Engine(HalvesModel(), storage=kept, budget_bytes=0)  # type: ignore[arg-type]
    engine.run(PHOTO)
    file = next(kept.results.iterdir())
    for result_id in (file.name, str(file), f"../results/{file.name}"):
        assert engine.results.get(result_id) is None
