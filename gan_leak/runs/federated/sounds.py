"""The sound of reconstructed spectrograms."""

from __future__ import annotations

import numpy as np

from gan_leak.data import Spectrogram, to_uint8, wav_bytes, waveform_of
from gan_leak.evaluation.fidelity import nearest_by_l1

_MOST_PLAYED = 3


def sounds_of(reconstructions: np.ndarray, private: np.ndarray, spectrogram: Spectrogram) -> dict[str, bytes]:
    """The first reconstructions [M, S, S, 1] and the private images [N, S, S, 1] nearest in L1, as WAV by caption."""
    drawn = reconstructions[:_MOST_PLAYED]
    nearest, _ = nearest_by_l1(drawn, private)
    images: dict[str, np.ndarray] = {}
    for number, (image, near) in enumerate(zip(drawn, private[nearest], strict=True), start=1):
        images |= {f"Reconstruction {number}": image, f"Private image nearest to {number}": near}
    # The generator of a run that diverged may draw NaN.
    return {
        caption: wav_bytes(waveform_of(to_uint8(np.nan_to_num(image)), spectrogram), spectrogram.sample_rate)
        for caption, image in images.items()
    }
