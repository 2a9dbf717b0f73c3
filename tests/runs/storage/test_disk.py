"""A disk that refuses: one line that names the file, and what is on it resumes to the same bits."""

import errno
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from gan_leak.runs.federated import train
from gan_leak.runs.storage import checkpoints
from gan_leak.runs.storage.directory import write_atomic
from gan_leak.runs.storage.disk import name_in_errors, refusal
from reference.quick import small_run
from reference.whole_run import measured, run


def limited(function, size, from_call=1):
    """The function, in which from that call on no file may become larger than ``size`` bytes."""
    calls = []

    def call(*arguments, **options):
        calls.append(1)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(calls) >= from_call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            return function(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return call


def results(workdir):
    return (workdir / "reconstructions.npz").read_bytes(), measured(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "size", "from_call", "file"),
    [
        (train, "append_metrics", 900, 2, "metrics.jsonl"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (checkpoints, "save", 3000, 1, "round_000002"),
                (checkpoints, "save", 3000, 2, "round_000004"),
                (train, "write_atomic", 100, 1, "round_000002.npz"),
            )
        ),
    ],
)
def test_a_run_whose_disk_is_full_resumes_to_the_same_bits(
    stripes, tmp_path, monkeypatch, linear_networks, caplog, module, name, size, from_call, file
):
    config = small_run(stripes, checkpoint_interval=2)
    run(config, tmp_path / "whole")
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, name, limited(getattr(module, name), size, from_call))
        with pytest.raises(OSError, match="File too large") as caught:
            run(config, tmp_path / "parts")
    assert refusal(caught.value).startswith("File too large: ")
    assert refusal(caught.value).endswith(file)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    assert not list(tmp_path.glob("parts/checkpoints/*.orbax-checkpoint-tmp*"))
    if name == "append_metrics":
        assert not (tmp_path / "parts" / "metrics.jsonl").read_bytes().endswith(b"\n")
    run(config, tmp_path / "parts", resume=True)
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    state = {"values": jnp.asarray(np.random.default_rng(0).normal(size=10_000), jnp.float32)}
    checkpoints.save(tmp_path, 1, state)
    with pytest.raises(OSError, match="round_000002") as caught:
        limited(checkpoints.save, 5000)(tmp_path, 2, state)
    assert caught.value.errno == errno.EFBIG
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_000001", "round_000001.sha256"]
    restored = checkpoints.restore_latest(tmp_path, state)
    assert (restored.round, restored.skipped) == (1, ())
    np.testing.assert_array_equal(restored.state["values"], state["values"])


def test_a_file_that_does_not_fit_is_named_and_the_old_one_stays(tmp_path):
    write_atomic(tmp_path / "results.json", b"old")
    with pytest.raises(OSError, match=r"results\.json"):
        limited(write_atomic, 100)(tmp_path / "results.json", bytes(1000))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_only_what_the_disk_refuses_is_its_refusal(tmp_path):
    assert refusal(OSError(errno.ENOSPC, "No space left on device", "a.npz")) == "No space left on device: a.npz"
    assert refusal(OSError(errno.EROFS, "Read-only file system")) == "Read-only file system"
    assert refusal(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npz")) is None
    assert refusal(ValueError("No space left on device")) is None
    with pytest.raises(ValueError, match="another"), name_in_errors(tmp_path):
        raise ValueError("another")
    with pytest.raises(OSError, match="own") as caught, name_in_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "own")
    assert caught.value.filename == "own"
