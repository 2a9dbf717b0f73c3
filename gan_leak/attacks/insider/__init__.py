"""Attacks by a participant.

An insider's attack takes one step in each of the adversary's turns. The federation holds its state:

>>> import jax
>>> from gan_leak import dcgan_generator, gan_attack, init_federation, mlp_classifier, selective_upload
>>> classifier = mlp_classifier(11, image_size=32, hidden=())
>>> generator = dcgan_generator(32, channels=1, width=8)
>>> attack = gan_attack(
...     classifier, generator, (32, 32, 1), generator_steps=1, generator_batch_size=4, fakes_per_round=8
... )
>>> transform = selective_upload("largest")
>>> state = jax.eval_shape(
...     lambda key: init_federation(key, classifier, transform, participants=2, attack=attack), jax.random.key(0)
... )
>>> jax.eval_shape(lambda key, state: attack.reconstruct(key, state, 5), jax.random.key(1), state.attack).shape
(5, 32, 32, 1)
"""
