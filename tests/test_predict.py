"""The whole way from photos to segmentations, through a small network with random weights."""

from __future__ import annotations

import copy
import io
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run
from small_model import small_model

import pem
from pem.outputs import PEMOutput
from pem.packed import PackedSegmentation
from pem.postprocess import READINGS
from pem.predict import MAX_BATCH, predict

SIZES = [(40, 60), (48, 48), (40, 60), (60, 40), (48, 48)]


@pytest.fixture(scope="module")
def model() -> pem.PEM:
    return small_model(short_side_px=64, max_long_side_px=128)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    blobs = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)) for _ in SIZES]
    return [np.asarray(blob.resize((width, height))) for blob, (height, width) in zip(blobs, SIZES)]


def test_it_is_its_steps_in_one_call(model: pem.PEM, photos: list[np.ndarray]) -> None:
    batch = pem.preprocess(photos[:1], model.config)
    with torch.inference_mode():
        output = model(batch.pixels)
    for task, reading in (("panoptic", pem.panoptic), ("semantic", pem.semantic), ("instance", pem.instances)):
        (expected,) = reading(output, batch, model.config)
        found = predict(model, photos[0], task)
        assert found.ids.shape == SIZES[0]
        assert np.array_equal(found.ids, expected.ids) and found.segments == expected.segments


def test_a_list_gives_what_each_photo_gives_alone_in_order(model: pem.PEM, photos: list[np.ndarray]) -> None:
    for together, photo in zip(predict(model, photos, "semantic"), photos, strict=True):
        alone = predict(model, photo, "semantic")
        assert together.ids.shape == photo.shape[:2]
        assert np.array_equal(together.ids, alone.ids)
        for found, expected in zip(together.segments, alone.segments, strict=True):
            assert found.label == expected.label and found.score == pytest.approx(expected.score, abs=1e-4)


def test_photos_of_one_size_share_a_batch_of_bounded_size(
    model: pem.PEM, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def watched(pixels: torch.Tensor, trace: bool = False) -> PEMOutput:
        shapes.append(tuple(pixels.shape))
        return forward(pixels, trace)

    forward = model.forward
    monkeypatch.setattr(model, "forward", watched)
    predict(model, photos)
    assert shapes == [(2, 3, 64, 96), (2, 3, 64, 64), (1, 3, 96, 64)]
    shapes.clear()
    assert len(predict(model, [photos[0]] * (MAX_BATCH + 1))) == MAX_BATCH + 1
    assert [shape[0] for shape in shapes] == [MAX_BATCH, 1]
    assert predict(model, []) == []


def test_a_path_a_pil_image_and_an_array_are_the_same_photo(
    model: pem.PEM, photos: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(photos[0]).save(path)
    expected = predict(model, photos[0], "semantic").ids
    for photo in (path, str(path), Image.open(path), Image.fromarray(photos[0])):
        assert np.array_equal(predict(model, photo, "semantic").ids, expected)


@pytest.mark.parametrize("task", READINGS)
def test_the_results_of_a_list_are_packed_and_otherwise_the_same(
    model: pem.PEM, photos: list[np.ndarray], task: str
) -> None:
    thresholds = {"semantic": {}, "panoptic": {"object_threshold": 0.0}, "instance": {"score_threshold": 0.0}}[task]
    alone = predict(model, photos[3], task, **thresholds)
    (packed,) = predict(model, [photos[3]], task, **thresholds)
    assert type(alone) is pem.Segmentation and isinstance(packed, pem.Segmentation)
    assert len(alone.segments) > 0
    for found in (packed, pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed), replace(packed, segments=())):
        assert isinstance(found, PackedSegmentation)
        assert found.segments == (() if found.segments == () else alone.segments)
        assert found.outcomes == alone.outcomes
        for array, right in ((found.ids, alone.ids), (found.masks, alone.masks)):
            assert (array is None) == (right is None)
            if right is not None:
                assert array.dtype == right.dtype and np.array_equal(array, right)
                assert not array.flags.writeable


@pytest.mark.parametrize(
    "array", [np.zeros((0, 5, 7), bool), np.ones((1, 1), np.int32), np.arange(12).reshape(3, 4), np.eye(6, dtype=bool)]
)
def test_any_array_survives_being_packed(array: np.ndarray) -> None:
    packed = PackedSegmentation(array, (), array)
    for found in (packed.ids, packed.masks):
        assert found.shape == array.shape and found.dtype == array.dtype and np.array_equal(found, array)


def test_files_of_a_list_are_the_photos_that_they_hold_and_stay_undecoded(
    model: pem.PEM, photos: list[np.ndarray], tmp_path: Path
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    path = tmp_path / "photo.png"
    Image.fromarray(np.rot90(photos[0])).save(path, exif=turned)
    in_memory, half_size = Image.open(io.BytesIO(path.read_bytes())), tmp_path / "half.jpg"
    Image.fromarray(photos[0]).resize((120, 80)).save(half_size)
    drafted = Image.open(half_size)
    drafted.draft("RGB", (60, 40))
    files = [path, str(path), Image.open(path), in_memory]
    expected = predict(model, photos[0], "semantic").ids
    for found in predict(model, files, "semantic"):
        assert np.array_equal(found.ids, expected)
    assert files[2].tile and in_memory.tile  # pixels that were decoded into them would stay in memory
    assert predict(model, [drafted], "semantic")[0].ids.shape == (40, 60)
    pages = [Image.fromarray(photo) for photo in (photos[2], photos[0])]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    second = Image.open(tmp_path / "pages.tif")
    second.seek(1)
    assert np.array_equal(predict(model, [second], "semantic")[0].ids, expected)
    assert np.array_equal(predict(model, files[2], "semantic").ids, expected)  # they can still be read


def test_a_webp_of_a_list_stays_undecoded(model: pem.PEM, photos: list[np.ndarray], tmp_path: Path) -> None:
    path, frames = tmp_path / "photo.webp", [Image.fromarray(photo) for photo in (photos[0], photos[2])]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    first, second = Image.open(path), Image.open(path)
    second.seek(1)
    for photo, found in zip((photos[0], photos[2]), predict(model, [first, second], "semantic")):
        assert np.array_equal(found.ids, predict(model, photo, "semantic").ids)
    assert first._im is None
    assert np.array_equal(np.asarray(first), photos[0])  # it can still be read


def test_the_photo_of_a_list_that_cannot_be_used_is_named(
    model: pem.PEM, photos: list[np.ndarray], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.png"
    Image.fromarray(photos[0]).save(cut)
    cut.write_bytes(cut.read_bytes()[:-60])
    with pytest.raises(pem.ImageError, match=r"^.*cut\.png: The image file is damaged or incomplete\.$"):
        predict(model, [photos[0], cut])
    with pytest.raises(pem.ImageError, match=r"^.*gone\.jpg: There is no file"):
        predict(model, [photos[0], tmp_path / "gone.jpg"])
    with pytest.raises(pem.ImageError, match=r"^photo 1 \(counted from 0\): The image file is damaged"):
        predict(model, [photos[0], Image.open(cut)])
    with pytest.raises(ValueError, match=r"^photo 2 \(counted from 0\): An image array must be uint8 RGB"):
        predict(model, [photos[0], photos[1], np.zeros((20, 20), np.uint8)])


MEASURE = """
import sys
from pathlib import Path
import torch
from PIL import Image
from processes import run
from small_model import small_model
import pem

torch.set_num_threads(1)
model, path = small_model(short_side_px=64, max_long_side_px=128), Path(sys.argv[1])
def peak_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
peaks = []
for count in (2, 8):
    photos = [path, Image.open(path)] * (count // 2)
    results = pem.predict(model, photos, "panoptic", object_threshold=0.0)
    assert [result.segments for result in results] == [results[0].segments] * count
    peaks.append(peak_kib())
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="The system does not tell a process's peak memory.")
def test_many_large_photos_need_little_more_memory_than_two(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.linear_gradient("L").resize((4000, 3000)).convert("RGB").save(path)
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    done = run([sys.executable, "-c", MEASURE, path], env=environment)
    assert done.returncode == 0, done.stderr
    id_map_kib = 4000 * 3000 * 4 / 1024
    assert int(done.stdout) < 3 * id_map_kib  # six more decoded photos and id maps would be more than 10


def test_thresholds_reach_the_reading(model: pem.PEM, photos: list[np.ndarray]) -> None:
    everything = predict(model, photos[0], object_threshold=0.0, overlap_threshold=0.0)
    nothing = predict(model, photos[0], object_threshold=1.0)
    assert len(everything.segments) > 0 and nothing.segments == ()


def test_autocast_around_it_is_for_the_network_alone(model: pem.PEM, photos: list[np.ndarray]) -> None:
    batch = pem.preprocess(photos[:1], model.config)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output = model(batch.pixels)
    assert output.pred_logits.dtype == torch.bfloat16
    for task, read in READINGS.items():
        expected = read(output, batch, model.config)[0].ids
        with torch.autocast("cpu", torch.bfloat16):
            assert np.array_equal(predict(model, photos[0], task).ids, expected)
            assert np.array_equal(read(output, batch, model.config)[0].ids, expected)


def test_an_unknown_task_is_refused(model: pem.PEM, photos: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="no task 'depth'; choose one of: panoptic, semantic, instance"):
        predict(model, photos[0], "depth")


def test_a_model_in_training_mode_is_refused_and_left_alone(photos: list[np.ndarray]) -> None:
    model = small_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"in training mode; call model\.eval\(\) first"):
        predict(model, photos[:2])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_in_double_precision_is_run_in_it(model: pem.PEM, photos: list[np.ndarray]) -> None:
    double = copy.deepcopy(model).double()
    batch = pem.preprocess(photos[:1], model.config)
    with torch.inference_mode():
        (expected,) = pem.semantic(double(batch.pixels.double()), batch, model.config)
    assert np.array_equal(predict(double, photos[0], "semantic").ids, expected.ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_sent_to_autocast(
    model: pem.PEM, photos: list[np.ndarray], dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=f"in {dtype}; keep it in float32 and run it under torch.autocast"):
        predict(copy.deepcopy(model).to(dtype), photos[0])


def test_what_is_no_photo_is_refused(model: pem.PEM) -> None:
    with pytest.raises(ValueError, match="put a single image in brackets"):
        pem.preprocess("photo.jpg", model.config)
    with pytest.raises(ValueError, match="must be a path, a PIL image or a numpy array, not NoneType"):
        predict(model, None)
