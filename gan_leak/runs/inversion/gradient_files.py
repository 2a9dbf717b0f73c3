"""A participant's upload from a user's file: checks names, layouts and types, and converts PyTorch's layouts.

A file holds ``params/<layer>/<name>`` for every array of the network, ``gradient/<layer>/<name>`` for those that were
sent, and ``labels`` [B] if they are known. Here a convolution's kernel is [H, W, input, output], a dense layer's
[input, output], and a feature map [H, W, C] is flattened in this order.
"""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.attacks.gradient.contract import GradientAttack
from gan_leak.attacks.gradient.flatten_order import chw_to_hwc, infer_flatten_order
from gan_leak.data import read_archive
from gan_leak.types import GradientView, Model

FLATTEN_ORDERS = ("auto", "hwc", "chw")
_CONVERSION = "expected an npz of numbers: np.savez(path, **{name: tensor.float().numpy() for name, tensor in ...})"
# Thresholds below which a gradient counts as matched: one minus the cosine, and the norm of the difference divided by
# the norm of the gradient. Both mean an angle of 18 degrees.
_MATCHED_COSINE = 0.05
_MATCHED_DIFFERENCE = 0.31
_CAUSES = (
    "Likely causes: another layout or flatten order (--flatten_order), another network or other parameters than those "
    "sent out, several local steps (--local_steps), dropout or BatchNorm in training, a sum instead of a mean "
    "(--gradient_scale), another number of images (--batch_sizes) or other labels, noise or a defense, too few "
    "--iterations or --restarts."
)
# Transpositions of PyTorch's axes [output, input, H, W] and [output, input], by the number of axes.
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}


class Flattening(NamedTuple):
    """The place where a network flattens its feature map: the layer of the last bias before it, the dense layer after.

    slope: the derivative of the activation between them, as a function of its value.
    """

    convolution: str
    dense: str
    slope: Callable[[np.ndarray], np.ndarray]


def _sigmoid_slope(values: np.ndarray) -> np.ndarray:
    return values * (1.0 - values)


# The ResNet averages its feature map, so its feature map has no order.
FLATTENINGS = {
    "dlg_lenet": Flattening("layer4", "layer7/Dense_0", _sigmoid_slope),
    # A BatchNorm's bias is added to the same values as the convolution's, whose gradient is zero.
    "dlg_lenet_batchnorm": Flattening("layer7", "layer10/Dense_0", _sigmoid_slope),
    "grnn_lenet": Flattening("layer3", "layer7/Dense_0", _sigmoid_slope),
    "mnist_classifier": Flattening(
        "PooledConvolution_1", "hidden_layer/Dense_0", lambda values: 1.0 - np.square(values)
    ),
}


class LoadedGradient(NamedTuple):
    """A participant's upload, and the labels [B] if the file holds them.

    matched: the numbers of arrays and parameters that were sent, and of all. notes: remarks for readers of the result.
    scale: the inferred scale by which the gradient has been divided, None if it was not inferred.
    """

    view: GradientView
    labels: np.ndarray | None
    matched: dict[str, int]
    notes: tuple[str, ...]
    scale: float | None = None


def load_gradient(
    path: pathlib.Path,
    model: Model,
    network: str,
    *,
    batch_size: int,
    num_classes: int,
    scale: float = 1.0,
    flatten_order: str = "auto",
) -> LoadedGradient:
    """Read a participant's upload and divide its gradient by ``scale``, unless that is 0.

    Arrays of the gradient may be missing, such as those of frozen layers; arrays of the parameters may not. Arrays of
    16 bits (also bfloat16) and 64 bits are converted to float32. Kernels may have PyTorch's axes. flatten_order: order
    of the rows of the first dense layer; 'auto' takes the order that explains the gradient, if there is one.

    Raises ValueError in one line if the arrays are not those of the network, or if the file cannot be read.
    """
    shapes = named_shapes(model)
    arrays = _read(path)
    labels = arrays.pop("labels", None)
    if labels is not None:
        _check_labels(path, labels, batch_size, num_classes)
    params, gradient = (
        {
            name.removeprefix(f"{part}/"): _numbers(path, name, value)
            for name, value in arrays.items()
            if name.startswith(f"{part}/")
        }
        for part in GradientView._fields
    )
    known = {f"{part}/{name}" for part in GradientView._fields for name in shapes}
    if unknown := sorted(set(arrays) - known):
        raise ValueError(f"gradient={path}: holds {unknown[0]}, expected the arrays of the network")
    if missing := sorted(set(shapes) - set(params)):
        raise ValueError(f"gradient={path}: lacks params/{missing[0]}, expected the arrays of the network")
    if not gradient:
        raise ValueError(f"gradient={path}: lacks gradient/{min(shapes)} and all others, expected at least one")
    as_torch = _torch_axes(path, shapes, {"params": params, "gradient": gradient})
    for part in (params, gradient):
        for name in part:
            if part[name].ndim in as_torch:
                part[name] = part[name].transpose(_FROM_TORCH[part[name].ndim])
    notes = _in_our_order(network, params, gradient, flatten_order, torch=bool(as_torch))
    if as_torch:
        notes = ("kernels had PyTorch's axes and were transposed", *notes)
    factor = np.float32(scale or 1.0)
    sent = {name: value if factor == 1 else value / factor for name, value in gradient.items()}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    matched = {
        "arrays": len(sent),
        "of_arrays": len(shapes),
        "parameters": sum(sizes[name] for name in sent),
        "of_parameters": sum(sizes.values()),
    }
    return LoadedGradient(GradientView(_nested(params), _nested(sent)), labels, matched, notes)


def named_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape of every array of the network by its name ``<layer>/<name>``."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return {
        "/".join(entry.key for entry in place): leaf.shape
        for place, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }


def summarize_gradient(
    attack: GradientAttack, loaded: LoadedGradient, distance: float, scale: np.ndarray | None
) -> dict[str, Any]:
    """The fields of a row about a gradient from a file: the matched arrays, the quality of the match, and notes.

    distance: final distance of the attack. scale: the scale that the attack fitted, None if it fitted none.
    """
    sent_scale = loaded.scale if scale is None else float(scale)
    square = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(loaded.view.gradient))
    cosine = attack.distance == "cosine"
    relative = distance if cosine else (distance / square) ** 0.5
    matched = relative <= (_MATCHED_COSINE if cosine else _MATCHED_DIFFERENCE)
    notes = [*loaded.notes]
    if loaded.matched["arrays"] < loaded.matched["of_arrays"]:
        notes.append(
            f"{loaded.matched['arrays']} of {loaded.matched['of_arrays']} arrays were matched, "
            f"{loaded.matched['parameters']} of {loaded.matched['of_parameters']} parameters"
        )
    if sent_scale is not None:
        notes.append(f"the gradient is {sent_scale:.4g} times that of a mean over the batch")
    if not matched:
        notes.append(f"the gradient was NOT MATCHED ({relative:.2g} of it is unexplained). {_CAUSES}")
    summary = {"matched": matched, "unexplained": relative if np.isfinite(relative) else None, **loaded.matched}
    if sent_scale is not None:
        summary["scale"] = sent_scale
    return {"gradient": summary, "notes": notes}


def from_torch(model: Model, part: str, tensors: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    """The arrays of a file from NumPy arrays in the order of PyTorch's ``module.parameters()``, weight before bias.

    part: 'params' or 'gradient'. tensors: None marks an array that was not sent. Axes and flatten order stay unchanged:
    ``load_gradient`` converts them. Works for chains of layers: all networks but 'grnn_resnet18'. Raises ValueError for
    another number of tensors.
    """
    arrays = set(named_shapes(model))
    layers = sorted({name.rpartition("/")[0] for name in arrays}, key=_place_in_chain)
    # A layer has a kernel, or a scale if it is a BatchNorm; both are PyTorch's weight.
    of_layers = [f"{layer}/{name}" for layer in layers for name in ("kernel", "scale", "bias")]
    names = [f"{part}/{name}" for name in of_layers if name in arrays]
    if len(names) != len(tensors):
        raise ValueError(f"{part}: {len(tensors)} tensors, expected {len(names)}: {', '.join(names)}")
    return {name: np.asarray(value) for name, value in zip(names, tensors, strict=True) if value is not None}


def _place_in_chain(layer: str) -> tuple[int, int]:
    """The sort key of a layer. The classifier's layers are named by kind and sorted in that order, others by number."""
    kinds = ("layer", "PooledConvolution_", "hidden_layer", "output_layer")
    kind = max((kind for kind in kinds if layer.startswith(kind)), key=len, default=None)
    if kind is None:
        raise ValueError(f"{layer}: expected a network that is a chain of layers")
    digits = layer.removeprefix(kind).partition("/")[0]
    return kinds.index(kind), int(digits) if digits.isdigit() else 0


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if kind := _foreign_kind(path):
        raise ValueError(f"gradient={path}: {kind}, which is not read; {_CONVERSION}")
    try:
        return read_archive(path)
    except ValueError as error:
        raise ValueError(f"gradient={path}: {error}, expected an npz of numbers") from error


def _foreign_kind(path: pathlib.Path) -> str | None:
    """The format of a file of another program, from its first bytes. No code of the file is run."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return None
    if head[:1] == b"\x80":
        return "a pickle"
    if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "a safetensors file"
    if head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                return "a PyTorch file" if any(name.endswith("data.pkl") for name in archive.namelist()) else None
        except zipfile.BadZipFile:
            return None
    return None


def _check_labels(path: pathlib.Path, labels: np.ndarray, batch_size: int, num_classes: int) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (batch_size,):
        raise ValueError(
            f"gradient={path}: labels are {labels.dtype} {list(labels.shape)}, expected integers [{batch_size}], one "
            f"for each image of --batch_sizes={batch_size}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        wrong = labels[(labels < 0) | (labels >= num_classes)][0]
        raise ValueError(f"gradient={path}: labels hold {wrong}, expected 0 to {num_classes - 1}")


def _numbers(path: pathlib.Path, name: str, values: np.ndarray) -> np.ndarray:
    """The values as float32. An npz file stores bfloat16 as two bytes without a type."""
    if values.dtype.kind == "V" and values.dtype.itemsize == 2 and values.dtype.names is None:
        values = values.view(jnp.bfloat16)
    elif values.dtype.kind not in "fiu":
        raise ValueError(f"gradient={path}: {name} of type {values.dtype}, expected an npz of numbers")
    # An overflow becomes an infinity, which the check of the view refuses.
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _torch_axes(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], parts: Mapping[str, Mapping[str, np.ndarray]]
) -> set[int]:
    """The numbers of axes for which all kernels have PyTorch's order. Raises ValueError if neither order fits."""
    found = set()
    for ndim in sorted({len(shape) for shape in shapes.values()}):
        pairs = [
            (f"{part}/{name}", values.shape, shapes[name])
            for part, arrays in parts.items()
            for name, values in arrays.items()
            if len(shapes[name]) == ndim
        ]
        wrong = [pair for pair in pairs if pair[1] != pair[2]]
        if not wrong:
            continue
        turn = _FROM_TORCH.get(ndim)
        if turn and all(len(shape) == ndim and tuple(shape[at] for at in turn) == like for _, shape, like in pairs):
            found.add(ndim)
            continue
        name, shape, like = wrong[0]
        theirs = f" or, in PyTorch's axes, {tuple(like[turn.index(at)] for at in range(ndim))}" if turn else ""
        raise ValueError(f"gradient={path}: {name} of shape {shape}, expected {like}{theirs}")
    return found


def _in_our_order(
    network: str, params: dict[str, np.ndarray], gradient: dict[str, np.ndarray], flatten_order: str, *, torch: bool
) -> tuple[str, ...]:
    """Reorder, in place, rows of the first dense layer that are in PyTorch's order. Returns notes."""
    if network not in FLATTENINGS:
        return ()
    where = FLATTENINGS[network]
    kernel, bias, before = f"{where.dense}/kernel", f"{where.dense}/bias", f"{where.convolution}/bias"
    channels = len(params[before])
    order, why = flatten_order, "as --flatten_order says"
    if order == "auto":
        inferred = None
        if {kernel, bias, before} <= set(gradient):
            seen = (params[kernel], gradient[kernel], gradient[bias], gradient[before])
            if all(np.all(np.isfinite(values)) for values in seen):
                inferred = infer_flatten_order(*seen, where.slope)
        order = inferred or ("chw" if torch else "hwc")
        why = "as inferred from the gradient" if inferred else "as is usual with PyTorch's axes"
    if order == "hwc":
        return ()
    for part in (params, gradient):
        if kernel in part:
            part[kernel] = chw_to_hwc(part[kernel], channels)
    return (f"the rows of {kernel} were in the order (C, H, W) of PyTorch, {why}, and were reordered",)


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *layers, last = name.split("/")
        place = tree
        for layer in layers:
            place = place.setdefault(layer, {})
        place[last] = jnp.asarray(value)
    return tree
