"""The other papers as data: the tables, their presets and their binaries."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments import gradient_inversion, split_inference, user_leakage


class Binary(NamedTuple):
    """A binary with a row of a table for each setting.

    module: its name for ``python -m``. config_class: its configuration.
    load_data: ``load_data(config)`` reads and checks the data set and returns it first.
    prepare: ``prepare(config, workdir, resume)`` checks a run and opens its directory.
    run_settings: runs the missing rows of a prepared run, and returns a ``Drawn`` for each setting.
    """

    module: str
    config_class: type
    load_data: Callable[[Any], tuple[Any, ...]]
    prepare: Callable[..., Any]
    run_settings: Callable[[Any], list[Any]]


class Table(NamedTuple):
    """One section of the reproduction.

    settings: by label, the presets of one binary. measure: the first measure in the report. others: the rows that
    criteria may name beside ``first``, the first row of a preset, by the names in the criteria.
    """

    number: str
    title: str
    binary: Binary
    settings: dict[str, str]
    measure: str = "recovered"
    others: Mapping[str, str] = types.MappingProxyType({})


GRADIENT_INVERSION = Binary(
    "experiments.gradient_inversion",
    gradient_inversion.GradientConfig,
    gradient_inversion.load_data,
    gradient_inversion.prepare,
    gradient_inversion.run_settings,
)
SPLIT_INFERENCE = Binary(
    "experiments.split_inference",
    split_inference.SplitConfig,
    split_inference.load_data,
    split_inference.prepare,
    split_inference.run_settings,
)
USER_LEAKAGE = Binary(
    "experiments.user_leakage",
    user_leakage.UserLeakageConfig,
    user_leakage.load_data,
    user_leakage.prepare,
    user_leakage.run_settings,
)

TABLES = (
    Table(
        "he_mnist",
        "Split inference, MNIST (He, Zhang and Lee 2019, Tables 3, 4, 6, 8)",
        SPLIT_INFERENCE,
        {"He et al., MNIST": "he_mnist"},
        "psnr",
    ),
    Table(
        "he_cifar10",
        "Split inference, CIFAR-10 (He, Zhang and Lee 2019, Tables 3, 4, 8)",
        SPLIT_INFERENCE,
        {"He et al., CIFAR-10": "he_cifar10"},
        "psnr",
    ),
    Table(
        "he_defenses",
        "Noise and dropout on features (He, Zhang and Lee 2019 and 2020)",
        SPLIT_INFERENCE,
        {"He et al., noise": "he_noise", "He et al., dropout": "he_dropout"},
        "ssim",
    ),
    Table(
        "dlg",
        "Deep leakage from gradients (Zhu, Liu and Han 2019; Zhao, Mopuri and Bilen 2020)",
        GRADIENT_INVERSION,
        {"DLG": "dlg", "DLG, larger batches": "dlg_large", "iDLG": "idlg"},
    ),
    Table(
        "inverting_gradients",
        "Inverting Gradients (Geiping et al. 2020)",
        GRADIENT_INVERSION,
        {"Inverting Gradients": "inverting_gradients", "several steps": "inverting_updates"},
    ),
    Table(
        "grnn",
        "GRNN (Ren, Deng and Xie 2022)",
        GRADIENT_INVERSION,
        {"GRNN": "grnn", "GRNN, batches": "grnn_batches", "GRNN, faces": "grnn_faces"},
    ),
    Table(
        "gradient_defenses",
        "Defenses on one gradient",
        GRADIENT_INVERSION,
        {
            "DLG, defenses": "dlg_defenses",
            "Inverting Gradients, defenses": "inverting_gradients_defenses",
            "GRNN, defenses": "grnn_defenses",
        },
    ),
    Table(
        "mgan_ai",
        "User-level leakage to the server (Wang et al. 2019)",
        USER_LEAKAGE,
        {"mGAN-AI, faces": "faces", "active server, faces": "faces_active"},
        "client_identified",
        {"class_gan": "class-level GAN at the server", "passive": "representatives, passive"},
    ),
)
