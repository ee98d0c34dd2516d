"""Weights in and out: our safetensors, and the published checkpoints under their detectron2 names.

A checkpoint is a stranger's file. Nothing here runs code from one: torch files are read with ``weights_only=True``,
and pickles by an unpickler that can make arrays of numbers and nothing else. Both also know NumPy's numbers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pem.config import PEMConfig, config_from_json
from pem.errors import WeightsError, first_line
from pem.fast import FastPEM
from pem.model import PEM

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor. ``missing``, ``mismatched`` and ``unknown`` are empty after a successful load."""

    loaded: tuple[str, ...]  # our names
    ignored: dict[str, str]  # name in the file -> reason
    missing: tuple[str, ...]  # our names
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # our name -> expected and found shape
    unknown: tuple[str, ...]  # names in the file
    warnings: tuple[str, ...]


# Beginning of a reference name -> beginning of ours; the rest stays. The first rule that matches counts.
_STAGE = r"backbone\.res(\d)\.(\d+)\."  # detectron2's res2 is torchvision's layer1
_HEAD = r"sem_seg_head\.pixel_decoder\."
_PREDICTOR = r"sem_seg_head\.predictor\."
_CROSS = _PREDICTOR + r"transformer_cross_attention_layers\.(\d+)\."
KEY_TABLE: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"backbone\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"backbone\.stem\.conv1\.", "backbone.conv1."),
    (_STAGE + r"shortcut\.norm\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.1."),
    (_STAGE + r"shortcut\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.0."),
    (_STAGE + r"conv(\d)\.norm\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}."),
    (_STAGE + r"conv(\d)\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.conv{m[3]}."),
    (r"backbone\.features\.", "backbone.features."),
    # Only in_projections runs from fine to coarse.
    (_HEAD + r"in_projections\.(\d)\.conv\.", lambda m: f"pixel_decoder.lateral.{3 - int(m[1])}.0."),
    (_HEAD + r"in_projections\.(\d)\.bn\.", lambda m: f"pixel_decoder.lateral.{3 - int(m[1])}.1."),
    (_HEAD + r"conv_avg\.conv\.", "pixel_decoder.global_context.0."),
    (_HEAD + r"conv_avg\.bn\.", "pixel_decoder.global_context.1."),
    (_HEAD + r"csm\.(\d)\.mlp\.0\.mlp\.([01])\.", r"pixel_decoder.modulation.\1.squeeze.\2."),
    (_HEAD + r"csm\.(\d)\.mlp\.0\.mlp\.3\.", r"pixel_decoder.modulation.\1.expand."),
    (_HEAD + r"dcn\.(\d)\.dcn_offset\.", r"pixel_decoder.upsample.\1.offset."),
    (_HEAD + r"dcn\.(\d)\.dcn\.", r"pixel_decoder.upsample.\1."),
    (_HEAD + r"dcn\.(\d)\.dcn_bn\.", r"pixel_decoder.upsample.\1.norm."),
    (_HEAD + r"dcn\.(\d)\.up_sample\.", r"pixel_decoder.upsample.\1.upsample."),
    (_HEAD + r"dcn\.(\d)\.up_bn\.", r"pixel_decoder.upsample.\1.upsample_norm."),
    (_HEAD + r"out\.conv\.", "pixel_decoder.mask_projection.0."),
    (_HEAD + r"out\.bn\.", "pixel_decoder.mask_projection.1."),
    (
        _PREDICTOR + r"transformer_self_attention_layers\.(\d+)\.self_attn\.",
        r"decoder.layers.\1.self_attention.attention.",
    ),
    (_PREDICTOR + r"transformer_self_attention_layers\.(\d+)\.norm\.", r"decoder.layers.\1.self_attention.norm."),
    (_PREDICTOR + r"transformer_ffn_layers\.(\d+)\.", r"decoder.layers.\1.feed_forward."),
    (_CROSS + r"feature_proj\.bn\.", r"decoder.layers.\1.cross_attention.key_norm."),
    (_CROSS + r"feature_proj\.to_query_3x3\.", r"decoder.layers.\1.cross_attention.key_conv."),
    (_CROSS + r"feature_proj\.out\.", r"decoder.layers.\1.cross_attention.key_proj."),
    (_CROSS + r"query_proj\.0\.", r"decoder.layers.\1.cross_attention.query_norm."),
    (_CROSS + r"query_proj\.1\.", r"decoder.layers.\1.cross_attention.query_proj."),
    (_CROSS + r"(alpha|proj\.|final\.)", r"decoder.layers.\1.cross_attention.\2"),
    (_PREDICTOR + r"decoder_norm\.", "decoder.norm."),
    (_PREDICTOR + r"mask_embed\.layers\.(\d)\.", lambda m: f"decoder.mask_embed.{2 * int(m[1])}."),  # ReLUs between
    (_PREDICTOR + r"(query_feat|query_embed|level_embed|input_proj|class_embed)\.", r"decoder.\1."),
)
# Two names that only the oldest checkpoints use.
LEGACY_TABLE = (
    (r"sem_seg_head\.(?!predictor\.|pixel_decoder\.)", "sem_seg_head.pixel_decoder."),
    (_PREDICTOR + r"static_query", "sem_seg_head.predictor.query_feat"),
)
_STDC_ALIAS = re.compile(r"backbone\.x\d+\.0\.(.+)")
# What DistributedDataParallel and torch.compile put into the names of weights. No name of ours has such a part.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Under which name a file may keep its weights; the first that it has counts.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "module", "network", "net", "weights")


def our_name(reference_name: str) -> str | None:
    """The name in this project of a tensor of a reference checkpoint; None when it has no place here."""
    for pattern, replacement in LEGACY_TABLE:
        reference_name = re.sub("^" + pattern, replacement, reference_name)
    for pattern, new in KEY_TABLE:
        if match := re.match(pattern, reference_name):
            return (new(match) if callable(new) else match.expand(new)) + reference_name[match.end() :]
    return None


def load_weights(model: PEM, path: str | os.PathLike[str]) -> LoadReport:
    """Fills the model from a file, whole or not at all.

    Reads a reference checkpoint (``.pth``, ``.pt`` or ``.bin`` with tensors, ``.pkl`` with numpy arrays; bare, or under
    "model" or another usual name), a training run's ``checkpoint.pt`` (its averaged weights) and ``.safetensors``.
    Numbers and texts beside the weights are ignored, and so are the prefixes that wrappers add to names.
    Strict: raises WeightsError, which names the tensors, when one is missing, unknown, of another shape or not finite;
    also when the file is damaged. FileNotFoundError when there is no such file.
    Values are converted to the model's own dtype and device. Raises ValueError for a fast copy of a model.
    """
    _check_is_plain(model)
    path = Path(path)
    state = _read(path)
    with _naming(path):
        report, tensors = _match(state, model.state_dict())
    if not report.loaded:
        found = f"its first tensors are: {_some(state)}" if state else "it is empty"
        raise WeightsError(f"{path} holds no weights of a PEM; {found}.")
    problems = []
    if report.missing:
        problems.append(f"lacks {len(report.missing)} tensors ({_some(report.missing)})")
    if report.mismatched:
        shapes = [f"{k}: expected {expected}, found {found}" for k, (expected, found) in report.mismatched.items()]
        problems.append(f"has {len(shapes)} of another shape ({_some(shapes, '; ')})")
    if report.unknown:
        problems.append(f"has {len(report.unknown)} that the model does not know ({_some(report.unknown)})")
    own = model.state_dict()  # where a float64 may be infinite
    if spoilt := [name for name, tensor in tensors.items() if not tensor.to(own[name].dtype).isfinite().all()]:
        problems.append(f"has {len(spoilt)} with values that are not finite ({_some(spoilt)})")
    if problems:
        raise WeightsError(f"{path} does not fit this model ({model.config.name}): it {', '.join(problems)}.")
    model.load_state_dict(tensors, strict=False)
    return report


def save_weights(
    model: PEM,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a ``.safetensors`` file that ``load_model`` can rebuild the model from: the config is in its metadata.

    ``dtype=torch.float16`` halves the file. Vectors (norms, biases, running statistics) keep their precision: they
    weigh nothing, and a variance may exceed the range of float16. The file appears whole or not at all. Raises
    ValueError for a name with another ending, by which ``load_model`` could not tell what it is, and for a fast copy.
    """
    _check_is_plain(model)
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path} has another ending than .safetensors; add it, or load_model cannot read the file.")
    tensors = {
        name: (tensor.to(dtype) if dtype and tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()  # not num_batches_tracked, which nothing reads
    }
    header = {"pem_format": str(FORMAT_VERSION), "config": json.dumps(dataclasses.asdict(model.config))}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            safetensors.torch.save_file(tensors, partial, metadata={**(metadata or {}), **header})
        except safetensors.SafetensorError as error:  # of a full disk, say
            raise OSError(f"{path} cannot be written ({first_line(error)}); make room for it.") from error
        partial.chmod(0o644)  # it is made readable for its owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_is_plain(model: PEM) -> None:
    if isinstance(model, FastPEM):
        raise ValueError(
            "This is a fast copy of a model, with other weights; take the model itself (load_model with fast=False)."
        )


def own_config(path: Path) -> PEMConfig | None:
    """The config in a file that this project wrote: a model or a training run's checkpoint. None in files of others.

    Raises FileNotFoundError and WeightsError as ``load_weights``.
    """
    if _kind(path) == ".safetensors":
        with _naming(path), safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        written = metadata.get("config") if "pem_format" in metadata else None
        if written and metadata["pem_format"] != str(FORMAT_VERSION):
            raise WeightsError(
                f"{path} has format {metadata['pem_format']}, this version reads {FORMAT_VERSION}; update this project."
            )
    else:
        content = _content(path)
        written = content.get("config") if _is_checkpoint(content) else None
    if written is None:
        return None
    try:
        return config_from_json(written)
    except ValueError as error:
        raise WeightsError(f"The config in {path} cannot be used: {first_line(error)}.") from error


def _match(state: dict[str, Any], wanted: dict[str, Tensor]) -> tuple[LoadReport, dict[str, Tensor]]:
    """Which value goes where. Raises TypeError for one that is no tensor where the network needs one."""
    state = _without_prefixes(state, wanted)
    is_reference = any(name.startswith("sem_seg_head.") for name in state)
    tensors: dict[str, Tensor] = {}
    ignored, mismatched, unknown, warnings = {}, {}, [], []
    for name, value in state.items():
        if name not in wanted and ("." + name).endswith(".criterion.empty_weight"):
            ignored[name] = "the class weights of the loss, not a part of the network"
            continue
        if is_reference and (alias := _STDC_ALIAS.match(name)):
            twin = f"backbone.features.{alias[1]}"
            ignored[name] = f"a second name of {twin}"
            if twin in state and not torch.equal(state[twin], value):
                warnings.append(f"{name} differs from {twin}, whose values were taken.")
            continue
        ours = our_name(name) if is_reference else name
        if ours is None or ours not in wanted or ours in tensors:
            if _is_remark(name, value):
                ignored[name] = "a remark beside the weights"
            else:
                unknown.append(name)
            continue
        if isinstance(value, np.generic | int | float):
            value = torch.tensor(float(value))  # such as the counter of a norm
        if not isinstance(value, Tensor):
            raise TypeError(f"it has a {type(value).__name__} under {name!r}, where a tensor should be")
        if wanted[ours].is_floating_point() and not value.is_floating_point():
            raise TypeError(f"it has {value.dtype} numbers under {name!r}, where weights are floats")
        if value.shape != wanted[ours].shape:
            mismatched[ours] = (tuple(wanted[ours].shape), tuple(value.shape))
        else:
            tensors[ours] = value
    # Frozen batch norms and our own files do without the counter, which nothing reads.
    missing = [
        name
        for name in wanted
        if name not in tensors and name not in mismatched and not name.endswith("num_batches_tracked")
    ]
    return LoadReport(tuple(tensors), ignored, tuple(missing), mismatched, tuple(unknown), tuple(warnings)), tensors


def _without_prefixes(state: dict[str, Any], wanted: dict[str, Tensor]) -> dict[str, Any]:
    """Under the names of one network. Raises TypeError when the file holds several."""
    names = {name: name if name in wanted else _unwrapped(name) for name in state}
    # Trainers such as Lightning's name the network in front: "model.backbone...".
    ends = ("decoder.query_feat.weight", "sem_seg_head.predictor.query_feat.weight")
    prefixes = {name.removesuffix(end) for name in names.values() for end in ends if name.endswith(f".{end}")}
    if len(prefixes) > 1:
        raise TypeError(f"it holds several networks ({_some(sorted(prefixes))}); save one of them alone")
    (prefix,) = prefixes if len(prefixes) == 1 else ("",)
    names = {name: short.removeprefix(prefix) for name, short in names.items()}
    if twice := [name for name, times in Counter(names.values()).items() if times > 1]:
        raise TypeError(f"it holds more than one {twice[0]}; save one network alone")
    return {names[name]: value for name, value in state.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _is_remark(name: str, value: Any) -> bool:
    """Whether a value is no weight but said about them: the epoch, a score, a text, settings."""
    return not isinstance(value, Tensor) or (value.ndim == 0 and "." not in name)


def _some(names: Iterable[str], separator: str = ", ", limit: int = 5) -> str:
    names = list(names)
    return separator.join(names[:limit]) + (f"{separator}..." if len(names) > limit else "")


def _kind(path: Path) -> str:
    """The ending, which tells how to read a file. Raises when it is unknown or there is no such file."""
    _check_is_file(path)
    if (ending := path.suffix.lower()) not in _READERS:
        raise WeightsError(f"{path} is of an unknown kind; weights are {', '.join(_READERS)} files.")
    return ending


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise WeightsError(f"{path} is a directory; give the file of weights in it, such as {path}/model.safetensors.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}.")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong into one sentence: a damaged or hostile file can fail anywhere in its reader."""
    try:
        yield
    except PermissionError as error:
        raise WeightsError(f"{path} may not be read; change its permissions.") from error
    except Exception as error:
        if is_lfs_pointer(path):
            raise WeightsError(f"{path} only points to the real file, which git lfs pull fetches.") from error
        raise WeightsError(f"{path} is damaged or not a file of weights: {first_line(error)}.") from error


def is_lfs_pointer(path: Path) -> bool:
    """Whether Git, without its extension for large files, left the few lines there that stand for one."""
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


def _content(path: Path) -> Any:
    """What a file holds, as it was put in."""
    reader = _READERS[_kind(path)]
    with _naming(path):
        return reader(path)


def _read(path: Path) -> dict[str, Any]:
    """The tensors of a file, and the remarks beside them, by the names that it gives them."""
    content = _content(path)
    with _naming(path):
        return {str(name): _to_tensor(name, value) for name, value in _weights_in(content).items()}


def read_tensors(path: Path) -> dict[str, Any]:
    """What a safetensors file, or a torch file of any ending, holds by name, without the prefixes of wrappers.

    Runs no code from it.

    Raises FileNotFoundError and WeightsError as ``load_weights``.
    """
    _check_is_file(path)
    with _naming(path):
        read = _READERS[".safetensors"] if path.suffix.lower() == ".safetensors" else _read_torch
        return {_unwrapped(str(name)): value for name, value in _weights_in(read(path)).items()}


def _is_checkpoint(content: Any) -> bool:
    """Whether it is the checkpoint.pt of a training run of this project."""
    return isinstance(content, dict) and content.keys() >= {"module", "average", "settings"}


def _weights_in(content: Any) -> dict[str, Any]:
    """The named weights: bare, or under one of the usual names."""
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__} instead of named tensors")
    if _is_checkpoint(content):
        # The module is the model with the losses that train it.
        module = content["module"].items()
        return content["average"] or {x.removeprefix("model."): y for x, y in module if x.startswith("model.")}
    for name in _CONTAINERS:
        if isinstance(content.get(name), dict) and _has_tensors(content[name], deep=True):
            return _weights_in(content[name])
    nested = [value for value in content.values() if isinstance(value, dict) and _has_tensors(value, deep=True)]
    return _weights_in(nested[0]) if len(nested) == 1 and not _has_tensors(content) else content


def _has_tensors(content: dict[str, Any], deep: bool = False) -> bool:
    return any(
        isinstance(value, Tensor | np.ndarray) or (deep and isinstance(value, dict) and _has_tensors(value, deep))
        for value in content.values()
    )


def _to_tensor(name: str, value: Any) -> Any:
    """A tensor of an array; NumPy's numbers and what is not numeric stay as they are."""
    if isinstance(value, np.ndarray):
        dtype = value.dtype.newbyteorder("=")
        if dtype == np.longdouble:  # wider than any of torch's
            dtype = np.dtype(np.float64)
        value = torch.from_numpy(np.array(value, dtype=dtype))
    if isinstance(value, Tensor):
        unusual = {
            "sparse": value.layout != torch.strided,
            "complex": value.is_complex(),
            "quantised": value.is_quantized,
            "empty (meta)": value.is_meta,
        }
        if kind := next((kind for kind, is_so in unusual.items() if is_so), None):
            raise TypeError(f"it has a tensor under {name!r} that is {kind}")
    return value


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_NUMPY_IN_TORCH):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # torch's own messages are long, and some recommend to switch the protection off.
        reason = "torch cannot read it"
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it wants {refused[1]}, but weights need only tensors"
        elif numbers := re.search(r"it has an array of .*", str(error)):
            reason = numbers[0]
        elif "TorchScript" in str(error):
            reason = "it is a TorchScript program; save the model's state_dict instead"
        raise pickle.UnpicklingError(reason) from None


def _read_pickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):  # torch.save wrote it
        return _read_torch(path)
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, strings, numbers and numpy arrays of numbers; refuses everything else that a pickle can name."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module.replace("numpy._core", "numpy.core"), name]  # numpy 2 moved it
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, but weights need only numpy arrays") from None


def _number_dtype(*args: Any) -> np.dtype[Any]:
    dtype = np.dtype(*args)
    if dtype.kind not in "biufc":
        raise pickle.UnpicklingError(f"it has an array of {dtype}, but weights are numbers")
    return dtype


def _latin1(text: str, encoding: str) -> bytes:
    """How protocols before 3 write bytes; they name no other encoding."""
    return text.encode("latin1")


# The three functions that numpy's own arrays and scalars name when they are pickled.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _number_dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float32(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
}
# The same for torch's reader. It wants to know the class of every object that a pickle completes: one per dtype.
_NUMPY_IN_TORCH: list[Any] = [
    *((value, f"{module}.{name}") for (module, name), value in _ALLOWED.items() if module.startswith("numpy")),
    *(
        (value, f"{module}.{name}".replace("numpy.core", "numpy._core"))
        for (module, name), value in _ALLOWED.items()
        if module.startswith("numpy.core")
    ),
    *((kind, f"numpy.dtypes.{kind.__name__}") for kind in {type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDG"}),
]
_READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".ckpt": _read_torch,
    ".pkl": _read_pickle,
    ".safetensors": safetensors.torch.load_file,
}
