"""Attacks on one gradient or update.

Each is a ``Procedure``. Its evidence is the view of the server, and the labels [B, K] that it knows or infers:

>>> import jax
>>> import jax.numpy as jnp
>>> from gan_leak import GradientEvidence, GradientView, mlp_classifier, run_procedure
>>> from gan_leak import deep_leakage, gradient_of, grnn, inverting_gradients
>>> from gan_leak.models.grnn_generator import grnn_generator
>>> model = mlp_classifier(3, image_size=16, hidden=())
>>> params = model.init(jax.random.key(0))
>>> image, label = jnp.linspace(0.0, 1.0, 256).reshape(1, 16, 16, 1), jax.nn.one_hot(jnp.array([1]), 3)
>>> evidence = GradientEvidence(GradientView(params, gradient_of(model, params, image, label)), label)

The gradient of this linear model holds its input, which is recovered:

>>> attack = inverting_gradients(model, image.shape, iterations=100)
>>> found = jax.jit(lambda key: run_procedure(key, attack, evidence, 100))(jax.random.key(1))
>>> bool(jnp.max(jnp.abs(found.images - image)) < 0.05)
True

All attacks return images and labels of the same shapes:

>>> generator = grnn_generator(3, image_size=16, channels=1)
>>> for attack in (deep_leakage(model, image.shape, 3), grnn(model, generator, 1)):
...     jax.eval_shape(lambda key: run_procedure(key, attack, evidence, 10), jax.random.key(1)).images.shape
(1, 16, 16, 1)
(1, 16, 16, 1)

If the server sees the update of several local steps, ``update_of`` replaces the gradient:

>>> from gan_leak import update_of
>>> update = update_of(model, params, image, label, learning_rate=0.1, steps=2, batch_size=1)
>>> jax.tree.structure(update) == jax.tree.structure(params)
True
"""
