"""What a user's file may hold: every layout that is promised reads as the same gradient, and the rest is refused."""

import functools
import pickle
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.attacks.gradient.observation import gradient_of
from gan_leak.attacks.gradient.registry import GRADIENT_ATTACKS
from gan_leak.runs.inversion.gradient import network_for
from gan_leak.runs.inversion.gradient_files import from_torch, load_gradient, named_shapes, summarize_gradient
from gan_leak.types import GradientView
from reference.small import largest_difference, same_bits

pytestmark = pytest.mark.slow

NETWORKS = ("dlg_lenet", "dlg_lenet_batchnorm", "grnn_lenet", "mnist_classifier")
# The layers in the order of a PyTorch module, and which of them comes behind the flattened feature map.
CHAINS = {
    "dlg_lenet": ("layer0", "layer2", "layer4", "layer7/Dense_0"),
    "dlg_lenet_batchnorm": ("layer0", "layer1", "layer3", "layer4", "layer6", "layer7", "layer10/Dense_0"),
    "grnn_lenet": ("layer0", "layer3", "layer7/Dense_0", "layer9/Dense_0", "layer11/Dense_0"),
    "mnist_classifier": (
        *("PooledConvolution_0", "PooledConvolution_1"),
        *("hidden_layer/Dense_0", "output_layer/Dense_0"),
    ),
}
LABELS = np.array([3, 1], np.int64)


@functools.cache
def observed(network):
    model = network_for(network, "torch", 4, 32, 1)
    params = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 1))
    return model, GradientView(params, gradient_of(model, params, images, jnp.eye(4)[LABELS]))


def named(tree, part):
    return {
        "/".join((part, *(entry.key for entry in place))): np.array(leaf)
        for place, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def arrays_of(view):
    return named(view.params, "params") | named(view.gradient, "gradient")


def read(path, model, network="dlg_lenet", **options):
    return load_gradient(path, model, network, batch_size=2, num_classes=4, **options)


def torch_tensors(tree, network):
    """By another way than ours: the arrays as PyTorch keeps them, weight before bias."""
    flat, found, features, behind = named(tree, "x"), [], None, False
    for layer in CHAINS[network]:
        weight = flat[f"x/{layer}/kernel"] if f"x/{layer}/kernel" in flat else flat[f"x/{layer}/scale"]
        if weight.ndim == 1:
            found.append(weight)
        elif weight.ndim == 4:
            found.append(np.stack([weight[..., out].transpose(2, 0, 1) for out in range(weight.shape[-1])]))
            features = weight.shape[-1]
        else:
            rows = weight
            if not behind:
                side = int((len(weight) / features) ** 0.5)
                volume = weight.reshape(side, side, features, -1)
                rows = np.concatenate([volume[:, :, channel].reshape(side * side, -1) for channel in range(features)])
                behind = True
            found.append(rows.T)
        found.append(flat[f"x/{layer}/bias"])
    return found


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("order", ["auto", "chw"])
def test_the_tensors_of_a_torch_module_read_as_the_same_gradient(tmp_path, network, order):
    model, view = observed(network)
    parts = (from_torch(model, part, torch_tensors(getattr(view, part), network)) for part in GradientView._fields)
    np.savez(tmp_path / "torch.npz", **{name: values for part in parts for name, values in part.items()})
    brought = read(tmp_path / "torch.npz", model, network, flatten_order=order)
    assert same_bits(brought.view, view)
    assert "PyTorch's axes" in brought.notes[0]
    assert "(C, H, W)" in brought.notes[1]


def test_kernels_that_were_turned_by_hand_but_not_their_rows_are_put_in_order(tmp_path):
    model, view = observed("dlg_lenet")
    arrays = arrays_of(view)
    for part in GradientView._fields:
        name = f"{part}/layer7/Dense_0/kernel"
        arrays[name] = torch_tensors(getattr(view, part), "dlg_lenet")[6].T
    np.savez(tmp_path / "rows.npz", **arrays)
    brought = read(tmp_path / "rows.npz", model)
    assert same_bits(brought.view, view)
    assert len(brought.notes) == 1
    assert "as inferred from the gradient" in brought.notes[0]
    kept = read(tmp_path / "rows.npz", model, flatten_order="hwc")
    assert largest_difference(kept.view, view) > 1e-3
    assert not kept.notes


def test_a_file_in_our_layout_is_read_as_it_is(tmp_path):
    for network in (*NETWORKS, "grnn_resnet18"):
        model = network_for(network, "wide", 4, 32, 1)
        view = GradientView(*(model.init(jax.random.key(at)) for at in (0, 1)))
        np.savez(tmp_path / "ours.npz", **arrays_of(view), labels=LABELS)
        brought = read(tmp_path / "ours.npz", model, network)
        assert same_bits(brought.view, view)
        assert brought.notes == ()
        assert brought.matched["arrays"] == brought.matched["of_arrays"] == len(named_shapes(model))
        np.testing.assert_array_equal(brought.labels, LABELS)


def test_types_are_converted(tmp_path):
    model, view = observed("dlg_lenet")
    for dtype, close in ((np.float16, 1e-3), (jnp.bfloat16, 1e-2), (np.float64, 0.0)):
        np.savez(tmp_path / "typed.npz", **{name: values.astype(dtype) for name, values in arrays_of(view).items()})
        brought = read(tmp_path / "typed.npz", model)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(brought.view))
        assert largest_difference(brought.view, view) <= close


def test_frozen_layers_may_be_missing(tmp_path):
    model, view = observed("dlg_lenet")
    arrays = {name: values for name, values in arrays_of(view).items() if not re.match("gradient/layer[024]", name)}
    np.savez(tmp_path / "last.npz", **arrays)
    brought = read(tmp_path / "last.npz", model)
    assert same_bits(brought.view, GradientView(view.params, {"layer7": view.gradient["layer7"]}))
    sizes = {"arrays": 2, "of_arrays": 8, "parameters": 768 * 4 + 4}
    assert sizes.items() <= brought.matched.items()
    assert brought.matched["of_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(view.params))
    told = summarize_gradient(GRADIENT_ATTACKS["dlg"], brought, 0.0, None)
    assert told["notes"] == [f"2 of 8 arrays were matched, 3076 of {brought.matched['of_parameters']} parameters"]


def test_the_gradient_is_divided_by_its_scale(tmp_path):
    model, view = observed("dlg_lenet")
    np.savez(tmp_path / "sum.npz", **arrays_of(GradientView(view.params, jax.tree.map(lambda leaf: 8 * leaf, view[1]))))
    assert same_bits(read(tmp_path / "sum.npz", model, scale=8.0).view, view)
    assert same_bits(read(tmp_path / "sum.npz", model, scale=0.0).view, read(tmp_path / "sum.npz", model).view)


@pytest.mark.parametrize(
    ("attack", "distance", "matched"),
    [
        ("dlg", 1e-6, True),
        ("grnn", 10.0, False),
        ("idlg", float("nan"), False),
        ("inverting_gradients", 8e-5, True),
        ("inverting_gradients", 0.24, False),
    ],
)
def test_what_stays_far_from_the_gradient_is_not_matched(tmp_path, attack, distance, matched):
    model, view = observed("dlg_lenet")
    np.savez(tmp_path / "ours.npz", **arrays_of(view))
    told = summarize_gradient(GRADIENT_ATTACKS[attack], read(tmp_path / "ours.npz", model), distance, None)
    assert told["gradient"]["matched"] is matched
    assert [("NOT MATCHED" in note, "flatten order" in note) for note in told["notes"]] == [(True, True)] * (
        not matched
    )


def damaged(arrays, **changes):
    return {name: values for name, values in (arrays | changes).items() if values is not None}


BIAS = "gradient/layer7/Dense_0/bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params/layer0/bias": None}, "lacks params/layer0/bias, expected the arrays of the network"),
        ({"gradient/fc/bias": np.zeros(4)}, "holds gradient/fc/bias, expected the arrays of the network"),
        ({"labels": np.array([3, 4])}, "labels hold 4, expected 0 to 3"),
        ({"labels": np.array([-1, 2])}, "labels hold -1, expected 0 to 3"),
        (
            {"labels": np.array([1, 2, 3])},
            "labels are int64 [3], expected integers [2], one for each image of --batch_sizes=2",
        ),
        ({"labels": np.array([1.0, 2.0])}, "labels are float64 [2], expected integers [2]"),
        ({"labels": np.array([True, False])}, "labels are bool [2], expected integers [2]"),
        ({BIAS: np.zeros(4, "V1")}, f"{BIAS} of type |V1, expected an npz of numbers"),
        ({BIAS: np.zeros(4, complex)}, f"{BIAS} of type complex128, expected an npz of numbers"),
        ({BIAS: np.array(list("abcd"))}, f"{BIAS} of type <U1, expected an npz of numbers"),
        (
            {"params/layer0/kernel": np.zeros((12, 1, 5, 4))},
            "params/layer0/kernel of shape (12, 1, 5, 4), expected (5, 5, 1, 12) or, in PyTorch's axes, (12, 1, 5, 5)",
        ),
        # One kernel in either layout: nothing tells which is meant.
        (
            {"params/layer0/kernel": np.zeros((12, 1, 5, 5))},
            "params/layer0/kernel of shape (12, 1, 5, 5), expected (5, ",
        ),
    ],
)
def test_other_arrays_are_refused_in_one_line(tmp_path, changes, message):
    model, view = observed("dlg_lenet")
    np.savez(tmp_path / "mine.npz", **damaged(arrays_of(view), **changes))
    with pytest.raises(ValueError, match=re.escape(f"gradient={tmp_path / 'mine.npz'}: {message}")) as raised:
        read(tmp_path / "mine.npz", model)
    assert "\n" not in str(raised.value)


def test_a_gradient_without_any_array_is_refused(tmp_path):
    model, view = observed("dlg_lenet")
    np.savez(tmp_path / "mine.npz", **named(view.params, "params"))
    with pytest.raises(ValueError, match="lacks gradient/layer0/bias and all others, expected at least one"):
        read(tmp_path / "mine.npz", model)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    ("name", "kind"), [("a.pt", "a PyTorch file"), ("a.pkl", "a pickle"), ("a.safetensors", "a safe")]
)
def test_files_of_other_programs_are_refused_unread_with_the_conversion(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "a PyTorch file":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    elif kind == "a pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(ValueError, match=re.escape(f"gradient={path}: {kind}")) as raised:
        read(path, observed("dlg_lenet")[0])
    assert "np.savez(path, **{name: tensor.float().numpy()" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tensors_of_another_module_are_refused():
    model, _ = observed("dlg_lenet")
    with pytest.raises(
        ValueError, match="gradient: 3 tensors, expected 8: gradient/layer0/kernel, gradient/layer0/bias"
    ):
        from_torch(model, "gradient", [None] * 3)
    assert from_torch(model, "gradient", [None] * 8) == {}
    with pytest.raises(ValueError, match="expected a network that is a chain of layers"):
        from_torch(network_for("grnn_resnet18", "torch", 4, 32, 1), "params", [])
