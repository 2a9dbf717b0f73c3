"""What the defences promise over a whole run, as (epsilon, delta); numbers on the host, nothing traced.

``dp-accounting`` is loaded by the first function that needs it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gan_leak.collaboration.selection import fraction_to_count

ADD_OR_REMOVE_ONE = "add or remove one"
# With less noise, epsilon is in the thousands for a single step and the accountants overflow.
LEAST_NOISE_MULTIPLIER = 0.01
BOUNDED_UPDATES = "updates that differ by at most the sensitivity in every coordinate"


class PrivacyLoss(NamedTuple):
    """An (epsilon, delta) promise: of which mechanism, for which neighbouring inputs, computed how.

    unit: what two neighbouring inputs differ in. cross_check: epsilon at the same delta by a second, looser method, or
    None where ``method`` is a closed form.
    """

    epsilon: float
    delta: float
    unit: str
    neighbouring_relation: str
    method: str
    cross_check: float | None = None


def sparse_vector_epsilon(
    epsilon_per_release: float, upload_fraction: float, coordinates: int, uploads: int = 1
) -> PrivacyLoss:
    """The pure-DP total of the sparse vector technique over ``uploads`` uploads of one participant.

    One upload releases at most ``c = fraction_to_count(upload_fraction, coordinates)`` coordinates, each with the
    budget ``epsilon_per_release``, and costs ``c * epsilon_per_release`` (Dwork and Roth 2014, Theorem 3.27; the
    epsilon per epoch of Shokri and Shmatikov 2015); uploads add up (McSherry 2009). A participant uploads once a round.
    The neighbours are two updates that differ by at most the sensitivity in every coordinate: whether two data sets
    that differ in a record, or altogether, are such neighbours is for the bound on the update to ensure, not for this
    sum.

    Raises ValueError for an epsilon or a fraction not above 0, a fraction above 1 and counts below 1 or 0.
    """
    _check_positive("epsilon_per_release", epsilon_per_release, or_infinite=True)
    if not 0.0 < upload_fraction <= 1.0:
        raise ValueError(f"upload_fraction={upload_fraction}: expected a number in (0, 1]")
    _check_count("coordinates", coordinates, 1)
    _check_count("uploads", uploads, 0)
    most_releases = int(fraction_to_count(upload_fraction, coordinates))
    epsilon = epsilon_per_release * most_releases * uploads if uploads else 0.0
    return PrivacyLoss(epsilon, 0.0, "update", BOUNDED_UPDATES, "sequential composition of releases")


def sparse_vector_charged(epsilon_per_release: float, releases: int) -> float:
    """What was charged for the releases that were made: ``epsilon_per_release * releases``, as the sources count.

    A figure to compare runs by, not a promise: it depends on the data, and a search that ends without a release has
    answered its queries all the same, for up to one further ``epsilon_per_release``. The promise is
    ``sparse_vector_epsilon``.

    Raises ValueError for an epsilon not above 0 and for releases below 0.
    """
    _check_positive("epsilon_per_release", epsilon_per_release, or_infinite=True)
    _check_count("releases", releases, 0)
    return epsilon_per_release * releases if releases else 0.0


def dp_sgd_schedule(samples: int, batch_size: int, epochs: int) -> tuple[float, int]:
    """The sampling probability and the number of steps of ``dp_sgd`` over ``epochs`` epochs, all rounds together.

    Raises ValueError for a batch size below 1 and for negative samples or epochs.
    """
    _check_count("samples", samples, 0)
    _check_count("batch_size", batch_size, 1)
    _check_count("epochs", epochs, 0)
    return min(1.0, batch_size / max(samples, 1)), epochs * -(-samples // batch_size)


def dp_sgd_epsilon(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> PrivacyLoss:
    """The epsilon of DP-SGD after ``steps`` steps: the Poisson-subsampled Gaussian mechanism, composed.

    Per record, under adding or removing one, with noise of ``noise_multiplier`` times the clipping norm on the sum of
    the clipped gradients. By privacy loss distributions (PLD), rounded so that it is an upper bound; ``cross_check`` is
    the epsilon by Renyi differential privacy (RDP) at integer orders. Infinite without noise and, as
    a bound, with a noise multiplier below 0.01; 0 without steps.

    Raises ValueError for a negative or infinite noise multiplier, a sampling probability not in (0, 1], negative steps
    and a delta not in (0, 1).
    """
    if not 0.0 <= noise_multiplier < math.inf:
        raise ValueError(f"noise_multiplier={noise_multiplier}: expected a finite number of at least 0")
    _check_sampling(sampling_probability, steps, delta)
    if steps == 0:
        epsilon = cross_check = 0.0
    elif noise_multiplier < LEAST_NOISE_MULTIPLIER:
        epsilon = cross_check = math.inf
    else:
        epsilon = _pld_epsilon(noise_multiplier, sampling_probability, steps, delta)
        cross_check = _rdp_epsilon(noise_multiplier, sampling_probability, steps, delta)
    return PrivacyLoss(epsilon, delta, "record", ADD_OR_REMOVE_ONE, "PLD, cross-checked by RDP", cross_check)


def noise_multiplier_for(epsilon: float, delta: float, sampling_probability: float, steps: int) -> float:
    """The least noise multiplier with which ``steps`` steps of DP-SGD cost at most ``epsilon``.

    The inverse of ``dp_sgd_epsilon``, of the same mechanism, unit and relation, to about three digits (both round to
    the safe side, on grids of their own); at least 0.01, and 0 without steps.

    Raises ValueError as it does, for an epsilon that is not a finite number above 0, and for a delta of at least the
    probability that a given record is ever drawn: with such a delta, publishing every drawn record would pass as
    private.
    """
    _check_positive("epsilon", epsilon)
    _check_sampling(sampling_probability, steps, delta)
    if steps == 0:
        return 0.0
    ever_drawn = -math.expm1(steps * math.log1p(-sampling_probability)) if sampling_probability < 1 else 1.0
    if delta >= ever_drawn:
        raise ValueError(
            f"delta={delta}: expected below {ever_drawn:.3g}, the probability that a given record is ever drawn"
        )
    too_little, enough = _bracket_noise_multiplier(epsilon, delta, sampling_probability, steps)
    if too_little == enough:
        return enough

    import dp_accounting

    return dp_accounting.calibrate_dp_mechanism(
        lambda: _pld_accountant(too_little, epsilon),
        lambda noise_multiplier: _dp_sgd_event(noise_multiplier, sampling_probability, steps),
        epsilon,
        delta,
        dp_accounting.ExplicitBracketInterval(too_little, enough),
        tol=1e-4 * too_little,
    )


def _bracket_noise_multiplier(
    epsilon: float, delta: float, sampling_probability: float, steps: int
) -> tuple[float, float]:
    """Two noise multipliers with the sought one between them; the least of all, twice, where that is enough."""
    enough = 1.0
    while _pld_epsilon(enough, sampling_probability, steps, delta) > epsilon:
        enough *= 2.0
    too_little = enough
    while _pld_epsilon(too_little, sampling_probability, steps, delta) <= epsilon:
        if too_little == LEAST_NOISE_MULTIPLIER:
            return too_little, too_little
        enough, too_little = too_little, max(too_little / 2.0, LEAST_NOISE_MULTIPLIER)
    return too_little, enough


def _check_positive(name: str, value: float, *, or_infinite: bool = False) -> None:
    if not (0.0 < value < math.inf or (or_infinite and value == math.inf)):
        raise ValueError(f"{name}={value}: expected a {'' if or_infinite else 'finite '}number above 0")


def _check_count(name: str, value: int, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name}={value}: expected at least {least}")


def _check_sampling(sampling_probability: float, steps: int, delta: float) -> None:
    if not 0.0 < sampling_probability <= 1.0:
        raise ValueError(f"sampling_probability={sampling_probability}: expected a number in (0, 1]")
    _check_count("steps", steps, 0)
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta={delta}: expected a number above 0 and below 1")


def _dp_sgd_event(noise_multiplier: float, sampling_probability: float, steps: int) -> Any:
    import dp_accounting

    step = dp_accounting.PoissonSampledDpEvent(sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier))
    return dp_accounting.SelfComposedDpEvent(step, steps)


def _pld_accountant(noise_multiplier: float, epsilon: float) -> Any:
    """A PLD accountant whose grid suits privacy losses of the size of ``epsilon``.

    A distribution on a grid of the usual 1e-4 needs gigabytes where losses are in the thousands, as they are with
    little noise. Losses are rounded up: a coarser grid loosens the bound, never breaks it.
    """
    from dp_accounting import pld

    interval = max(1e-4, 1e-5 * max(epsilon, noise_multiplier**-2))
    return pld.PLDAccountant(value_discretization_interval=interval)


def _pld_epsilon(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> float:
    # RDP overestimates, by more than ten times where there is little noise.
    rough = _rdp_epsilon(noise_multiplier, sampling_probability, steps, delta) / 10.0
    accountant = _pld_accountant(noise_multiplier, rough)
    accountant.compose(_dp_sgd_event(noise_multiplier, sampling_probability, steps))
    return float(accountant.get_epsilon(delta))


def _rdp_epsilon(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> float:
    from dp_accounting import rdp

    # Integer orders have a closed form; the series for the others warns where it fails to converge.
    accountant = rdp.RdpAccountant(orders=[*range(2, 65), 128, 256, 512, 1024])
    accountant.compose(_dp_sgd_event(noise_multiplier, sampling_probability, steps))
    return float(accountant.get_epsilon(delta))
