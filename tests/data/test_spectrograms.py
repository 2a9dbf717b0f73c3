"""Spectrograms show the sound that they are made from, and the sound that is made from them has that spectrogram."""

import io
import wave

import numpy as np
import pytest
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from gan_leak.data import Spectrogram, load, log_mel_spectrogram, wav_bytes, waveform_of
from gan_leak.data.spectrograms import checked_spectrogram, sample_count

SIZE = 32
SPEECH = Spectrogram(8000, 256, 125, 50.0, 4000.0, 60.0)
MUSIC = Spectrogram(16_000, 512, 128, 0.0, 8000.0, 80.0)
KINDS = pytest.mark.parametrize("spectrogram", [SPEECH, MUSIC], ids=["speech", "music"])


def _seconds(spectrogram):
    return np.arange(sample_count(spectrogram, SIZE)) / spectrogram.sample_rate


def _tone(spectrogram, hertz):
    return np.sin(2 * np.pi * hertz * _seconds(spectrogram))


def _vowels(spectrogram):
    """A voice: harmonics of a gliding pitch under a moving formant, louder and softer."""
    time = _seconds(spectrogram)
    length = time[-1]
    pitch = 120 + 60 * time / length
    formant = 500 + 1500 * time / length
    tones = [np.exp(-(((k * pitch - formant) / 400) ** 2)) * np.sin(2 * np.pi * k * pitch * time) for k in range(1, 25)]
    return np.sum(tones, axis=0) * np.sin(np.pi * time / length)


def _band_centers(spectrogram):
    def mel(hertz):
        return 2595 * np.log10(1 + hertz / 700)

    ends = mel(np.array([spectrogram.lowest_frequency, spectrogram.highest_frequency]))
    mels = np.linspace(*ends, SIZE + 2)[1:-1]
    return 700 * (10 ** (mels / 2595) - 1)


@KINDS
@pytest.mark.parametrize("hertz", [300.0, 1000.0, 3000.0])
def test_a_tone_lights_the_row_of_its_frequency(spectrogram, hertz):
    image = log_mel_spectrogram(_tone(spectrogram, hertz), spectrogram, SIZE)
    assert image.shape == (SIZE, SIZE, 1)
    assert image.dtype == np.uint8
    assert image.max() == 255
    row = np.argmin(np.abs(_band_centers(spectrogram)[::-1] - hertz))
    assert np.abs(image[:, 8:-8, 0].mean(axis=1).argmax() - row) <= 1
    assert image[:, 16, 0].mean() < 60


def test_ten_times_less_power_is_ten_decibels_less():
    """A tone whose second half has a tenth of the power."""
    tone = _tone(SPEECH, 1000.0)
    tone[len(tone) // 2 :] *= np.sqrt(0.1)
    image = log_mel_spectrogram(tone, SPEECH, SIZE).max(axis=0)[:, 0].astype(int)
    assert image[4:12].mean() - image[20:28].mean() == pytest.approx(255 * 10 / SPEECH.decibels, abs=2)


def test_the_loudness_of_the_whole_does_not_matter_and_silence_is_black():
    sound = _vowels(SPEECH)
    np.testing.assert_array_equal(
        log_mel_spectrogram(sound, SPEECH, SIZE), log_mel_spectrogram(0.001 * sound, SPEECH, SIZE)
    )
    assert not log_mel_spectrogram(np.zeros(100), SPEECH, SIZE).any()


def test_short_sound_ends_in_silence_and_long_sound_is_cut():
    sound = _vowels(SPEECH)
    short = log_mel_spectrogram(_tone(SPEECH, 1000.0)[:1000], SPEECH, SIZE)
    assert not short[:, 12:].any()
    longer = np.concatenate([sound, np.ones(5000)])
    np.testing.assert_array_equal(log_mel_spectrogram(longer, SPEECH, SIZE), log_mel_spectrogram(sound, SPEECH, SIZE))


@KINDS
def test_sound_of_a_spectrogram_has_that_spectrogram(spectrogram):
    """Noise has another one, and so has the sound of the spectrogram played backwards."""
    image = log_mel_spectrogram(_vowels(spectrogram), spectrogram, SIZE)
    waveform = waveform_of(image, spectrogram)
    assert waveform.shape == _seconds(spectrogram).shape
    assert waveform.dtype == np.float32
    assert np.abs(waveform).max() <= 1

    def resemblance(sound):
        return np.corrcoef(log_mel_spectrogram(sound, spectrogram, SIZE).ravel(), image.ravel())[0, 1]

    assert resemblance(waveform) > 0.9
    assert resemblance(waveform[::-1]) < 0.7
    assert resemblance(np.random.default_rng(0).normal(size=len(waveform))) < 0.7


def test_found_phases_fit_together():
    """The sound of random phases is weaker than the magnitudes say, since overlapping frames contradict each other."""
    image = log_mel_spectrogram(_vowels(SPEECH), SPEECH, SIZE)
    transform = ShortTimeFFT(hann(SPEECH.window, sym=False), SPEECH.hop, SPEECH.sample_rate, scale_to="magnitude")
    waveform = waveform_of(image, SPEECH)
    frames = np.abs(transform.stft(waveform))
    mixed = frames * np.exp(1j * np.random.default_rng(0).uniform(-np.pi, np.pi, frames.shape))
    random = transform.istft(mixed, k1=len(waveform))

    def error(sound):
        return np.linalg.norm(np.abs(transform.stft(sound)) - frames) / np.linalg.norm(frames)

    assert error(waveform) < 1e-6 < 0.3 < error(random)


def test_a_dark_picture_is_a_quiet_sound():
    assert np.abs(waveform_of(np.zeros((SIZE, SIZE, 1), np.uint8), SPEECH)).max() < 0.1


def test_a_wav_file_holds_the_waveform():
    waveform = np.array([0.0, 0.5, -1.0, 2.0])
    with wave.open(io.BytesIO(wav_bytes(waveform, 8000))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (8000, 1, 2, 4)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 16_384, -32_767, 32_767]


# Files


def _save(path, size=SIZE, channels=(), **changes):
    images = np.random.default_rng(0).integers(0, 255, (20, size, size, *channels), np.uint8)
    arrays = {"images": images, "labels": np.repeat([0, 1], 10), **SPEECH._asdict(), **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return f"npz:{path}"


def test_an_npz_file_tells_how_its_spectrograms_were_made(tmp_path):
    told = load(_save(tmp_path / "told.npz"))
    assert told.spectrogram == SPEECH
    plain = load(_save(tmp_path / "plain.npz", **dict.fromkeys(SPEECH._fields)))
    assert plain.spectrogram is None
    assert plain.fingerprint == told.fingerprint
    assert load("mnist").spectrogram is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop": None}, "hop is missing, expected all of sample_rate, window, hop"),
        ({"hop": 200}, "hop=200: expected 16 to 128 samples with window=256"),
        ({"hop": 15}, "hop=15: expected 16 to 128"),
        ({"hop": 20.5}, "hop=20.5: expected an integer"),
        ({"hop": np.nan}, "hop=nan: expected an integer"),
        ({"window": np.inf}, "window=inf: expected an integer"),
        ({"window": 10**9}, "window=1000000000: expected 4 to 65536"),
        ({"sample_rate": 0}, "sample_rate=0: expected 1 to"),
        ({"highest_frequency": 4001.0}, "highest_frequency=4001: expected 0 <= lowest < highest <= 4000 Hz"),
        ({"lowest_frequency": 4000.0}, "lowest_frequency=4000"),
        ({"lowest_frequency": np.nan}, "lowest_frequency=nan"),
        ({"decibels": 0.0}, "decibels=0: expected more than 0"),
        ({"decibels": np.nan}, "decibels=nan"),
        ({"decibels": np.array([60.0])}, r"decibels is float64 \[1\], expected one number"),
        ({"decibels": "60"}, "decibels is <U2"),
        ({"size": 40}, r"spectrograms are \[40, 40\], expected \[32, 32\]: they cannot be resized"),
        ({"channels": (3,)}, r"spectrograms are \[32, 32, 3\]"),
    ],
)
def test_impossible_spectrograms_are_refused_with_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        load(_save(tmp_path / "bad.npz", **changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("window", [4, 5, 30, 256, 511])
@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("hop_at", [0.0, 1.0])
def test_every_spectrogram_that_is_accepted_can_be_made_and_played(window, size, hop_at):
    least, most = -(-2 * window // size), window // 2
    hop = round(least + hop_at * (most - least))
    values = {**SPEECH._asdict(), "window": window, "hop": hop}
    spectrogram = checked_spectrogram(values, size)
    sound = np.random.default_rng(0).normal(size=4000)
    image = log_mel_spectrogram(sound, spectrogram, size)
    assert image.shape == (size, size, 1)
    assert np.isfinite(waveform_of(image, spectrogram)).all()
