"""Sound as images: log-mel spectrograms, and sound that has a given spectrogram."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy.signal import ShortTimeFFT

# The difference to the wanted spectrogram hardly falls after this many steps.
_PHASE_STEPS = 60
# Relative to a full tone: below all that a file of 32 bits can hold.
_SILENCE = 1e-20


class Spectrogram(NamedTuple):
    """How sound was made into images uint8 [S, S, 1], see ``log_mel_spectrogram``.

    sample_rate: in Hz. window, hop: samples in a frame, and from one frame to the next. lowest_frequency,
    highest_frequency: the ends of the mel scale, in Hz. decibels: how far the level of byte 0 is below that of 255.
    """

    sample_rate: int
    window: int
    hop: int
    lowest_frequency: float
    highest_frequency: float
    decibels: float


def checked_spectrogram(values: Mapping[str, float], size: int) -> Spectrogram:
    """The parameters of images [size, size, 1], by name. Raises ValueError for a missing or impossible one."""
    missing = [name for name in Spectrogram._fields if name not in values]
    if missing:
        raise ValueError(f"{missing[0]} is missing, expected all of {', '.join(Spectrogram._fields)} or none")
    for name in ("sample_rate", "window", "hop"):
        if not float(values[name]).is_integer():
            raise ValueError(f"{name}={values[name]}: expected an integer")
    rate, window, hop = int(values["sample_rate"]), int(values["window"]), int(values["hop"])
    low, high, decibels = (float(values[name]) for name in Spectrogram._fields[3:])
    if not 1 <= rate <= 1_000_000:
        raise ValueError(f"sample_rate={rate}: expected 1 to 1000000 Hz")
    if not 4 <= window <= 65_536:
        raise ValueError(f"window={window}: expected 4 to 65536 samples")
    least = -(-2 * window // size)
    if not least <= hop <= window // 2:
        raise ValueError(f"hop={hop}: expected {least} to {window // 2} samples with window={window}")
    if not 0 <= low < high <= rate / 2:
        raise ValueError(
            f"lowest_frequency={low:g} and highest_frequency={high:g}: expected 0 <= lowest < highest <= {rate / 2:g} "
            "Hz, half of the sample rate"
        )
    if not 0 < decibels <= 200:
        raise ValueError(f"decibels={decibels:g}: expected more than 0 and at most 200")
    return Spectrogram(rate, window, hop, low, high, decibels)


def sample_count(spectrogram: Spectrogram, frames: int) -> int:
    """The samples of the longest sound with so many frames."""
    transform = _transform(spectrogram)
    return (frames + transform.p_min) * spectrogram.hop - transform.m_num_mid + 1


def log_mel_spectrogram(waveform: np.ndarray, spectrogram: Spectrogram, size: int) -> np.ndarray:
    """A waveform [T] as an image uint8 [size, size, 1]: bands of the mel scale by frames under a Hann window.

    The highest band is the top row, and the loudest point of a sound is 255. Shorter sound is followed by silence, and
    longer sound is cut. An npz data set that has the fields of ``spectrogram`` beside its images can be played.

    >>> half_a_second = Spectrogram(8000, 256, 125, lowest_frequency=0, highest_frequency=4000, decibels=80)
    >>> sounds = [np.random.default_rng(digit).normal(size=3748) for digit in range(10)]
    >>> images = np.stack([log_mel_spectrogram(sound, half_a_second, 32) for sound in sounds])
    >>> images.shape
    (10, 32, 32, 1)
    """
    count = sample_count(spectrogram, size)
    padded = np.zeros(count)
    padded[: len(waveform)] = waveform[:count]
    power = np.abs(_transform(spectrogram).stft(padded)) ** 2
    levels = 10 * np.log10(np.maximum(_bands(spectrogram, size) @ power / _SILENCE, 1))
    scaled = 255 * (1 + (levels - max(levels.max(), spectrogram.decibels)) / spectrogram.decibels)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)[::-1, :, None]


def waveform_of(image: np.ndarray, spectrogram: Spectrogram) -> np.ndarray:
    """Sound float32 [T] in [-1, 1] whose ``log_mel_spectrogram`` resembles an image uint8 [S, S, 1].

    A spectrogram has neither phases nor single frequencies. Levels between bands are interpolated, and phases are found
    by alternating projections (Griffin and Lim 1984).
    """
    size = len(image)
    transform, count = _transform(spectrogram), sample_count(spectrogram, size)
    levels = (image[::-1, :, 0] / 255 - 1) * spectrogram.decibels
    centers = _band_edges(spectrogram, size)[1:-1]
    magnitude = np.stack([10 ** (np.interp(transform.f, centers, frame) / 20) for frame in levels.T], axis=1)
    magnitude[(transform.f < spectrogram.lowest_frequency) | (transform.f > spectrogram.highest_frequency)] = 0
    phase = np.random.default_rng(0).uniform(-np.pi, np.pi, magnitude.shape)
    for _ in range(_PHASE_STEPS):
        waveform = transform.istft(magnitude * np.exp(1j * phase), k1=count)
        phase = np.angle(transform.stft(waveform))
    waveform = transform.istft(magnitude * np.exp(1j * phase), k1=count)
    # A dark image is a quiet sound.
    return (waveform / max(1.0, np.abs(waveform).max())).astype(np.float32)


def wav_bytes(waveform: np.ndarray, sample_rate: int) -> bytes:
    """A waveform [T] in [-1, 1] as the bytes of a WAV file of 16 bits; sample_rate in Hz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(np.rint(32_767 * np.clip(waveform, -1, 1)).astype("<i2").tobytes())
    return file.getvalue()


def _transform(spectrogram: Spectrogram) -> ShortTimeFFT:
    # Every binary imports this module, and the import of scipy.signal takes as long as that of jax.
    from scipy.signal import ShortTimeFFT
    from scipy.signal.windows import hann

    window = hann(spectrogram.window, sym=False)
    return ShortTimeFFT(window, spectrogram.hop, spectrogram.sample_rate, scale_to="magnitude")


def _band_edges(spectrogram: Spectrogram, bands: int) -> np.ndarray:
    """The centers of the bands in Hz, equally far apart on the mel scale, and the ends of the scale [bands + 2]."""
    low, high = (np.log1p(end / 700) for end in (spectrogram.lowest_frequency, spectrogram.highest_frequency))
    return 700 * np.expm1(np.linspace(low, high, bands + 2))


def _bands(spectrogram: Spectrogram, bands: int) -> np.ndarray:
    """Triangular filters [bands, F], each with sum 1; none is narrower than the spacing of the frequencies."""
    frequencies, edges = _transform(spectrogram).f, _band_edges(spectrogram, bands)
    spacing = frequencies[1]
    below, center, above = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - np.minimum(below, center - spacing)) / np.maximum(center - below, spacing)
    falling = (np.maximum(above, center + spacing) - frequencies) / np.maximum(above - center, spacing)
    filters = np.maximum(np.minimum(rising, falling), 0)
    return filters / filters.sum(axis=1, keepdims=True)
