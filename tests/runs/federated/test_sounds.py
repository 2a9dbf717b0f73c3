"""Reconstructed spectrograms become sound, each beside the nearest private one."""

import numpy as np

from gan_leak.data import Spectrogram, to_uint8, wav_bytes, waveform_of
from gan_leak.runs.federated import train
from gan_leak.runs.federated.sounds import sounds_of
from reference.quick import small_run, use_linear_networks, write_stripes

SPEECH = Spectrogram(8000, 256, 125, 50.0, 4000.0, 60.0)


def _sound(image):
    return wav_bytes(waveform_of(to_uint8(image), SPEECH), 8000)


def test_three_reconstructions_are_played_with_the_private_images_nearest_to_them():
    images = np.random.default_rng(0).uniform(-1, 1, (5, 32, 32, 1)).astype(np.float32)
    private = images[::-1] * np.float32(0.9)
    sounds = sounds_of(images, private, SPEECH)
    assert list(sounds) == [
        f"{kind} {number}" for number in (1, 2, 3) for kind in ("Reconstruction", "Private image nearest to")
    ]
    for number in (1, 2, 3):
        assert sounds[f"Reconstruction {number}"] == _sound(images[number - 1])
        assert sounds[f"Private image nearest to {number}"] == _sound(np.float32(0.9) * images[number - 1])


def test_a_picture_that_is_not_finite_is_played_all_the_same():
    images = np.full((1, 32, 32, 1), np.nan, np.float32)
    assert len(sounds_of(images, np.zeros((2, 32, 32, 1), np.float32), SPEECH)) == 2


def test_a_run_on_spectrograms_returns_sounds_and_one_on_pictures_none(tmp_path, monkeypatch):
    use_linear_networks(monkeypatch)
    pictures = write_stripes(tmp_path / "pictures.npz")
    spectrograms = tmp_path / "spectrograms.npz"
    np.savez(spectrograms, **np.load(pictures), **SPEECH._asdict())
    results = {}
    for path in (pictures, spectrograms):
        config = small_run(path, rounds=1, evaluation_interval=1)
        prepared = train.prepare(config, tmp_path / path.stem, False)
        results[path] = train.train(prepared)
        train.close(prepared)
    plain, heard = results[pictures], results[spectrograms]
    assert plain.sounds == {}
    assert heard.sounds == sounds_of(heard.images_by_round[1], heard.private, SPEECH)
    # Whether it can be played changes nothing else.
    np.testing.assert_array_equal(plain.images_by_round[1], heard.images_by_round[1])
    assert plain.fingerprint == heard.fingerprint
