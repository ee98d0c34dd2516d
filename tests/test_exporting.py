"""A PEM in a file: it computes what torch does, in every runtime, and what cannot be used is said in a sentence."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from small_model import clear_choices, small_model

import pem
from pem.arrays import Arrays, as_arrays
from pem.exported import ExportedPEM, fields, read_remarks
from pem.exporting import check
from pem.exporting.command import main
from pem.exporting.network import Exportable, make_padding_constant
from pem.fastest import DISAGREEMENT
from pem.model import run_on_arrays
from pem.preprocess import preprocess_arrays
from pem.runtimes import RUNTIMES, openvino_core, usable_runtimes

pytestmark = pytest.mark.timeout(900)  # torch takes a minute to trace a network, several on a busy machine
onnx = pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
pytest.importorskip("onnxscript", reason="pip install -r requirements-export.txt")


HERE = [
    pytest.param(name, marks=pytest.mark.skipif(name not in usable_runtimes(), reason=f"{name} is missing or too old"))
    for name in RUNTIMES
]
# With these seeds no choice on the photos hangs on rounding, which the fixture checks.
SEEDS = {"prototype": 5, "masked": 0}


@pytest.fixture(scope="module", params=SEEDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[pem.PEM, Path]:
    """A model, and a file that it was exported to, with its trace."""
    sizes: dict[str, Any] = {"short_side_px": 64, "max_long_side_px": 96}
    model = small_model(SEEDS[request.param], attention=request.param, **sizes)
    for photo in check.example_photos():
        batch = preprocess_arrays([photo], model.config)
        clear_choices(run_on_arrays(model, batch.pixels, trace=True), model.config.num_heads)
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    comparisons = pem.export(model, path, trace=True)
    assert [comparison.runtime for comparison in comparisons] == usable_runtimes()
    assert all(comparison.prototypes == 1 and comparison.photos == 6 for comparison in comparisons)
    return model, path


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("runtime", HERE)
@pytest.mark.parametrize("shape", [(1, 3, 64, 96), (3, 3, 96, 64), (2, 3, 32, 32)])
def test_every_size_and_batch_gives_what_torch_gives(
    exported: tuple[pem.PEM, Path], runtime: str, shape: tuple[int, ...]
) -> None:
    model, path = exported
    pixels = random_pixels(*shape)
    found = pem.load_model(path, runtime=runtime)(pixels)
    assert isinstance(found, Arrays)
    for ours, expected in zip(found, as_arrays(run_on_arrays(model, pixels)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("runtime", HERE)
def test_the_trace_is_torch_s(exported: tuple[pem.PEM, Path], runtime: str) -> None:
    model, path = exported
    batch = preprocess_arrays([check.example_photos()[0]], model.config)
    expected = run_on_arrays(model, batch.pixels, trace=True)
    found = ExportedPEM(path, runtime)(batch.pixels, trace=True)
    assert isinstance(found, pem.PEMOutput) and found.trace is not None and expected.trace is not None
    assert len(found.aux_outputs) == len(found.trace) == 6
    for layer, plain in zip(found.trace, expected.trace, strict=True):
        assert (layer.stride, layer.grid_size) == (plain.stride, plain.grid_size)
        assert np.array_equal(layer.prototype_index, plain.prototype_index)
        assert np.array_equal(layer.banned, plain.banned)
        for name in ("similarity", "target", "key", "allowed_fraction", "pred_logits", "pred_masks"):
            np.testing.assert_allclose(getattr(layer, name), getattr(plain, name), rtol=1e-3, atol=1e-3)


def test_a_file_holds_all_that_a_reader_needs(exported: tuple[pem.PEM, Path]) -> None:
    model, path = exported
    assert [file.name for file in path.parent.iterdir()] == ["small.onnx"]  # one file, and nothing left behind
    content = onnx.load(path)
    onnx.checker.check_model(content)
    remarks = {entry.key: entry.value for entry in content.metadata_props}
    assert remarks == read_remarks(path)
    assert ExportedPEM(path).config == model.config
    names = [category["name"] for category in json.loads(remarks["categories"])]
    assert len(names) == 5 and remarks["precision"] == "float32" and remarks["trace"] == "yes"
    shape = content.graph.input[0].type.tensor_type.shape.dim
    assert [bool(dim.dim_param) for dim in shape] == [True, False, True, True]
    assert all(node.domain == "" for node in content.graph.node)


@pytest.mark.parametrize("runtime", HERE)
def test_predict_takes_an_exported_network(exported: tuple[pem.PEM, Path], runtime: str) -> None:
    model, path = exported
    photos = check.example_photos()[:2]
    found = pem.predict(ExportedPEM(path, runtime), photos, "semantic")
    for ours, expected in zip(found, pem.predict(model, photos, "semantic"), strict=True):
        assert ours.ids.shape == expected.ids.shape
        assert (ours.ids == expected.ids).mean() > 0.999  # random masks are alike in many pixels


def test_other_sizes_and_a_trace_that_is_not_there_are_refused(exported: tuple[pem.PEM, Path], tmp_path: Path) -> None:
    model = ExportedPEM(exported[1])
    with pytest.raises(ValueError, match="multiples of 32"):
        model(random_pixels(1, 3, 64, 90))
    content = onnx.load(exported[1])
    next(entry for entry in content.metadata_props if entry.key == "trace").value = "no"
    (tmp_path / "without.onnx").write_bytes(content.SerializeToString())
    with pytest.raises(ValueError, match="without its trace; export it with"):
        ExportedPEM(tmp_path / "without.onnx")(random_pixels(1, 3, 64, 64), trace=True)


def changed(content: bytes, how: str) -> bytes:
    model = onnx.load_from_string(content)
    remarks = {entry.key: entry for entry in model.metadata_props}
    if how == "newer":
        remarks["pem_format"].value = "9"
    elif how == "config":
        remarks["config"].value = '{"name": 3}'
    elif how == "foreign":
        del model.metadata_props[:]
    elif how == "weights":
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weights.raw_data = weights.raw_data[:-1] + bytes([weights.raw_data[-1] ^ 1])
    elif how == "short":
        return content[: len(content) // 2]
    elif how == "text":
        return b"version https://example.org\n" * 9
    elif how == "empty":
        return b""
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("newer", "has format 9, this version reads 1; update"),
        ("config", "The config in .* cannot be used"),
        ("foreign", "was not made by python -m pem.export"),
        ("weights", "is damaged or was changed; export"),
        ("short", "is damaged or no ONNX file; export"),
        ("text", "is damaged or no ONNX file; export"),
        ("empty", "was not made by python -m pem.export"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(
    exported: tuple[pem.PEM, Path], tmp_path: Path, how: str, sentence: str
) -> None:
    path = tmp_path / "file.onnx"
    path.write_bytes(changed(exported[1].read_bytes(), how))
    with pytest.raises(pem.WeightsError, match=sentence) as error:
        pem.load_model(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_operators_that_a_runtime_does_not_know_are_said(exported: tuple[pem.PEM, Path], tmp_path: Path) -> None:
    from pem.exporting.onnx_file import write

    content = onnx.load(exported[1])
    content.graph.node[-1].op_type = "Unheard"
    write(content, tmp_path / "file.onnx", exported[0].config, "float32", True)
    for runtime in usable_runtimes():
        with pytest.raises(pem.WeightsError, match=rf"{runtime} [\d.]+\S* cannot run .*; install"):
            ExportedPEM(tmp_path / "file.onnx", runtime)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="There is no exported network"):
        pem.load_model(tmp_path / "gone.onnx")
    with pytest.raises(ValueError, match="There is no runtime 'tensorrt'; choose one of: auto, torch, onnxruntime"):
        pem.load_model("default", runtime="tensorrt")
    with pytest.raises(ValueError, match=r"small.pt2 is for torch.export.load alone; export the model to an .onnx"):
        pem.load_model("small.pt2")
    with pytest.raises(ValueError, match=r"make one with python -m pem.export --model small.safetensors"):
        pem.load_model("small.safetensors", runtime="onnxruntime")
    monkeypatch.setattr("pem.runtimes.version", lambda name: "1.24.4")
    monkeypatch.setattr("pem.runtimes.find_spec", lambda name: True)
    with pytest.raises(pem.WeightsError, match="onnxruntime 1.24.4 is too old: pip install 'onnxruntime>=1.25'"):
        pem.runtimes.pick_runtime("onnxruntime")
    monkeypatch.setattr("pem.runtimes.find_spec", lambda name: None)
    with pytest.raises(pem.WeightsError, match="onnxruntime is not installed: pip install onnxruntime"):
        pem.runtimes.pick_runtime("onnxruntime")
    with pytest.raises(pem.WeightsError, match="Neither onnxruntime 1.25 nor OpenVINO is installed"):
        pem.runtimes.pick_runtime(None)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    model = small_model()
    with pytest.raises(ValueError, match="another ending than .onnx, .xml, .pt2"):
        pem.export(model, tmp_path / "pem.bin")
    for file, precision in (("pem.pt2", "float16"), ("pem.xml", "int8")):
        with pytest.raises(ValueError, match=rf"ends in \{file[3:]} cannot hold {precision}; export it to an .onnx"):
            pem.export(model, tmp_path / file, precision)
    with pytest.raises(ValueError, match="There is no precision 'int4'; choose one of"):
        pem.export(model, tmp_path / "pem.onnx", precision="int4")
    (tmp_path / "mine.bin").write_bytes(b"weights of somebody")
    with pytest.raises(ValueError, match="mine.bin is in the way of the weights beside mine.xml"):
        pem.export(model, tmp_path / "mine.xml")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        pem.export(model, tmp_path / "nowhere" / "pem.onnx")
    with pytest.raises(ValueError, match="fast copy"):
        Exportable(pem.accelerate(model), trace=False)
    with pytest.raises(ValueError, match="training mode"):
        Exportable(small_model().train(), trace=False)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "cityscapes-panoptic-r50", "--out", str(tmp_path / "pem.onnx")]) == 2
    assert capsys.readouterr().err.startswith("pem.export: No weights come with cityscapes-panoptic-r50")
    assert main(["--model", "mine.onnx", "--out", str(tmp_path / "pem.xml")]) == 2
    assert "mine.onnx is exported already; give the weights that it was made from." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--to", "openvino", "--out", str(tmp_path / "pem.onnx")])
    assert "a file of openvino ends in .xml; write --out pem.xml." in capsys.readouterr().err


def test_a_network_that_computes_something_else_is_not_written(tmp_path: Path, exported: tuple[pem.PEM, Path]) -> None:
    """The check compares with another model, as if the exporter had gone wrong."""
    plain, path = exported
    other = small_model(7, **{k: getattr(plain.config, k) for k in ("attention", "short_side_px", "max_long_side_px")})
    with pytest.raises(pem.WeightsError, match="does not compute what torch does: .*pred_logits.* differ"):
        check.compare(other, ExportedPEM(path), "the runtime", check.example_photos()[:1], strict=True)
    found = check.compare(other, ExportedPEM(path), "the runtime", check.example_photos()[:1], strict=False)
    assert found.logits > 1e-2 and found.prototypes < 1


def test_weights_that_half_precision_holds_exactly_are_stored_in_it() -> None:
    from pem.exporting.narrow import narrow

    rng = np.random.default_rng(0)
    exact = rng.standard_normal((32, 32)).astype(np.float16).astype(np.float32)
    arrays = {"exact": exact, "other": exact + np.float32(1e-6), "vector": exact[0], "small": exact[:2, :2]}
    for precision, expected in (("float32", {"exact"}), ("float16", {"exact", "other"})):
        model = weights_only(arrays)
        narrow(model, precision)
        onnx.checker.check_model(model)
        halves = {tensor.name.removesuffix("_half") for tensor in model.graph.initializer if tensor.data_type == 10}
        assert halves == expected
        results = onnx.reference.ReferenceEvaluator(model).run(None, {})
        for (name, array), result in zip(arrays.items(), results, strict=True):
            assert np.array_equal(result, array.astype(np.float16).astype(np.float32) if name in halves else array)


def test_int8_weights_have_the_scales_that_lose_least() -> None:
    from pem.exporting.narrow import narrow

    rng = np.random.default_rng(0)
    by_row = rng.standard_normal((160, 240)).astype(np.float32) * np.logspace(-3, 3, 160, dtype=np.float32)[:, None]
    arrays = {"by_row": by_row, "by_column": by_row.T.copy(), "zeros": np.zeros((200, 200, 1, 1), np.float32)}
    arrays |= {"conv": by_row.T[:, :, None, None].copy(), "small": by_row[:20]}
    model = weights_only(arrays)
    narrow(model, "int8")
    onnx.checker.check_model(model)
    axes = {node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "DequantizeLinear"}
    assert axes == {"by_row": 0, "by_column": 1, "zeros": 0, "conv": 0}
    results = dict(zip(arrays, onnx.reference.ReferenceEvaluator(model).run(None, {}), strict=True))
    step = np.abs(by_row).max(1, keepdims=True) / 127
    assert (np.abs(results["by_row"] - by_row) <= 0.51 * step).all()
    assert np.array_equal(results["by_column"], results["by_row"].T)
    assert not results["zeros"].any()
    assert np.array_equal(results["small"], by_row[:20].astype(np.float16).astype(np.float32))


def weights_only(arrays: dict[str, np.ndarray]) -> Any:
    """A network that returns its weights."""
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [onnx.helper.make_node("Identity", [name], [f"{name}_out"]) for name in arrays]
    outputs = [onnx.helper.make_tensor_value_info(f"{name}_out", 1, x.shape) for name, x in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "some", [], outputs, initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10)


@pytest.fixture(scope="module")
def full_size(exported: tuple[pem.PEM, Path]) -> Any:
    """The network with its weights in float32, as the exporter leaves it."""
    from pem.exporting.onnx_file import to_onnx

    return to_onnx(Exportable(exported[0], trace=True))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_narrower_file_is_smaller_and_close(
    exported: tuple[pem.PEM, Path], full_size: Any, tmp_path: Path, precision: str
) -> None:
    from pem.exporting.narrow import narrow
    from pem.exporting.onnx_file import write

    plain, path = exported
    content = onnx.ModelProto()
    content.CopyFrom(full_size)
    narrow(content, precision)
    file = tmp_path / f"{precision}.onnx"
    write(content, file, plain.config, precision, True)
    assert file.stat().st_size < 0.8 * path.stat().st_size
    found = [ExportedPEM(file, runtime) for runtime in usable_runtimes()]
    assert {model.precision for model in found} == {precision}
    # Choices flip, so logits say little of a network with random weights; what is before any choice says more.
    pixels = random_pixels(1, 3, 64, 96)
    expected = run_on_arrays(plain, pixels, trace=True).mask_features.numpy()
    for model in found:
        features = model(pixels, trace=True).mask_features  # type: ignore[union-attr]
        assert np.abs(features - expected).mean() < 0.05 * np.abs(expected).mean()
    if precision == "int8":  # what it stores is widened, and then computed alike
        first, *others = (as_arrays(model(pixels)) for model in found)
        for other in others:
            np.testing.assert_allclose(other.pred_logits, first.pred_logits, atol=DISAGREEMENT["float32"])


@pytest.mark.skipif("openvino" not in usable_runtimes(), reason="openvino is missing.")
def test_openvino_s_own_files_are_read_and_checked(exported: tuple[pem.PEM, Path], tmp_path: Path) -> None:
    from pem.exporting.onnx_file import to_openvino

    file = to_openvino(Path(shutil.copy(exported[1], tmp_path)))
    model = pem.load_model(file)
    assert isinstance(model, ExportedPEM) and model.runtime == "openvino" and model.config == exported[0].config
    pixels = random_pixels(2, 3, 64, 96)
    expected = as_arrays(run_on_arrays(exported[0], pixels))
    np.testing.assert_allclose(as_arrays(model(pixels)).pred_logits, expected.pred_logits, rtol=1e-3, atol=1e-3)
    assert isinstance(pem.load_model(file, runtime="auto"), ExportedPEM)
    with pytest.raises(pem.WeightsError, match="Only openvino runs .*; give it alone"):
        pem.load_model(file, runtime="onnxruntime")
    weights = file.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(pem.WeightsError, match="is damaged or was changed; export"):
        pem.load_model(file)
    weights.unlink()
    with pytest.raises(pem.WeightsError, match="is damaged or no file of OpenVINO; export"):
        pem.load_model(file)


def test_a_file_of_torch_export_runs_with_torch_alone(exported: tuple[pem.PEM, Path], tmp_path: Path) -> None:
    plain, _ = exported
    (found,) = pem.export(plain, tmp_path / "small.pt2")
    assert found.runtime == "torch.export" and found.prototypes == found.pixels == 1
    said = {"outputs": "", "config": ""}
    program = torch.export.load(tmp_path / "small.pt2", extra_files=said)
    assert said["outputs"].split() == ["pred_logits", "pred_masks"]
    assert json.loads(said["config"]) == json.loads(json.dumps(dataclasses.asdict(plain.config)))
    pixels = random_pixels(3, 3, 96, 64)
    expected = as_arrays(run_on_arrays(plain, pixels))
    for ours, theirs in zip(program.module()(torch.from_numpy(pixels)), expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("runtime", HERE)
def test_a_network_for_one_size_gives_the_same_and_takes_no_other(exported: tuple[pem.PEM, Path], runtime: str) -> None:
    pixels = random_pixels(1, 3, 64, 96)
    fixed, free = (ExportedPEM(exported[1], runtime, size) for size in ((64, 96), None))
    for ours, expected in zip(as_arrays(fixed(pixels)), as_arrays(free(pixels)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)
    for shape in ((1, 3, 96, 64), (2, 3, 64, 96)):
        with pytest.raises(ValueError, match="opened for one image of 64x96 px at a time"):
            fixed(random_pixels(*shape))
    with pytest.raises(ValueError, match="multiples of 32"):
        ExportedPEM(exported[1], runtime, (64, 90))


@pytest.mark.skipif("openvino" not in usable_runtimes(), reason="openvino is missing.")
def test_openvino_reports_nothing_to_anybody() -> None:
    code = (
        "import sys, pem; pem.load_model('default', runtime='openvino')\n"
        "import openvino.tools.ovc.telemetry_utils as found\n"
        "print(sys.modules['openvino_telemetry'], found.tm.__name__)"
    )
    run = processes.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    assert run.stdout.split() == ["None", "openvino.tools.ovc.telemetry_stub"], run.stderr


@pytest.mark.skipif("openvino" not in usable_runtimes(), reason="openvino is missing.")
def test_openvino_takes_the_first_of_equal_maxima_as_torch_does(tmp_path: Path) -> None:
    values = np.array([[1, 3, 3, 0], [2, 2, 2, 2], [-5, -7, -9, -5], [0, 0, 0, 1], [-np.inf] * 4], np.float32)
    nodes = [onnx.helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)]
    shapes = [onnx.helper.make_tensor_value_info("x", 1, ["n", 4]), onnx.helper.make_tensor_value_info("y", 7, ["n"])]
    graph = onnx.helper.make_graph(nodes, "first", shapes[:1], shapes[1:])
    opset = onnx.helper.make_opsetid("", 19)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "first.onnx")
    core = openvino_core()
    compiled = core.compile_model(core.read_model(tmp_path / "first.onnx"), "CPU")
    assert compiled(values)["y"].tolist() == values.argmax(1).tolist() == [1, 0, 0, 3, 0]
    values[0, 1] = np.nan  # nothing equals it: a place that exists all the same
    assert 0 <= int(compiled(values)["y"][0]) < 4


def test_shapes_that_a_constant_can_say_are_not_computed(full_size: Any) -> None:
    computed = {name for node in full_size.graph.node if node.op_type == "Concat" for name in node.output}
    reshapes = [node for node in full_size.graph.node if node.op_type == "Reshape"]
    # Left are those of the masks, whose height and width are both free, and those of unknown shapes.
    assert sum(node.input[1] in computed for node in reshapes) < len(reshapes) / 4


def test_padding_that_depends_on_the_size_becomes_constant() -> None:
    from timm.layers import Conv2dSame

    for kernel, stride, dilation in ((3, 2, 1), (5, 2, 1), (2, 2, 1), (1, 2, 1), (3, 4, 1), (3, 2, 2)):
        conv = Conv2dSame(4, 6, kernel, stride, dilation=dilation, bias=True)
        module = torch.nn.Sequential(conv)
        x = torch.randn(2, 4, 32, 64)
        expected = conv(x)
        make_padding_constant(module)
        assert not any(isinstance(part, Conv2dSame) for part in module.modules())
        torch.testing.assert_close(module(x), expected)


def test_a_message_is_read_field_by_field() -> None:
    message = bytes([0x08, 0x96, 0x01, 0x12, 3, 7, 8, 9, 0x19, *range(8), 0x25, *range(4), 0x3A, 0])
    assert [(number, bytes(value)) for number, value in fields(memoryview(message))] == [(2, b"\7\10\11"), (7, b"")]
    for cut in (1, 2, 4, 6):
        with pytest.raises((ValueError, IndexError)):
            list(fields(memoryview(message[:cut])))


def test_configs_come_through_a_file_as_they_are() -> None:
    config = dataclasses.replace(pem.get_config("default"), trained="2026-01-02")
    assert pem.config.config_from_json(json.dumps(dataclasses.asdict(config))) == config
