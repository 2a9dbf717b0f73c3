"""Attacks on the features of split inference.

>>> import jax
>>> from gan_leak import Model, SplitView, inverse_network, mlp_classifier, regularised_likelihood, shadow_model
>>> client = mlp_classifier(8, image_size=4, hidden=())
>>> params = client.init(jax.random.key(0))
>>> images = jax.random.uniform(jax.random.key(1), (8, 4, 4, 1))
>>> features = client.apply(params, images)

White box: the input that has the features is sought by descent.

>>> search = regularised_likelihood(client, (4, 4, 1), learning_rate=0.1)
>>> position, before = search.step(search.start(), SplitView(features[0], params))
>>> position, after = search.step(position, SplitView(features[0], params))
>>> bool(after < before), position.values.shape
(True, (4, 4, 1))

Black box: a decoder learns the way back from the features of the adversary's own images.

>>> flat = mlp_classifier(16, image_size=2, channels=2, hidden=())
>>> decoder = Model(
...     flat.init, lambda weights, features: flat.apply(weights, features.reshape(-1, 2, 2, 2)).reshape(-1, 4, 4, 1)
... )
>>> training = inverse_network(decoder, samples=8, batch_size=4)
>>> position, loss = training.epoch(training.start(jax.random.key(2)), jax.random.key(3), (images, features))
>>> decoder.apply(position.values, features).shape
(8, 4, 4, 1)

Query free: layers of the adversary's own learn to feed the cloud's, which it knows.

>>> cloud = Model(lambda key: {}, lambda weights, features: features[:, :3])
>>> training = shadow_model(client, cloud, {}, samples=8, batch_size=4)
>>> labels = jax.numpy.zeros(8, int)
>>> position, loss = training.epoch(training.start(jax.random.key(2)), jax.random.key(3), (images, labels))
>>> loss.shape
()
"""
