"""Attacks on the features of split inference. Each is a ``Procedure``.

>>> import jax
>>> from gan_leak import Model, SplitView, TrainingData, mlp_classifier, run_procedure
>>> from gan_leak import inverse_network, reconstructed_model, regularized_likelihood, shadow_model
>>> client = mlp_classifier(8, image_size=4, hidden=())
>>> params = client.init(jax.random.key(0))
>>> images = jax.random.uniform(jax.random.key(1), (8, 4, 4, 1))
>>> features = client.apply(params, images)

White box: descent searches for the input with these features.

>>> search = regularized_likelihood(client, (4, 4, 1), learning_rate=0.1)
>>> run_procedure(jax.random.key(2), search, SplitView(features[0], params), 2).shape
(4, 4, 1)

Black box: a decoder learns the inverse from the features of the adversary's own images.

>>> flat = mlp_classifier(16, image_size=2, channels=2, hidden=())
>>> decoder = Model(
...     flat.init, lambda weights, features: flat.apply(weights, features.reshape(-1, 2, 2, 2)).reshape(-1, 4, 4, 1)
... )
>>> training = inverse_network(decoder, samples=8, batch_size=4)
>>> weights = run_procedure(jax.random.key(3), training, TrainingData((images, features)), 1)
>>> decoder.apply(weights, features).shape
(8, 4, 4, 1)

The same adversary may instead train the client's layers from its answers, and search as in the white box:

>>> training = reconstructed_model(client, samples=8, batch_size=4)
>>> weights = run_procedure(jax.random.key(5), training, TrainingData((images, features)), 1)
>>> run_procedure(jax.random.key(6), search, SplitView(features[0], weights), 2).shape
(4, 4, 1)

Query free: the adversary trains its own layers to feed the cloud's layers, which it knows.

>>> cloud = Model(lambda key: {}, lambda weights, features: features[:, :3])
>>> training = shadow_model(client, cloud, samples=8, batch_size=4)
>>> data = TrainingData((images, jax.numpy.zeros(8, int)), context={})
>>> weights = run_procedure(jax.random.key(4), training, data, 1)
>>> client.apply(weights, images).shape
(8, 8)
"""
