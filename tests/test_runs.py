"""A training run from its beginning to its end: stopped, gone on with, extended, complete, begun anew, refused."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
import safetensors
import torch
from PIL import Image
from processes import free_port
from safetensors.torch import load_file
from small_run import CONFIG, TRAINING, run_command, write_data
from torch import multiprocessing

import pem
import pem.training.run as runs
import pem.training.train as command
from pem.training import folder, log
from pem.training.config import TrainingConfig
from pem.training.trainer import Trainer
from pem.weights import WeightsError

ROOT = Path(__file__).parent.parent
PATIENCE_S = 240  # for a process on a machine that is busy with something else
CPU = torch.device("cpu")

Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command for small data, which writes into the folder "run"."""
    write_data(tmp_path / "data")
    monkeypatch.setattr(sys, "argv", sys.argv)  # both are put back after the test
    monkeypatch.setattr(command, "get_config", command.get_config)
    monkeypatch.setattr(command, "get_training_config", command.get_training_config)

    def run(*options: str, data: str = "data", out: str = "run") -> None:
        run_command(tmp_path / data, tmp_path / out, *options)

    return run


def step_of(folder: Path) -> int:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["step"]


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def signals_after(step: int, *numbers: int) -> Callable[..., dict[str, float]]:
    """A train_step that sends signals to its own process after that step."""
    real = Trainer.train_step

    def train_step(self: Trainer, *batch: object) -> dict[str, float]:
        losses = real(self, *batch)
        if self.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return losses

    return train_step


# What a run is called, and what it was made from.


def test_a_model_is_named_after_its_folder_or_by_option_and_has_a_date(run: Run, tmp_path: Path) -> None:
    run("--iterations", "1")
    config = pem.load_model(tmp_path / "run" / "model.safetensors", device="cpu").config
    assert (config.name, config.trained) == ("run", date.today().isoformat())
    # A name keeps no run from going on.
    run("--iterations", "2", "--name", "Straße 5")
    for file in ("model.safetensors", "checkpoint.pt"):
        config = pem.load_model(tmp_path / "run" / file, device="cpu").config
        assert (config.name, config.trained) == ("Straße 5", date.today().isoformat())


def test_a_complete_run_says_so_and_touches_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    before = contents(tmp_path / "run")
    assert set(before) == {".lock", "checkpoint.pt", "log.jsonl", "model.safetensors"}
    capsys.readouterr()
    run()
    assert capsys.readouterr().out == (
        f"{tmp_path / 'run'} is complete with 2 iterations, so nothing was done; extend it with more --iterations, "
        "or begin anew with --anew or another --out.\n"
    )
    assert contents(tmp_path / "run") == before


def test_a_complete_run_without_its_model_writes_the_model(run: Run, tmp_path: Path) -> None:
    run()
    model = tmp_path / "run" / "model.safetensors"
    before = load_file(model)
    model.unlink()  # as if it was killed between the checkpoint and the model
    run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(model).items())


def test_a_run_is_extended_with_more_iterations_and_not_with_fewer(run: Run, tmp_path: Path) -> None:
    run()
    run("--iterations", "3")
    assert step_of(tmp_path / "run") == 3 and logged_steps(tmp_path / "run") == [2, 3]
    with safetensors.safe_open(tmp_path / "run" / "model.safetensors", framework="pt") as file:
        assert file.metadata()["step"] == "3"
    with pytest.raises(SystemExit, match="has had 3 iterations, more than the 2 that are asked for; ask for 3 or more"):
        run()


def test_a_run_begins_anew_on_request(run: Run, tmp_path: Path) -> None:
    run("--iterations", "3")
    with pytest.raises(SystemExit, match=r"made with other settings \(base_lr, seed\); .* begin anew with --anew"):
        run("--iterations", "3", "--seed", "1", "--lr", "1e-3")
    run("--iterations", "1", "--seed", "1", "--lr", "1e-3", "--anew")
    assert step_of(tmp_path / "run") == 1 and logged_steps(tmp_path / "run") == [1]


def test_changed_labels_are_refused(run: Run, tmp_path: Path) -> None:
    run("--iterations", "1")
    before = contents(tmp_path / "run")
    path = tmp_path / "data" / "panoptic_train" / "0.png"
    ids = np.array(Image.open(path))
    ids[:30] = ids[-1, -1]
    Image.fromarray(ids).save(path)
    for iterations in ("1", "2"):
        with pytest.raises(SystemExit, match=r"made with other settings \(labels\); go on with the same"):
            run("--iterations", iterations)
    assert contents(tmp_path / "run") == before


def test_another_start_is_refused_and_the_same_weights_in_another_file_are_not(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in ((1, "one"), (2, "two")):
        torch.manual_seed(seed)
        model = pem.build_model(CONFIG)
        pem.save_weights(model, tmp_path / f"{name}.safetensors")
    run("--iterations", "1", "--start", str(tmp_path / "one.safetensors"))
    with pytest.raises(SystemExit, match=r"made with other settings \(start\)"):
        run("--iterations", "1", "--start", str(tmp_path / "two.safetensors"))
    with pytest.raises(SystemExit, match=r"made with other settings \(start\)"):
        run("--iterations", "1")
    assert not caplog.messages
    again = pem.load_model(tmp_path / "one.safetensors", device="cpu", fast=False)
    again.config = dataclasses.replace(again.config, name="again")
    pem.save_weights(again, tmp_path / "again.safetensors", {"note": "the same weights"})
    run("--iterations", "1", "--start", str(tmp_path / "again.safetensors"))
    # On a machine without that file the checkpoint is enough.
    run("--iterations", "1", "--start", str(tmp_path / "moved.safetensors"))
    assert capsys.readouterr().out.count("is complete with 1 iterations") == 2
    assert caplog.messages == [
        "The run goes on, but whether it began with these weights is not known: There is no weights file "
        f"{tmp_path / 'moved.safetensors'}."
    ]


def trainer_of(origin: dict[str, str], training: TrainingConfig = TRAINING) -> Trainer:
    torch.manual_seed(0)
    return Trainer(pem.PEM(CONFIG), training, CPU, autocast=False, seed=0, origin=origin)


def test_a_start_that_could_not_be_found_once_is_not_forgotten(tmp_path: Path) -> None:
    model = pem.PEM(CONFIG)
    for origin in ({"start": "true", "labels": "x"}, {"start": "", "labels": "x"}):
        trainer = Trainer(model, TRAINING, torch.device("cpu"), False, 0, origin)
        if (tmp_path / "checkpoint.pt").exists():
            trainer.load(tmp_path / "checkpoint.pt")
        trainer.save(tmp_path / "checkpoint.pt")
    other = Trainer(model, TRAINING, torch.device("cpu"), False, 0, {"start": "other", "labels": "x"})
    with pytest.raises(ValueError, match=r"other settings \(start\)"):
        other.load(tmp_path / "checkpoint.pt")


def test_what_is_not_known_of_a_checkpoint_is_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    trainer_of({"labels": "a", "start": "b"}).save(path)
    for origin in ({"labels": "a", "start": "b"}, {"labels": "", "start": "b"}, {}):
        trainer_of(origin).load(path)
    with pytest.raises(ValueError, match=r"other settings \(labels, start\)"):
        trainer_of({"labels": "b", "start": "c"}).load(path)
    state = torch.load(path, weights_only=True)
    del state["origin"], state["config"]  # as older versions wrote it, with the preset's name among the settings
    torch.save(state | {"settings": state["settings"] | {"name": "default"}}, path)
    trainer_of({"labels": "b", "start": "c"}).load(path)


# Stopped by signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_the_same_command_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run("--iterations", "3", out="uninterrupted")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", signals_after(1, number))
        with pytest.raises(SystemExit) as ended:
            run("--iterations", "3")
    assert ended.value.code == 128 + number
    assert capsys.readouterr().out == "Stopped after step 1 of 3; the same command goes on.\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert step_of(tmp_path / "run") == 1 and not (tmp_path / "run" / "model.safetensors").exists()
    run("--iterations", "3")
    expected = load_file(tmp_path / "uninterrupted" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_that_began_anew_goes_on_without_that_option(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trainer, "train_step", signals_after(1, signal.SIGTERM))
    with pytest.raises(SystemExit):
        run("--anew")
    assert "after step 1 of 2; the same command without --anew goes on" in capsys.readouterr().out


def test_a_signal_at_the_last_step_changes_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "train_step", signals_after(2, signal.SIGTERM))
    run()
    assert (tmp_path / "run" / "model.safetensors").exists()


def python(code: str, *arguments: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """Another interpreter, in a session of its own, as a terminal starts a program."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command_line = [sys.executable, "-c", code, *arguments]
    return processes.started(command_line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell when a parent dies")
def test_the_second_signal_ends_a_process_at_once_but_not_the_second_word_of_its_parents_death() -> None:
    code = (
        "import os, signal\n"
        "from pem.training.processes import noted_signals\n"
        "with noted_signals() as noted:\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(noted == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    with python(code) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert output == "True\n" and process.returncode == -signal.SIGTERM


# Trains for ever, and tells each step and the processes that load its photos.
ENDLESS = """
import multiprocessing, sys
from pathlib import Path
from pem.training.trainer import Trainer
from small_run import run_command

train_step = Trainer.train_step

def train_step_and_tell(self, *batch):
    losses = train_step(self, *batch)
    print("step ", *(process.pid for process in multiprocessing.active_children()), flush=True)
    return losses

Trainer.train_step = train_step_and_tell
run_command(Path(sys.argv[1]) / "data", Path(sys.argv[1]) / "run", "--iterations", "1000000", "--workers", "1")
"""


def until_its_first_step(process: subprocess.Popen[str]) -> list[int]:
    """The ids of the processes that load photos."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        if "step " in line:  # behind the bar
            return [int(word) for word in line.split("step ")[1].split()]
        said.append(line)
    raise AssertionError("".join(said))


def test_a_photo_that_a_loader_cannot_read_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    for photo in (tmp_path / "data" / "train").iterdir():
        photo.write_bytes(photo.read_bytes()[:-1000])
    code = (
        "import sys; from pathlib import Path; from small_run import run_command\n"
        'run_command(Path(sys.argv[1]), Path(sys.argv[2]), "--workers", "1")'
    )
    with python(code, str(tmp_path / "data"), str(tmp_path / "run")) as process:
        said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert said.strip().endswith(".jpg cannot be read (The image file is damaged or incomplete.); replace the file.")


@pytest.mark.skipif(os.name != "posix", reason="of terminals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_whose_terminal_or_reader_is_gone_saves_its_checkpoint(tmp_path: Path, number: int) -> None:
    """``tee`` dies of the same Ctrl-C, and a closed window takes its terminal along."""
    write_data(tmp_path / "data")
    code = (
        "import signal, sys; from pathlib import Path; from small_run import run_command\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup the tests, and what they start, ignore it
        'run_command(Path(sys.argv[1]), Path(sys.argv[2]), "--iterations", "10000")'
    )
    with python(code, str(tmp_path / "data"), str(tmp_path / "run")) as process:
        assert process.stdout is not None
        log_file = tmp_path / "run" / "log.jsonl"
        while not log_file.exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.stdout.close()
        process.stdout = None  # from now on its output breaks
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 128 + number
    assert step_of(tmp_path / "run") >= 20


def test_a_run_that_ended_while_the_next_one_was_prepared_is_not_replaced(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = runs.prepare

    def meanwhile(*arguments):
        (tmp_path / "run" / "checkpoint.pt").write_bytes(b"of the first")
        return prepare(*arguments)

    monkeypatch.setattr(runs, "prepare", meanwhile)
    with pytest.raises(SystemExit, match="Another training has ended in .*run meanwhile; run the command again"):
        run("--iterations", "1")
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == b"of the first"


def test_a_file_that_cannot_be_read_loses_no_step(tmp_path: Path) -> None:
    class Loader:
        num_workers = 0

        def __iter__(self):
            yield "a batch"
            raise ValueError("5.png cannot be read; replace the file.")

    saved: list[Path] = []
    trainer = SimpleNamespace(step=3, save=saved.append)
    with pytest.raises(ValueError, match="5.png cannot be read"):
        list(runs.batches_of(Loader(), trainer, tmp_path / "checkpoint.pt"))  # type: ignore[arg-type]
    assert saved == [tmp_path / "checkpoint.pt"]


def test_a_second_run_in_a_folder_is_refused_while_the_first_runs(run: Run, tmp_path: Path) -> None:
    run("--iterations", "1")
    with folder.claimed(tmp_path / "run"), pytest.raises(SystemExit, match="Another training runs in .*run; wait for"):
        run("--iterations", "2")
    assert step_of(tmp_path / "run") == 1
    run("--iterations", "2")
    assert step_of(tmp_path / "run") == 2


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(lock: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder.FileLock, "acquire", refuse)
    run()
    assert step_of(tmp_path / "run") == 2
    assert "run cannot be locked ([Errno 37] No locks available); start no second training in it." in caplog.text


def test_a_model_without_its_checkpoint_is_not_replaced_unasked(run: Run, tmp_path: Path) -> None:
    run()
    model = tmp_path / "run" / "model.safetensors"
    (tmp_path / "run" / "checkpoint.pt").unlink()
    before = contents(tmp_path / "run")
    for options in ([], ["--start", str(model)]):
        with pytest.raises(
            SystemExit, match="model.safetensors has no checkpoint beside it to go on from; give another"
        ):
            run(*options)
    assert contents(tmp_path / "run") == before
    run("--anew")
    assert step_of(tmp_path / "run") == 2


def test_a_loader_that_was_killed_loses_no_step(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.train_step

    def step_and_lose_the_loader(trainer: Trainer, *arguments: object) -> dict[str, float]:
        losses = step(trainer, *arguments)
        if trainer.step == 2:
            (loader,) = multiprocessing.active_children()
            os.kill(loader.pid, signal.SIGKILL)
        return losses

    monkeypatch.setattr(Trainer, "train_step", step_and_lose_the_loader)
    with pytest.raises(
        SystemExit, match="A process that loads photos was ended from outside.*The same command goes on"
    ):
        run("--workers", "1", "--iterations", "50")
    assert 2 <= step_of(tmp_path / "run") < 50


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), True),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), True),
        (EOFError(), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "photo.jpg"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("expected all tensors to be on the same device"), False),
    ],
)
def test_a_lost_loader_is_known_wherever_it_is_missed(error: Exception, lost: bool) -> None:
    assert runs.is_of_a_lost_loader(error) == lost


def test_shared_memory_that_is_too_small_is_said_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = dataclasses.replace(TRAINING, batch_size=32, crop_px=(512, 1024))
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    with pytest.raises(
        ValueError, match="has 64 MiB for photos that wait, and they need 160; use --workers 0 or a small"
    ):
        runs.check_shared_memory(big, 1, tmp_path)
    runs.check_shared_memory(TRAINING, 1, tmp_path)
    runs.check_shared_memory(big, 0, tmp_path)
    runs.check_shared_memory(big, 1, tmp_path / "no such folder, as on other systems")


def test_a_model_is_run_at_a_size_that_it_was_trained_at(run: Run, tmp_path: Path) -> None:
    run("--short-sides", "64", "80", "72")
    config = pem.load_model(tmp_path / "run" / "model.safetensors", device="cpu").config
    assert (config.short_side_px, config.max_long_side_px) == (72, 144)


def test_sides_that_the_preset_would_cap_are_trained_at(run: Run, tmp_path: Path) -> None:
    assert TRAINING.max_long_side_px < 1280
    run("--short-sides", "640")
    config = pem_config(tmp_path)
    with safetensors.safe_open(tmp_path / "run" / "model.safetensors", framework="pt") as file:
        training = json.loads(file.metadata()["training"])
    assert (config.short_side_px, config.max_long_side_px, training["max_long_side_px"]) == (640, 1280, 1280)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end the children of a killed process later")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_a_whole_run_is_interrupted_or_its_parent_killed(tmp_path: Path, number: int) -> None:
    write_data(tmp_path / "data")
    with python(ENDLESS, str(tmp_path)) as process:
        assert len(until_its_first_step(process)) == 1
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as Ctrl-C, which all processes of a terminal get
        else:
            process.kill()
        output, _ = process.communicate(timeout=PATIENCE_S)  # until the last process that could write has ended
    if number == signal.SIGINT:
        assert process.returncode == 130, output
        assert "of 1000000; the same command goes on." in output and "Traceback" not in output
        assert step_of(tmp_path / "run") >= 1
    else:
        assert process.returncode == -signal.SIGKILL


def _one_of_two(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    if rank == 1:
        Trainer.train_step = signals_after(2, signal.SIGTERM)
    sys.stdout = open(folder / f"{rank}.txt", "w", encoding="utf-8")
    run_command(folder / "data", folder / "run", "--iterations", "1000000", "--batch-size", "4")


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux only")
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    both = [spawn.Process(target=_one_of_two, args=(rank, port, tmp_path), daemon=True) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(PATIENCE_S)
    codes = [process.exitcode for process in both]
    for process in both:
        process.kill()
    assert codes == [143, 143]
    assert step_of(tmp_path / "run") == 2
    said = [(tmp_path / f"{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)]
    assert said == ["Stopped after step 2 of 1000000; the same command goes on.\n", ""]


def test_checkpoints_are_saved_as_often_as_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(Trainer, "save", lambda self, path: steps.append(self.step))
    run("--iterations", "3", "--save-minutes", "0")
    assert steps == [1, 2, 3]
    run("--iterations", "3", "--save-minutes", "inf", "--anew")
    assert steps == [1, 2, 3, 3]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, trainer = tmp_path / "checkpoint.pt", trainer_of({})
    trainer.save(path)
    before = contents(tmp_path)

    def fail_halfway(state: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail_halfway)
    with pytest.raises(OSError, match="checkpoint.pt cannot be written .*; make room for it"):
        trainer.save(path)
    assert contents(tmp_path) == before


def test_a_log_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run" / "log.jsonl").mkdir(parents=True)
    with pytest.raises(SystemExit, match="log.jsonl cannot be written"):
        run()


def test_a_folder_in_the_place_of_a_result_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint.pt").mkdir(parents=True)
    with pytest.raises(SystemExit, match="checkpoint.pt is a folder, where the run keeps a file"):
        run()


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors"])
def test_what_a_run_starts_from_is_not_replaced_by_it(run: Run, tmp_path: Path, name: str) -> None:
    run()
    before = contents(tmp_path / "run")
    with pytest.raises(SystemExit, match=f"--anew would replace .*{name}, which is the --start; give another --out"):
        run("--anew", "--start", str(tmp_path / "run" / name))
    assert contents(tmp_path / "run") == before


def test_a_checkpoint_with_an_odd_step_is_damaged(run: Run, tmp_path: Path) -> None:
    run()
    path = tmp_path / "run" / "checkpoint.pt"
    torch.save(torch.load(path, weights_only=True) | {"step": "last"}, path)
    with pytest.raises(SystemExit, match="checkpoint.pt is damaged or of another version"):
        run()


# A checkpoint is a model, too.


def test_a_checkpoint_is_read_as_the_model_of_its_averaged_weights(run: Run, tmp_path: Path) -> None:
    run()
    expected = load_file(tmp_path / "run" / "model.safetensors")
    model = pem.load_model(tmp_path / "run" / "checkpoint.pt", device="cpu", fast=False)
    assert model.config.num_classes == 3 and model.config.max_long_side_px == CONFIG.max_long_side_px
    for name, tensor in expected.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with pytest.raises(WeightsError, match="is no default: its own config differs; give the file alone"):
        pem.load_model("default", weights=tmp_path / "run" / "checkpoint.pt")


def test_a_checkpoint_without_averages_is_read_as_the_model_of_its_weights(tmp_path: Path) -> None:
    trainer = trainer_of({}, dataclasses.replace(TRAINING, ema_decay=0.0))
    trainer.save(tmp_path / "checkpoint.pt")
    model = pem.load_model(tmp_path / "checkpoint.pt", device="cpu", fast=False)
    for name, tensor in trainer.core.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_checkpoint_goes_with_its_preset_and_is_a_start(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--iterations", "1")
    monkeypatch.setitem(
        pem.config.PRESETS, "small", dataclasses.replace(pem_config(tmp_path), name="small", trained="")
    )
    loaded = pem.load_model("small", device="cpu", fast=False, weights=tmp_path / "run" / "checkpoint.pt")
    assert loaded.config.name == "run"
    run("--iterations", "1", "--start", str(tmp_path / "run" / "checkpoint.pt"), out="second")
    assert (tmp_path / "second" / "model.safetensors").is_file()


def pem_config(folder: Path) -> pem.PEMConfig:
    return pem.load_model(folder / "run" / "model.safetensors", device="cpu").config


# Sizes at the edge, and what is said of them.


@pytest.mark.parametrize(
    "is_thing", [(1,), (0,), (1, 1, 1), (0, 0, 0)], ids=["one thing", "one stuff", "things", "stuff"]
)
def test_one_class_only_things_and_only_stuff_train(run: Run, tmp_path: Path, is_thing: tuple[int, ...]) -> None:
    write_data(tmp_path / "few", is_thing)
    run("--iterations", "1", data="few")
    assert pem_config(tmp_path).num_classes == len(is_thing)


@pytest.mark.parametrize("options", [("--crop", "31", "31"), ("--crop", "1", "1"), ("--short-sides", "1")])
def test_tiny_photos_train(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    run("--iterations", "1", *options)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_more_segments_than_queries_are_said_with_both_numbers(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run("--iterations", "1", "--num-queries", "1")
    assert caplog.messages == [
        "A photo has 2 segments and the model 1 queries, so it learns no more of them; --num-queries 2 is enough for "
        "all."
    ]
    run("--iterations", "1", "--num-queries", "2", "--anew")
    assert len(caplog.messages) == 1


def test_losses_that_are_exactly_0_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = log.Log(tmp_path / "log.jsonl", trainer := trainer_of({}))
    for step, mask in enumerate((1.0, 0.0, 0.0, 0.0, 0.0), start=1):
        trainer.step = step
        lines.add({"class": 1.0, "mask": mask, "dice": 0.0})
        if step in (2, 4, 5):
            lines.write()
    assert caplog.messages == [
        "No segment was learned in steps 3 to 4: the losses of all masks were 0; look whether the labels fit the "
        "photos."
    ]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--iterations", "0"], "iterations is 0; it must be 1 or more."),
        (
            ["--batch-size", "1"],
            "The batch has one photo; give it two at least (on CPUs, each process)",
        ),
        (["--batch-size", "5"], "The batch of 5 is larger than the split of 4 photos; change its size."),
        (["--workers", "-1"], "--workers is -1; it must be at least 0."),
        (["--save-minutes", "-1"], "--save-minutes is -1.0; it must be at least 0."),
        (["--save-minutes", "nan"], "--save-minutes is nan; it must be at least 0."),
        (["--lr", "nan"], "--lr is nan; it must be a number above 0."),
        (["--lr", "0"], "--lr is 0.0; it must be a number above 0."),
        (["--lr", "-1"], "--lr is -1.0; it must be a number above 0."),
        (["--lr", "inf"], "--lr is inf; it must be a number above 0."),
        (["--backbone-lr-factor", "inf"], "backbone_lr_factor is inf; it must be 0 or more."),
        (["--crop", "0", "64"], "crop_px is (0, 64); it must be 1 or more."),
        (["--num-queries", "0"], "num_queries is 0; it must be from 1 to 10000."),
        (["--seed", "-1"], "--seed is -1; it must be at least 0."),
        (["--seed", str(2**32)], "--seed is 4294967296; it must be less than 2**32."),
        (["--name", ""], "--name is ''; give the model a name of one line."),
        (["--name", "a\nb"], "--name is 'a\\nb'; give the model a name of one line."),
        (["--data", "FILE"], "FILE is a file; --data is the folder with panoptic_train.json."),
        (["--out", "FILE"], "FILE is a file; --out is a folder."),
        (["--out", "FILE/run"], "FILE/run cannot be written to (Not a directory); give another folder as --out."),
        (
            ["--start", "FILE"],
            "FILE is of an unknown kind; weights are .pth, .pt, .bin, .ckpt, .pkl, .safetensors files.",
        ),
        (["--start", "none.pth"], "There is no weights file none.pth."),
        (
            ["--start", "FOLDER"],
            "FOLDER is a directory; give the file of weights in it",
        ),
    ],
)
def test_an_option_that_cannot_be_is_said_in_one_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    (tmp_path / "FOLDER").mkdir()
    with pytest.raises(SystemExit) as ended:
        run("--iterations", "1", *options)
    assert str(ended.value.code).startswith(sentence) and "\n" not in str(ended.value.code)


# Other systems.


def test_memory_is_in_mib_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(ru_maxrss=1222 * 2**20)
    resource = SimpleNamespace(getrusage=lambda who: usage, RUSAGE_SELF=0)
    monkeypatch.setattr(log, "resource", resource)
    monkeypatch.setattr(sys, "platform", "darwin")  # gives bytes
    assert log.peak_memory_mib(CPU) == 1222
    monkeypatch.setattr(sys, "platform", "linux")  # gives KiB
    usage.ru_maxrss = 1222 * 2**10
    assert log.peak_memory_mib(CPU) == 1222


def test_training_does_without_the_module_resource(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setitem(sys.modules, "resource", None)
    spec = importlib.util.spec_from_file_location("log_without_resource", ROOT / "pem" / "training" / "log.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.peak_memory_mib(CPU) is None
    trainer = trainer_of({})
    lines = module.Log(tmp_path / "log.jsonl", trainer)
    trainer.step = 1
    lines.add({"class": 1.0, "mask": 1.0, "dice": 1.0})
    assert "MiB" not in lines.write()
    assert "memory_mib" not in json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))


def test_help_needs_no_docstrings() -> None:
    helped = processes.run([sys.executable, "-OO", "-m", "pem.training.train", "--help"], cwd=ROOT)
    assert helped.returncode == 0 and "--save-minutes" in helped.stdout
