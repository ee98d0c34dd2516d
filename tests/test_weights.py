from __future__ import annotations

import collections
import dataclasses
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from golden_weights import load_golden
from small_model import small_model

import pem
from pem import load, weights
from pem.weights import WeightsError, our_name

ALPHA = "sem_seg_head.predictor.transformer_cross_attention_layers.0.alpha"


def reference_state(model: pem.PEM) -> dict[str, torch.Tensor]:
    """The model's tensors under detectron2's names, with STDC's aliases."""
    ours = model.state_dict()
    state = {name: ours[ours_name] for name in load_golden("stdc1").names if (ours_name := our_name(name))}
    aliases = {
        f"backbone.x2.0.{name[len('backbone.features.') :]}": tensor
        for name, tensor in state.items()
        if name.startswith("backbone.features.0.")
    }
    return state | aliases


def write_reference(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A .pth as the reference writes it, or a .pkl of numpy arrays as detectron2's model zoo has them."""
    if path.suffix == ".pth":
        torch.save({"model": state, "iteration": 90_000}, path)
    else:
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party", "matching_heuristics": True}))
    return path


def same(a: pem.PEM, b: pem.PEM) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# Reference checkpoints.


@pytest.mark.parametrize("kind", ["r50", "stdc1"])
def test_the_key_table_maps_reference_names_to_ours_one_to_one(kind) -> None:
    golden = load_golden(kind)
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in pem.build_model(golden.config).state_dict().items()}
    mapped = {name: our_name(name) for name in golden.names if not weights._STDC_ALIAS.match(name)}
    assert sorted(mapped.values()) == sorted(ours)
    assert all(golden.names[name] == ours[mapped[name]] for name in mapped)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_reference_checkpoint_loads_whole(tmp_path, suffix) -> None:
    source, target = small_model(seed=1), small_model(seed=2)
    report = pem.load_weights(target, write_reference(tmp_path / f"model{suffix}", reference_state(source)))
    assert same(source, target)
    assert set(report.loaded) == set(target.state_dict())
    assert not (report.missing or report.mismatched or report.unknown or report.warnings)


def test_a_bare_state_dict_loads_too(tmp_path) -> None:
    source, target = small_model(seed=1), small_model(seed=2)
    torch.save(reference_state(source), tmp_path / "bare.pth")
    pem.load_weights(target, tmp_path / "bare.pth")
    assert same(source, target)


def test_what_is_ignored_has_a_reason(tmp_path) -> None:
    state = reference_state(small_model()) | {"criterion.empty_weight": torch.ones(6)}
    report = pem.load_weights(small_model(), write_reference(tmp_path / "model.pth", state))
    assert "loss" in report.ignored.pop("criterion.empty_weight")
    assert set(report.ignored) == {name for name in state if name.startswith("backbone.x2.")}
    assert set(report.ignored.values()) >= {"a second name of backbone.features.0.conv.weight"}


def test_an_alias_that_differs_is_warned_of(tmp_path) -> None:
    source, target = small_model(seed=1), small_model(seed=2)
    state = reference_state(source)
    state["backbone.x2.0.0.conv.weight"] = state["backbone.x2.0.0.conv.weight"] + 1
    report = pem.load_weights(target, write_reference(tmp_path / "model.pth", state))
    assert same(source, target)
    assert len(report.warnings) == 1 and "backbone.x2.0.0.conv.weight differs" in report.warnings[0]


# The same weights, in the many shapes that sound files have.


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".PTH", ".Pt", ".pkl", ".safetensors", ".SafeTensors"])
def test_the_ending_tells_the_kind_of_file_in_any_case(tmp_path, ending) -> None:
    source, target, path = small_model(seed=1), small_model(seed=2), tmp_path / f"model{ending}"
    state = {name: tensor.contiguous() for name, tensor in source.state_dict().items()}
    if ending.lower() == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"model": state}, path)  # a .pkl, too, may be what torch.save wrote
    pem.load_weights(target, path)
    assert same(source, target)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        lambda state: {"state_dict": state, "epoch": 3, "model": "PEM"},
        lambda state: {"model_state_dict": state},
        lambda state: {"module": state},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {"ema": state, "epoch": 3},
        lambda state: {"ema": {"module": state, "decay": 0.9}, "step": 4},
        lambda state: {"trainer": {"model": state}},
        lambda state: collections.OrderedDict(state),
    ],
    ids=["model", "state_dict", "model_state_dict", "module", "nested", "another name", "average", "trainer", "bare"],
)
def test_weights_are_found_under_any_usual_name(tmp_path, wrap) -> None:
    source, target = small_model(seed=1), small_model(seed=2)
    torch.save(wrap(source.state_dict()), tmp_path / "model.pth")
    pem.load_weights(target, tmp_path / "model.pth")
    assert same(source, target)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix, suffix) -> None:
    source, target, path = small_model(seed=1), small_model(seed=2), tmp_path / f"model{suffix}"
    state = source.state_dict() if suffix == ".safetensors" else reference_state(source)
    state = {prefix + name: tensor.clone() for name, tensor in state.items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        write_reference(path, state)
    pem.load_weights(target, path)
    assert same(source, target)


def test_a_wrapper_may_be_around_a_part_of_the_model_and_count_its_averages(tmp_path) -> None:
    source, target = small_model(seed=1), small_model(seed=2)
    state = {f"module.{name.replace('backbone.', 'backbone._orig_mod.')}": x for name, x in source.state_dict().items()}
    torch.save({"n_averaged": torch.tensor(7)} | state, tmp_path / "model.pth")
    report = pem.load_weights(target, tmp_path / "model.pth")
    assert same(source, target)
    assert report.ignored == {"n_averaged": "a remark beside the weights"}


NUMBERS = [
    *(np.dtype(code).type(1) for code in "?bBhHiIlLqQefdgFD"),
    np.array(61.1),
    np.array(True),
    np.arange(3, dtype=np.float32),
]
REMARKS = [7, 2**70, 0.5, True, None, "text", [1, "a"], ("b", 2.0), {"lr": 0.1}]


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside the model", "among the weights"])
def test_numbers_and_texts_are_ignored(tmp_path, suffix, beside) -> None:
    source, target, path = small_model(seed=1), small_model(seed=2), tmp_path / f"model{suffix}"
    remarks = {f"remark{i}": value for i, value in enumerate([*(x for x in NUMBERS if x.ndim == 0), *REMARKS])}
    state = source.state_dict()
    if suffix == ".pkl":
        state = {name: tensor.numpy() for name, tensor in state.items()}
    content = {"model": state, "curve": NUMBERS[-1], **remarks} if beside else {**remarks, **state}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    report = pem.load_weights(target, path)
    assert same(source, target)
    assert set(report.ignored) == (set() if beside else set(remarks))


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_torch_files_hold_arrays_of_numpy_1_and_2(tmp_path, module) -> None:
    source, target, path = small_model(seed=1), small_model(seed=2), tmp_path / "model.pth"
    arrays = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    torch.save({"model": arrays, "best_pq": np.float64(61.1)}, path, _use_new_zipfile_serialization=False)
    stream = path.read_bytes().replace(b"numpy._core", b"numpy.core")
    path.write_bytes(stream.replace(b"numpy.core", module.encode()))
    pem.load_weights(target, path)
    assert same(source, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_another_precision_become_float32(tmp_path, dtype, suffix) -> None:
    source, target, path = small_model(seed=1), small_model(seed=2), tmp_path / f"model{suffix}"
    state = {name: x.to(dtype) if x.is_floating_point() else x for name, x in source.state_dict().items()}
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    pem.load_weights(target, path)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


def test_longer_floats_than_torch_knows_become_float64(tmp_path) -> None:
    source, target, path = small_model(seed=1), small_model(seed=2), tmp_path / "model.pkl"
    arrays = {name: x.numpy().astype(np.longdouble) for name, x in source.state_dict().items()}
    path.write_bytes(pickle.dumps(arrays))
    pem.load_weights(target, path)
    assert same(source, target)


@pytest.mark.parametrize("value", ["text", None, [1.0], {"a": 1}])
def test_something_else_where_a_tensor_is_needed_is_named(tmp_path, value) -> None:
    model = small_model(seed=2)
    torch.save({**small_model().state_dict(), "decoder.class_embed.weight": value}, tmp_path / "model.pth")
    sentence = f"it has a {type(value).__name__} under 'decoder.class_embed.weight', where a tensor should be"
    with pytest.raises(WeightsError, match=sentence):
        pem.load_weights(model, tmp_path / "model.pth")
    torch.save({**small_model().state_dict(), "decoder.class_embed.weight": 3.0}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"decoder.class_embed.weight: expected \(6, 32\), found \(\)"):
        pem.load_weights(model, tmp_path / "model.pth")
    assert same(model, small_model(seed=2))


def test_a_scalar_weight_that_the_model_does_not_know_is_no_remark(tmp_path) -> None:
    torch.save({**small_model().state_dict(), "decoder.layers.0.gate": torch.tensor(1.0)}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="1 that the model does not know .decoder.layers.0.gate"):
        pem.load_weights(small_model(), tmp_path / "model.pth")


def test_frozen_batch_norms_have_no_counter(tmp_path) -> None:
    source, target = small_model(seed=1), small_model(seed=2)
    state = {k: v for k, v in reference_state(source).items() if not k.endswith("num_batches_tracked")}
    pem.load_weights(target, write_reference(tmp_path / "model.pth", state))
    assert same(source, target)


def test_legacy_names_load(tmp_path) -> None:
    """The oldest checkpoints have no "pixel_decoder" in their names and call query_feat static_query."""
    source, target = small_model(seed=1), small_model(seed=2)
    state = {
        name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): tensor
        for name, tensor in reference_state(source).items()
    }
    assert "sem_seg_head.predictor.static_query.weight" in state and "sem_seg_head.out.conv.weight" in state
    pem.load_weights(target, write_reference(tmp_path / "model.pth", state))
    assert same(source, target)


def test_a_checkpoint_that_does_not_fit_names_the_tensors_and_changes_nothing(tmp_path) -> None:
    state = reference_state(small_model(seed=1))
    del state[ALPHA]
    state["sem_seg_head.predictor.class_embed.weight"] = torch.zeros(151, 32)
    state["sem_seg_head.predictor.extra.weight"] = torch.zeros(3)
    model = small_model(seed=2)
    with pytest.raises(WeightsError) as error:
        pem.load_weights(model, write_reference(tmp_path / "model.pth", state))
    message = str(error.value)
    assert "lacks 1 tensors (decoder.layers.0.cross_attention.alpha)" in message
    assert "decoder.class_embed.weight: expected (6, 32), found (151, 32)" in message
    assert "1 that the model does not know (sem_seg_head.predictor.extra.weight)" in message
    assert same(model, small_model(seed=2))


def test_many_missing_tensors_are_counted_and_the_first_are_named(tmp_path) -> None:
    state = {k: v for k, v in reference_state(small_model()).items() if "pixel_decoder" not in k}
    with pytest.raises(WeightsError, match=r"lacks \d\d tensors \(pixel_decoder\.lateral\.0\.0\.weight, .*, \.\.\.\)"):
        pem.load_weights(small_model(), write_reference(tmp_path / "model.pth", state))


# Files that must not be trusted.


class Payload:
    """Unpickling this creates a file, and any code could stand in its place."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self):
        return os.mkdir, (str(self.evidence),)


def test_the_payload_works_where_nobody_stops_it(tmp_path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "hide",
    [lambda p: p, lambda p: {"model": p}, lambda p: {"model": {ALPHA: np.array([p])}}],
    ids=["bare", "under model", "in an array"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, suffix, hide, protocol) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(hide(Payload(tmp_path / "ran")), protocol=protocol))
    with pytest.raises(WeightsError, match="damaged or not a file of weights"):
        pem.load_weights(small_model(), path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".pkl"])
def test_a_hostile_torch_file_is_refused_and_does_not_run(tmp_path, ending) -> None:
    path = tmp_path / f"model{ending}"
    for content in (
        {"model": Payload(tmp_path / "ran")},
        {"model": small_model().state_dict(), "remark": Payload(tmp_path / "ran")},
        {"model": {}, "remark": np.array([Payload(tmp_path / "ran")])},
    ):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=r"it wants \w+\.mkdir, but weights need only tensors|array of object"):
            pem.load_weights(small_model(), path)
        with pytest.raises(WeightsError):
            pem.load_model(path)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("function", [np.load, np.fromfile, np.ndarray.tofile, eval, os.system])
def test_numpy_functions_that_touch_files_stay_forbidden_in_torch_files(tmp_path, function) -> None:
    class Call:
        def __reduce__(self):
            return function, (str(tmp_path / "ran"),)

    torch.save({"model": {}, "remark": Call()}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="it wants .*, but weights need only tensors"):
        pem.load_weights(small_model(), tmp_path / "model.pth")
    # What is allowed while one of our files is read is not so afterwards.
    torch.save(np.float64(1), tmp_path / "number.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "number.pth", weights_only=True)


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "os system",
        "numpy load",
        "numpy ndarray.tofile",
        "numpy.core.multiarray fromfile",
        "torch load",
    ],
)
def test_the_pickle_may_name_nothing_but_arrays(tmp_path, name) -> None:
    module, attribute = name.split()
    # Protocol 4, whose dotted names reach into objects.
    stream = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, attribute)) + b"\x93."
    (tmp_path / "model.pkl").write_bytes(stream)
    with pytest.raises(WeightsError, match=f"it wants {module}.{attribute}, but weights need only numpy arrays"):
        pem.load_weights(small_model(), tmp_path / "model.pkl")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_arrays_of_every_protocol_and_numpy_can_be_read(tmp_path, protocol, module) -> None:
    arrays = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.ones(3, dtype=np.float16),
        "big_endian": np.arange(3, dtype=">f8"),
        "no axis": np.array(7),
        "scalar": np.float32(2.5),
    }
    stream = pickle.dumps(collections.OrderedDict(arrays), protocol=protocol)
    if protocol < 4:  # later protocols write the length before the name
        stream = stream.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", module)
    (tmp_path / "model.pkl").write_bytes(stream)
    state = weights._read(tmp_path / "model.pkl")
    assert state.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(np.asarray(state[name]), array)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "html", "of something else"])
def test_damaged_and_foreign_files_get_one_sentence(tmp_path, suffix, damage) -> None:
    path = tmp_path / f"model{suffix}"
    foreign = {"layer.weight": torch.zeros(100, 100)}
    if suffix == ".safetensors":
        safetensors.torch.save_file(foreign, path)
    else:
        write_reference(path, foreign)
    whole = path.read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "empty": b"", "html": b"<html>404: Not Found</html>"}
    path.write_bytes(content.get(damage, whole))
    expected = "holds no weights of a PEM" if damage == "of something else" else "damaged or not a file of weights"
    with pytest.raises(WeightsError, match=expected) as error:
        pem.load_weights(small_model(), path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_what_git_leaves_without_its_extension_for_large_files_is_known(tmp_path, suffix) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", encoding="utf-8")
    for read in (lambda: pem.load_weights(small_model(), path), lambda: pem.load_model(path)):
        with pytest.raises(WeightsError, match=f"model{suffix} only points to the real file, which git lfs pull"):
            read()


def test_a_missing_file_and_an_unknown_kind_get_one_sentence(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no weights file .*model.pth"):
        pem.load_weights(small_model(), tmp_path / "model.pth")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(
        WeightsError, match="unknown kind; weights are .pth, .pt, .bin, .ckpt, .pkl, .safetensors files"
    ):
        pem.load_weights(small_model(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "name", ["none.pth", "none.PT", "none.bin", "none.pkl", "none.safetensors", "none.ckpt", "none"]
)
def test_a_missing_file_is_called_missing_whatever_its_ending(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in (tmp_path / name, Path("runs") / name):
        with pytest.raises(FileNotFoundError, match=f"There is no weights file {path}"):
            pem.load_model(path)
        with pytest.raises(FileNotFoundError, match=f"There is no weights file {path}"):
            pem.load_model("ade20k-panoptic-stdc1", weights=path)


@pytest.mark.parametrize("name", ["run", "run.pth", "run.safetensors"])
def test_a_directory_is_called_a_directory(tmp_path, name) -> None:
    (tmp_path / name).mkdir()
    for attempt in (
        lambda path: pem.load_model(path),
        lambda path: pem.load_model("default", weights=path),
        lambda path: pem.load_weights(small_model(), path),
    ):
        with pytest.raises(
            WeightsError, match=f"{name} is a directory; give the file of weights in it, such as .*model"
        ):
            attempt(tmp_path / name)


# Our own files.


def test_a_name_and_a_date_do_not_keep_a_file_from_its_preset(tmp_path) -> None:
    preset = pem.get_config("ade20k-panoptic-stdc1")
    model = pem.build_model(dataclasses.replace(preset, name="streets", trained="2026-02-03"))
    pem.save_weights(model, tmp_path / "model.safetensors")
    for loaded in (
        pem.load_model(tmp_path / "model.safetensors", device="cpu"),
        pem.load_model("ade20k-panoptic-stdc1", device="cpu", weights=tmp_path / "model.safetensors"),
    ):
        assert (loaded.config.name, loaded.config.trained) == ("streets", "2026-02-03")


def test_files_from_before_there_were_dates_load(tmp_path) -> None:
    path, model = tmp_path / "model.safetensors", small_model()
    pem.save_weights(model, path)
    fields = dataclasses.asdict(model.config)
    del fields["trained"]
    rewrite_metadata(path, config=json.dumps(fields))
    assert pem.load_model(path, device="cpu").config == model.config
    assert weights.own_config(load.DEFAULT_WEIGHTS).trained == ""


def test_our_file_brings_the_model_back(tmp_path) -> None:
    model = small_model(seed=1, empty_mask="release", categories="everyday", pixel_mean=(1.0, 2.0, 3.0))
    pem.save_weights(model, tmp_path / "model.safetensors")
    again = pem.load_model(tmp_path / "model.safetensors", device="cpu", fast=False)
    assert again.config == model.config  # with its tuples
    assert not again.training
    assert same(model, again)


def test_a_config_with_classes_of_its_own_comes_back(tmp_path) -> None:
    model = small_model(num_classes=2, categories=((7, "leaf", True), (9, "soil", False)))
    pem.save_weights(model, tmp_path / "model.safetensors")
    assert pem.load_model(tmp_path / "model.safetensors", device="cpu").config == model.config


@pytest.mark.parametrize("name", ["model", "model.pth"])
def test_a_name_that_could_not_be_read_back_is_not_written(tmp_path, name) -> None:
    with pytest.raises(ValueError, match=r"another ending than \.safetensors"):
        pem.save_weights(small_model(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_float16_halves_the_file_and_keeps_vectors_exact(tmp_path) -> None:
    model = small_model(seed=1)
    model.backbone.features[0].bn.running_var.fill_(1e6)  # beyond the range of float16
    pem.save_weights(model, tmp_path / "full.safetensors")
    pem.save_weights(model, tmp_path / "half.safetensors", dtype=torch.float16)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full")]
    assert 0.5 < sizes[0] / sizes[1] < 0.52
    again = pem.load_model(tmp_path / "half.safetensors", device="cpu", fast=False).state_dict()
    for name, tensor in model.state_dict().items():
        assert again[name].dtype == tensor.dtype  # float32
        expected = tensor if tensor.ndim < 2 else tensor.half().float()
        assert torch.equal(again[name], expected)


def test_our_file_has_room_for_notes(tmp_path) -> None:
    pem.save_weights(small_model(), tmp_path / "model.safetensors", metadata={"trained_on": "two photos"})
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata()["trained_on"] == "two photos"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    pem.save_weights(small_model(seed=1), path)
    before = path.read_bytes()

    def fail_halfway(tensors, filename, metadata) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail_halfway)
    with pytest.raises(OSError, match="No space left"):
        pem.save_weights(small_model(seed=2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_of_another_size_does_not_take_our_file(tmp_path) -> None:
    pem.save_weights(small_model(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"decoder\.query_feat\.weight: expected \(9, 32\), found \(12, 32\)"):
        pem.load_weights(small_model(num_queries=9), tmp_path / "model.safetensors")


def rewrite_metadata(path: Path, **changes: str) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata=metadata | changes)


def test_files_of_an_older_version_also_tell_how_they_were_trained(tmp_path) -> None:
    path, model = tmp_path / "model.safetensors", small_model()
    pem.save_weights(model, path)
    fields = dataclasses.asdict(model.config)
    fields["training"] = {"base_lr": 4e-4, "schedule": "cosine"}
    rewrite_metadata(path, config=json.dumps(fields))
    assert pem.load_model(path, device="cpu").config == model.config


def test_files_of_a_newer_version_are_told_apart(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    model = small_model()
    pem.save_weights(model, path)
    fields = dataclasses.asdict(model.config)
    rewrite_metadata(path, config=json.dumps(fields | {"num_experts": 8}))
    with pytest.raises(WeightsError, match="does not know num_experts; update this project"):
        pem.load_model(path)
    rewrite_metadata(path, config=json.dumps(fields | {"num_heads": 0}))
    with pytest.raises(
        WeightsError, match="The config in .* cannot be used: num_heads is 0; it must be from 1 to 8192"
    ):
        pem.load_model(path)
    rewrite_metadata(path, config="{")
    with pytest.raises(WeightsError, match="The config in .* cannot be used"):
        pem.load_model(path)
    rewrite_metadata(path, pem_format="2")
    with pytest.raises(WeightsError, match="has format 2, this version reads 1; update this project"):
        pem.load_model(path)


# The model by name.


def test_the_default_is_the_bundled_file(tmp_path, monkeypatch) -> None:
    bundled = tmp_path / "default.safetensors"
    monkeypatch.setattr(load, "DEFAULT_WEIGHTS", bundled)
    with pytest.raises(FileNotFoundError, match=r"The bundled weights are missing: .*default\.safetensors"):
        pem.load_model("default")
    model = small_model(seed=1)
    pem.save_weights(model, bundled)
    assert same(model, pem.load_model(device="cpu", fast=False))


def test_a_preset_goes_with_its_weights(tmp_path) -> None:
    golden = load_golden("stdc1")
    preset = "ade20k-panoptic-stdc1"
    path = write_reference(tmp_path / "model.pth", {k: torch.from_numpy(v) for k, v in golden.weights.items()})
    model = pem.load_model(preset, device="cpu", fast=False, weights=path)
    assert model.config == pem.get_config(preset)
    assert model.decoder.class_embed.weight.dtype == torch.float32  # the file has float64
    with pytest.raises(WeightsError, match=f"No weights come with {preset}; give a checkpoint"):
        pem.load_model(preset)
    with pytest.raises(WeightsError, match="does not say which network it belongs to; name its preset"):
        pem.load_model(path)
    with pytest.raises(ValueError, match="Weights go with the name of a preset, not with 'ade21k'"):
        pem.load_model("ade21k", weights=path)


def test_a_file_with_another_config_than_the_preset_is_refused(tmp_path) -> None:
    model = pem.build_model(pem.get_config("default"))
    path = tmp_path / "model.safetensors"
    pem.save_weights(model, path)
    assert same(model, pem.load_model("default", device="cpu", fast=False, weights=path))
    model.config = dataclasses.replace(model.config, short_side_px=640)
    pem.save_weights(model, path)
    with pytest.raises(WeightsError, match=r"model.safetensors is no default: its own config differs; give the file"):
        pem.load_model("default", weights=path)
    assert pem.load_model(path, device="cpu").config.short_side_px == 640


def test_a_tensor_that_is_no_plain_one_is_refused_before_anything_changes(tmp_path) -> None:
    model = small_model(seed=2)
    odd_ones = {
        "sparse": torch.eye(6, 32).to_sparse(),
        "complex": torch.zeros(6, 32, dtype=torch.complex64),
        "quantised": torch.quantize_per_tensor(torch.zeros(6, 32), 1.0, 0, torch.qint8),
        "empty": torch.zeros(6, 32, device="meta"),
    }
    for kind, odd in odd_ones.items():
        state = {**model.state_dict(), "decoder.class_embed.weight": odd}
        torch.save(state, tmp_path / "model.pth")
        with pytest.raises(WeightsError, match=f"a tensor under 'decoder.class_embed.weight' that is {kind}"):
            pem.load_weights(model, tmp_path / "model.pth")
    assert same(model, small_model(seed=2))


def test_weights_in_floats_of_8_bits_are_read(tmp_path) -> None:
    model = small_model(seed=2)
    coarse = {k: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for k, v in model.state_dict().items()}
    torch.save(coarse, tmp_path / "model.pth")
    pem.load_weights(model, tmp_path / "model.pth")
    name = "decoder.class_embed.weight"
    assert torch.equal(model.state_dict()[name], coarse[name].float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64, torch.bool])
def test_whole_numbers_where_weights_are_floats_are_refused_by_name(tmp_path, dtype) -> None:
    model = small_model(seed=2)
    name = "decoder.class_embed.weight"
    torch.save({**model.state_dict(), name: torch.ones(6, 32, dtype=dtype)}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=f"it has {dtype} numbers under '{name}', where weights are floats"):
        pem.load_weights(model, tmp_path / "model.pth")
    assert same(model, small_model(seed=2))


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_program_in_torchscript_is_refused_without_advice_to_trust_it(tmp_path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    with pytest.raises(WeightsError, match="it is a TorchScript program; save the model's state_dict instead.$"):
        pem.load_weights(small_model(), tmp_path / "program.pt")


def test_values_that_are_not_finite_are_refused_by_name(tmp_path) -> None:
    model = small_model(seed=2)
    state = model.state_dict()
    state["decoder.class_embed.bias"] = torch.full_like(state["decoder.class_embed.bias"], torch.nan)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"has 1 with values that are not finite \(decoder.class_embed.bias\)"):
        pem.load_weights(model, tmp_path / "model.pth")
    state["decoder.class_embed.bias"] = torch.full((6,), 1e300, dtype=torch.float64)  # too large for the model
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"has 1 with values that are not finite \(decoder.class_embed.bias\)"):
        pem.load_weights(model, tmp_path / "model.pth")


@pytest.mark.parametrize("prefix", ["model.", "net.", "system.model.", "model._orig_mod.", "_fsdp_wrapped_module."])
def test_what_a_trainer_names_in_front_is_taken_off(tmp_path, prefix) -> None:
    model = small_model(seed=2)
    weights = {prefix + name: value for name, value in model.state_dict().items()}
    weights["criterion.empty_weight"] = torch.ones(6)  # of the loss, which was trained with it
    torch.save({"model": {"depth": 3}, "state_dict": weights, "epoch": 3}, tmp_path / "lit.ckpt")
    other = small_model(seed=3)
    pem.load_weights(other, tmp_path / "lit.ckpt")
    assert same(model, other)


@pytest.mark.parametrize(
    "prefixes", [("student.", "teacher."), ("model.", "ema_model."), ("", "ema."), ("", "module.")]
)
def test_a_file_of_two_networks_is_refused_by_name(tmp_path, prefixes) -> None:
    state = small_model(seed=2).state_dict()
    torch.save({prefix + name: x for prefix in prefixes for name, x in state.items()}, tmp_path / "two.pth")
    said = r"several networks \(.*\); save one of them alone" if all(prefixes) else "more than one .*; save one network"
    with pytest.raises(WeightsError, match=said):
        pem.load_weights(small_model(), tmp_path / "two.pth")


def test_an_empty_file_of_weights_is_called_empty(tmp_path) -> None:
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="holds no weights of a PEM; it is empty"):
        pem.load_weights(small_model(), tmp_path / "empty.pth")


def test_a_safetensors_file_of_others_has_no_config(tmp_path) -> None:
    safetensors.torch.save_file({"layer.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="does not say which network it belongs to; name its preset"):
        pem.load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"<html>404: Not Found</html>", None])
def test_load_model_says_when_its_file_is_missing_or_damaged(tmp_path, content) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileNotFoundError if content is None else WeightsError, match="no weights file|damaged"):
        pem.load_model(path)


def test_a_hub_model_is_pinned_and_downloaded(tmp_path, monkeypatch) -> None:
    model, calls = small_model(seed=1), []
    pem.save_weights(model, tmp_path / "model.safetensors")

    def download(repo_id: str, filename: str, *, revision: str) -> str:
        calls.append((repo_id, filename, revision))
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert same(model, pem.load_model("someone/pem-small@v1.0", device="cpu", fast=False))
    assert calls == [("someone/pem-small", "model.safetensors", "v1.0")]
    with pytest.raises(ValueError, match="Pin the Hub model 'someone/pem-small' to a tag or commit"):
        pem.load_model("someone/pem-small")


class NoUsualError(Exception):
    """As those of the library that the Hub's uses for connections."""


@pytest.mark.parametrize("failure", [ConnectionError, NoUsualError])
def test_a_hub_that_cannot_be_reached_gets_one_sentence(monkeypatch, failure) -> None:
    def download(*args: str, **kwargs: str) -> str:
        raise failure("Name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(WeightsError, match="Cannot fetch model.safetensors of a/b@main from the Hub: Name or service"):
        pem.load_model("a/b@main")


def test_an_unknown_name_is_answered_with_what_there_is() -> None:
    with pytest.raises(
        FileNotFoundError, match="There is no model 'defualt': give 'default', .*cityscapes-panoptic-r50"
    ):
        pem.load_model("defualt")


def test_devices(tmp_path) -> None:
    pem.save_weights(small_model(), tmp_path / "model.safetensors")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert next(pem.load_model(tmp_path / "model.safetensors").parameters()).device.type == expected
    with pytest.raises(ValueError, match="There is no device 'gpu'; use 'auto', 'cpu' or 'cuda'"):
        pem.load_model(tmp_path / "model.safetensors", device="gpu")
    for elsewhere in ("mps", "meta", None):
        with pytest.raises(ValueError, match=f"There is no device {elsewhere!r}; use 'auto', 'cpu' or 'cuda'"):
            pem.load_model(tmp_path / "model.safetensors", device=elsewhere)
    with pytest.raises(ValueError, match="no CUDA device 'cuda:99'; use device='cpu' or 'auto'"):
        pem.load_model(tmp_path / "model.safetensors", device="cuda:99")
