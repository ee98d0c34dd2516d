"""What the page computes without a browser: one pass of the network, many readings, small payloads."""

from __future__ import annotations

import base64
import dataclasses
import errno
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi import HTTPException
from halves_model import CAT_SCORE, SIMILARITY, HalvesBaseline, HalvesModel, picked_token
from PIL import Image
from small_model import small_model

import pem
from pem.load import EXAMPLES
from pem.runtimes import RUNTIMES, usable_runtimes
from ui.engine import BASELINE, MAX_SHOWN_PX, TASKS, Engine, Reading, ResultGone
from ui.networks import load_networks
from ui.storage import Storage
from ui.viewer.payload import reading_payload, result_payload
from ui.viewer.server import open_result, server_functions

# 3:4, so that the network sees it without padding and its halves are halves of the photo.
PHOTO = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def labels(reading: Reading) -> list[str]:
    return [segment.label for segment in reading.segmentation.segments]


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(HalvesModel())


@pytest.fixture(scope="module")
def result_id(engine: Engine) -> str:
    return engine.run(PHOTO)


def test_tasks_and_thresholds_read_the_kept_output_and_never_run_the_network() -> None:
    model = HalvesModel()
    engine = Engine(model)
    result = engine.result(engine.run(PHOTO))
    assert labels(engine.read(result, "panoptic", 0.5, 0.6)) == ["cat", "couch"]
    assert labels(engine.read(result, "panoptic", 0.7, 0.6)) == ["cat"]
    assert labels(engine.read(result, "panoptic", 0.95, 0.6)) == []
    assert labels(engine.read(result, "semantic", 0.95, 0.6)) == ["cat", "couch"]
    assert labels(engine.read(result, "instance", 0.7, 0.6)) == ["cat"]
    engine.choice(result, 0, 5, 7)
    assert model.forwards == 1


def test_the_kept_output_reads_like_the_network_s_own() -> None:
    model = small_model()
    photo = np.asarray(Image.fromarray(PHOTO).resize((96, 64)))
    config = dataclasses.replace(model.config, short_side_px=64, max_long_side_px=128)
    model.config = config
    batch = pem.preprocess([photo], config)
    with torch.no_grad():
        output = model(batch.pixels)
    engine = Engine(model)
    kept = engine.result(engine.run(photo))
    for task, own in (
        ("panoptic", pem.panoptic(output, batch, config, object_threshold=0.1, overlap_threshold=0.1)[0]),
        ("semantic", pem.semantic(output, batch, config)[0]),
    ):
        ours = engine.read(kept, task, 0.1, 0.1).segmentation
        assert len(own.segments) > 0
        assert [s.label for s in ours.segments] == [s.label for s in own.segments]
        assert np.mean(ours.ids == own.ids) > 0.99  # half precision may move a border by a pixel


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "depth"}, "There is no task 'depth'"),
        ({"object_threshold": 1.5}, "object_threshold is 1.5; it must lie between 0 and 1"),
    ],
)
def test_wrong_settings_say_what_is_wrong(engine: Engine, result_id: str, change, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        engine.read(engine.result(result_id), **{"task": "panoptic", **change})


def test_a_choice_that_does_not_exist_says_which_do(engine: Engine, result_id: str) -> None:
    result = engine.result(result_id)
    for query, layer, head, sentence in ((3, 0, 0, "no query 3"), (0, 6, 0, "no layer 6"), (0, 0, 8, "no head 8")):
        with pytest.raises(ValueError, match=f"There is {sentence}; choose one from 0 to"):
            engine.choice(result, query, layer, head)


def test_an_example_is_run_when_it_is_asked_for_and_not_kept(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "noise.png")
    model = HalvesModel()
    engine = Engine(model, examples=[tmp_path / "noise.png"], budget_bytes=0)
    assert engine.result("example-noise").name == "noise"
    engine.result("example-noise")
    assert model.forwards == 1
    engine.run(PHOTO)  # takes its place
    engine.result("example-noise")
    assert model.forwards == 3


def test_the_baseline_runs_when_somebody_asks_for_it_and_its_result_is_kept() -> None:
    model, baseline = HalvesModel(), HalvesBaseline()
    engine = Engine(model, baseline=baseline)
    result_id = engine.run(PHOTO, "noise")
    assert (model.forwards, baseline.forwards) == (1, 0)
    other_id = engine.other(result_id)
    assert other_id is not None and engine.other(other_id) == result_id
    result, other = engine.result(result_id), engine.result(other_id)
    assert (result.config.attention, other.config.attention) == ("prototype", "masked")
    assert other.name == "noise" and other.original_size == result.original_size
    drawn_by = [engine.read(each, "panoptic").segmentation.segments[0].queries for each in (result, other)]
    assert drawn_by == [(0,), (0,)]
    assert engine.result(other_id) is other and (model.forwards, baseline.forwards) == (1, 1)
    with pytest.raises(ResultGone, match="no longer kept"):
        engine.result("forgotten" + BASELINE)
    with pytest.raises(ResultGone):  # the baseline has no baseline
        engine.result(other_id + BASELINE)


def test_the_baseline_sees_exactly_the_pixels_that_the_model_saw() -> None:
    seen: list[torch.Tensor] = []

    class Watching(HalvesBaseline):
        def backbone(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(pixels)
            return super().backbone(pixels)

    engine = Engine(HalvesModel(), baseline=Watching())
    engine.result(engine.run(PHOTO) + BASELINE)  # noise, which a JPEG would change
    assert torch.equal(seen[0], pem.preprocess([PHOTO], engine.model.config).pixels)


def test_the_baseline_choice_is_that_of_the_query_with_the_most_similar_mask() -> None:
    engine = Engine(HalvesModel(), baseline=HalvesBaseline())
    result_id = engine.run(PHOTO)
    kept, choice, query, iou = engine.baseline_choice(result_id, 0, 2, 0)
    assert (query, iou) == (1, 1.0)
    np.testing.assert_array_equal(choice.scores, engine.choice(engine.result(result_id), 1, 2, 0).scores)
    assert kept is engine.result(result_id + BASELINE).layers[2]
    assert engine.baseline_choice(result_id + BASELINE, 0, 2, 0) is None


def test_a_query_without_a_mask_has_no_match_in_the_baseline() -> None:
    engine = Engine(HalvesModel(), baseline=HalvesBaseline())
    result_id = engine.run(PHOTO)
    with torch.inference_mode():
        engine.result(result_id).output.pred_masks[0, 1] = -1
    assert engine.baseline_choice(result_id, 0, 2, 0) is not None
    assert engine.baseline_choice(result_id, 1, 2, 0) is None


def test_the_baseline_runs_once_for_many_who_ask_at_the_same_time() -> None:
    baseline = HalvesBaseline()
    engine = Engine(HalvesModel(), baseline=baseline)
    other_id = engine.run(PHOTO) + BASELINE
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.result, [other_id] * 8))
    assert baseline.forwards == 1 and all(result is found[0] for result in found)


def test_without_a_baseline_there_is_no_other_result() -> None:
    engine = Engine(HalvesModel())
    result_id = engine.run(PHOTO)
    assert engine.other(result_id) is None and engine.baseline_choice(result_id, 0, 2, 0) is None
    with pytest.raises(ResultGone):
        engine.result(result_id + BASELINE)


def test_a_photo_that_the_gpu_has_no_memory_for_is_run_on_the_cpu_and_the_result_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = HalvesModel()
    engine, plain = Engine(model), Engine(model)
    devices = []

    def forward(device: torch.device, *arguments):
        devices.append(device.type)
        if len(devices) == 1:
            raise torch.OutOfMemoryError
        return plain._forward_on(device, *arguments)

    monkeypatch.setattr(engine, "_forward_on", forward)
    result = engine.result(engine.run(PHOTO))
    assert "the CPU segmented it" in result.notice and devices == ["cpu", "cpu"]
    expected = plain.result(plain.run(PHOTO))
    assert np.array_equal(result.output.pred_masks, expected.output.pred_masks) and expected.notice == ""


# ------------------------------------------------------------------------------------------------------------ payload


def test_the_payload_puts_prototypes_at_the_centres_of_their_cells(engine: Engine, result_id: str) -> None:
    payload = result_payload(engine, result_id)
    assert (payload["height"], payload["width"]) == PHOTO.shape[:2]
    for layer, index, similarity in zip(payload["layers"], payload["prototype_index"], payload["similarity"]):
        rows, cols = layer["rows"], layer["cols"]
        assert (rows * layer["stride"], cols * layer["stride"]) == (384, 512)
        for query in (0, 1):
            for head in range(8):
                row, col = divmod(index[query][head], cols)
                assert (row, col) == picked_token(query, head, rows, cols)
                assert layer["y"][row] == pytest.approx((row + 0.5) / rows, abs=1e-4)
                assert layer["x"][col] == pytest.approx((col + 0.5) / cols, abs=1e-4)
                assert similarity[query][head] == SIMILARITY
    assert payload["allowed_fraction"] == [[0.5, 0.5, 0.0]] * 6


def test_the_payload_tells_how_masks_grew(engine: Engine, result_id: str) -> None:
    payload = result_payload(engine, result_id)
    steps = payload["steps"]
    assert [row[0] for row in steps["area_fraction"]] == [0.0] + [0.5] * 6
    assert [row[0] for row in steps["final_iou"]] == [0.0] + [1.0] * 6
    assert steps["final_iou"][0][2] == 1.0  # empty from first to last
    assert steps["score"][6][0] == pytest.approx(CAT_SCORE, abs=1e-3)
    masks = payload["masks"]
    assert len(masks["sheets"]) == 7
    sheet, rows, cols = picture(masks["sheets"][6]), masks["rows"], masks["cols"]
    assert sheet.shape == (2 * rows, 2 * cols)  # three queries, two to a row
    tile = sheet[:rows, :cols]
    assert tile[:, : cols // 2 - 4].min() > 220 and tile[:, cols // 2 + 4 :].max() < 35
    assert sheet[:rows, cols:][:, : cols // 2 - 4].max() < 35  # query 1 is to the right of query 0


def test_the_id_map_survives_the_way_to_the_browser(engine: Engine, result_id: str) -> None:
    reading = engine.read(engine.result(result_id), "panoptic")
    payload = reading_payload(reading)
    channels = picture(payload["ids"]).astype(int)
    np.testing.assert_array_equal(channels[..., 0] + 256 * channels[..., 1], reading.segmentation.ids)
    assert [s["area_fraction"] for s in payload["segments"]] == [0.5, 0.5]
    assert payload["unassigned_fraction"] == 0
    assert [outcome["fate"] for outcome in payload["outcomes"]] == ["kept", "kept", "no object"]


@pytest.mark.parametrize("size", [(3000, 4000), (300, 4000), (40, 30)])
def test_a_payload_is_json_of_at_most_a_megabyte_and_is_shown_in_the_photo_s_shape(size: tuple[int, int]) -> None:
    # Noise is the worst that a JPEG can meet.
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    engine = Engine(pem.load_model("default", device="cpu"))
    for task in TASKS:
        payload = open_result(engine, engine.run(noise), task)
        assert len(json.dumps(payload, allow_nan=False)) <= 1_000_000
    height, width = payload["height"], payload["width"]
    assert max(height, width) == min(MAX_SHOWN_PX, max(size))
    assert height / width == pytest.approx(size[0] / size[1], rel=0.01)
    assert picture(payload["photo"]).shape == picture(payload["readings"][0]["ids"]).shape == (height, width, 3)


def test_the_server_answers_the_viewer_with_json_or_one_sentence(engine: Engine, result_id: str, tmp_path) -> None:
    read, other, choice, export = server_functions(engine, Storage(tmp_path))
    assert other([result_id, "semantic"])["id"] == result_id  # there is no other network
    assert [s["category"] for s in read([result_id, "panoptic", 0.7, 0.6])["segments"]] == ["cat"]
    with pytest.raises(HTTPException, match="Argument 2: input should be less than or equal to 1"):
        read([result_id, "panoptic", 2, 0.6])
    assert "press Segment again" in read(["gone", "panoptic", 0.7, 0.6])["error"]
    assert choice([result_id, 0, 1, 2])["index"] == 6 * 32 + 8  # 24 x 32 cells
    assert choice([result_id, 0, 9, 2])["error"].startswith("There is no layer 9")
    answer = export([result_id, "panoptic", 0.5, 0.6, 0.5, "overlay"])
    file = Path(answer["url"].partition("file=")[2])
    assert file.parents[3] == tmp_path and Image.open(file).size == (128, 96)
    assert "error" in export([result_id, "panoptic", 0.5, 0.6, 0.5, "nonsense"])


def test_a_disk_that_is_full_gets_one_sentence(
    engine: Engine, result_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Storage, "write_download", full)
    export = server_functions(engine, Storage(tmp_path))[-1]
    said = "The server cannot write the file now (No space left on device); please try again later."
    assert export([result_id, "panoptic", 0.5, 0.6, 0.5, "overlay"]) == {"error": said}


def same_as(expected: Engine, engine: Engine, result_id: str) -> None:
    ours, theirs = engine.result(result_id), expected.result(result_id)
    for task in TASKS:
        ids, other_ids = (each.read(kept, task).segmentation.ids for each, kept in ((engine, ours), (expected, theirs)))
        assert (ids == other_ids).mean() > 0.999
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        assert (layer.prototype_index == other.prototype_index).mean() > 0.999
        assert (layer.banned_bits == other.banned_bits).mean() > 0.999
    assert np.abs(ours.evolution.score - theirs.evolution.score).max() < 0.01


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_shows_what_torch_shows_of_model_and_baseline(runtime: str) -> None:
    if runtime not in usable_runtimes():
        pytest.skip(f"{runtime} is missing or too old.")
    cat = EXAMPLES / "cat.jpg"
    engines = []
    for name in (runtime, "torch"):
        model, baseline = load_networks("default", "cpu", runtime=name)
        engines.append(Engine(model, baseline=baseline, examples=[cat]))
    for result_id in ("example-cat", f"example-cat{BASELINE}"):
        same_as(engines[1], engines[0], result_id)
    result = engines[0].result("example-cat")
    assert list(result.stage_ms) == ["preprocess", "network + trace"] and result.stage_ms["network + trace"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_page_on_cuda_shows_much_the_same_as_on_the_cpu() -> None:
    engines = []
    for device in ("cuda", "cpu"):
        model, _ = load_networks("default", device)
        engines.append(Engine(model, examples=[EXAMPLES / "cat.jpg"]))
    on_gpu, on_cpu = (each.read(each.result("example-cat"), "panoptic").segmentation for each in engines)
    assert (on_gpu.ids == on_cpu.ids).mean() > 0.95  # float16 moves some prototypes
