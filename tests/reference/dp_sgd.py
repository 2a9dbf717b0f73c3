"""DP-SGD and its accounting in plain loops, from the papers.

Abadi et al. 2016, Algorithm 1: one example at a time, the lot handed in as it was drawn. Balle and Wang 2018, Theorem
8: the exact Gaussian mechanism. Mironov, Talwar and Zhang 2019, section 3.3: the Renyi divergence of the subsampled
Gaussian at integer orders, with the conversion of Mironov 2017, Proposition 3.
"""

import math

import numpy as np
import scipy.optimize
import scipy.stats

from reference.federation import loss_and_gradient


def clipped_sum(params, images, labels, lot, clipping_norm, classes):
    """The sum over the lot of the gradients of a linear softmax classifier, each scaled down to the clipping norm."""
    total = np.zeros(len(params))
    for index in lot:
        _, gradient = loss_and_gradient(params, [images[index]], [labels[index]], classes)
        norm = math.sqrt(sum(value * value for value in gradient))
        total += gradient / max(1.0, norm / clipping_norm)
    return total


def gaussian_epsilon(noise_multiplier, steps, delta):
    """The exact epsilon of ``steps`` Gaussian mechanisms of sensitivity 1, which are one of mean sqrt(steps) / z."""
    mean = math.sqrt(steps) / noise_multiplier

    def excess(epsilon):
        normal = scipy.stats.norm
        upper = normal.cdf(mean / 2 - epsilon / mean)
        return upper - math.exp(epsilon + normal.logcdf(-mean / 2 - epsilon / mean)) - delta

    return scipy.optimize.brentq(excess, 0.0, mean * (mean / 2 + 40), xtol=1e-10)


def classical_rdp_epsilon(noise_multiplier, probability, steps, delta):
    """The epsilon that the moments accountant reported: Renyi divergences at orders 2 to 64, the simple conversion."""

    def divergence(order):
        terms = [
            math.log(math.comb(order, k))
            + (order - k) * math.log1p(-probability)
            + k * math.log(probability)
            + (k * k - k) / (2 * noise_multiplier**2)
            for k in range(order + 1)
        ]
        largest = max(terms)
        return (largest + math.log(sum(math.exp(term - largest) for term in terms))) / (order - 1)

    return min(steps * divergence(order) + math.log(1 / delta) / (order - 1) for order in range(2, 65))
