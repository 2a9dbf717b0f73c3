"""Attacks on a trained model.

>>> import jax
>>> from gan_leak import InversionTarget, ModelView, mlp_classifier, model_inversion, run_procedure
>>> classifier = mlp_classifier(3, image_size=4, hidden=())
>>> view = ModelView(classifier.init(jax.random.key(0)))
>>> target = InversionTarget(view, target_class=2, start=jax.numpy.zeros((4, 4, 1)))
>>> image, info = run_procedure(jax.random.key(1), model_inversion(classifier), target, 20)
>>> image.shape, bool(info.confidence > 1 / 3)
((4, 4, 1), True)
"""
