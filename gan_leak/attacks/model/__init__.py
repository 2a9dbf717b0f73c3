"""Attacks on a trained model.

>>> import jax
>>> from gan_leak import ModelView, mlp_classifier, model_inversion
>>> classifier = mlp_classifier(3, image_size=4, hidden=())
>>> view = ModelView(classifier.init(jax.random.key(0)))
>>> start = jax.numpy.zeros((4, 4, 1))
>>> image, info = model_inversion(view, classifier, target_class=2, start=start, steps=20)
>>> image.shape, bool(info.confidence > 1 / 3)
((4, 4, 1), True)
"""
