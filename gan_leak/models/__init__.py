"""Networks as pure functions."""

from collections.abc import Callable

from gan_leak.models.flax import as_model, evaluation_arguments
from gan_leak.models.hitaj_classifiers import count_parameters, faces_classifier, mlp_classifier, mnist_classifier
from gan_leak.models.hitaj_generators import LATENT_SIZE, dcgan_generator, sample_images, sample_latents
from gan_leak.models.mgan_ai_networks import conditional_generator, mgan_ai_classifier, mgan_ai_generator
from gan_leak.models.trunks import trunk_of_flax, trunk_of_layered
from gan_leak.types import Model

__all__ = [
    "IMAGE_SIZES",
    "LATENT_SIZE",
    "as_model",
    "classifier_for",
    "conditional_generator",
    "count_parameters",
    "dcgan_generator",
    "evaluation_arguments",
    "faces_classifier",
    "mgan_ai_classifier",
    "mgan_ai_generator",
    "mlp_classifier",
    "mnist_classifier",
    "sample_images",
    "sample_latents",
    "trunk_of_flax",
    "trunk_of_layered",
]

_CLASSIFIERS: dict[int, Callable[..., Model]] = {32: mnist_classifier, 64: faces_classifier}
IMAGE_SIZES = tuple(_CLASSIFIERS)


def classifier_for(
    image_size: int, num_outputs: int, channels: int, *, implementation: str = "auto", batchnorm: bool = False
) -> Model:
    """The paper's classifier for 32 (MNIST) or 64 (AT&T) pixels. Raises ValueError for another size.

    batchnorm: with BatchNorm by the current batch between max-pool and tanh, which the paper does not have.

    >>> import jax
    >>> classifier = classifier_for(32, num_outputs=11, channels=1)
    >>> count_parameters(jax.eval_shape(classifier.init, jax.random.key(0)))
    105707
    """
    if image_size not in _CLASSIFIERS:
        raise ValueError(f"image_size={image_size}: allowed are {' and '.join(map(str, IMAGE_SIZES))}")
    make = _CLASSIFIERS[image_size]
    return make(num_outputs, channels=channels, implementation=implementation, batchnorm=batchnorm)
