"""Attacks by the server, and broadcasts that send participants different models.

mGAN-AI needs the trunk of the shared model, a generator with two conditions, and a matcher that finds representatives
of the updates. Here the matcher draws gray images, to keep the example short:

>>> import jax
>>> import jax.numpy as jnp
>>> from gan_leak import MganAiHyperParameters, conditional_generator, dcgan_generator, known_labels, mgan_ai
>>> from gan_leak import classifier_for, trunk_of_flax
>>> from gan_leak.attacks.server.representatives import Representatives
>>> classifier = classifier_for(32, 10, channels=1)
>>> generator = conditional_generator(dcgan_generator(32, width=4, latent_size=300), categories=10, identities=3)
>>> labels = jnp.tile(jnp.arange(10), (3, 1))
>>> def match(key, evidence, start):
...     return Representatives(jnp.zeros((*evidence.labels.shape, 32, 32, 1)), jnp.zeros(len(evidence.labels)))
>>> attack = mgan_ai(trunk_of_flax(classifier, (32, 32, 1)), generator, match, known_labels(labels), clients=3)
>>> state = jax.eval_shape(lambda key: attack.init(key, classifier.init(key)), jax.random.key(0))
>>> jax.eval_shape(lambda key, state: attack.reconstruct(key, state, 20), jax.random.key(1), state).shape
(20, 32, 32, 1)
"""
