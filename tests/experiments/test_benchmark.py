"""The benchmark's table says what was timed, its PyTorch baselines do the same work, and bad input is one line."""

import contextlib
import functools
import json
import pathlib
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmark import BenchmarkConfig
from experiments.benchmarks import cases as benchmark_cases
from experiments.benchmarks import commands as benchmark_commands
from experiments.benchmarks import inversions as benchmark_inversions
from experiments.benchmarks import rows as benchmark_rows
from experiments.benchmarks import torch_baselines
from experiments.benchmarks.cases import Case
from gan_leak.attacks.gradient.observation import gradient_of
from gan_leak.models import classifier_for, dcgan_generator
from gan_leak.models.gradient_networks import dlg_lenet
from gan_leak.models.grnn_generator import grnn_generator
from gan_leak.performance import PerformanceOptions
from gan_leak.runs import timing
from reference.quick import write_stripes

ROOT = pathlib.Path(__file__).parents[2]


def small_cases(group, options):
    def steps(left):
        return jax.lax.fori_loop(0, 4, lambda _, carry: jnp.tanh(carry @ left), left)

    assert group == "steps"
    return [Case("products", "product", steps, (jnp.ones((64, 64)),), 4 * 2 * 64**3, 4, lambda: lambda: None)]


@pytest.fixture
def quick(monkeypatch):
    """Small cases, a machine of 1 GFLOP/s that nothing else uses, and a PyTorch baseline that does nothing."""
    monkeypatch.setattr(benchmark_rows, "cases_of", small_cases)
    monkeypatch.setattr(benchmark_rows, "set_threads", lambda count: None)
    monkeypatch.setattr(benchmark, "torch_is_installed", lambda: True)
    monkeypatch.setattr(benchmark, "gemm_peak", lambda: 1e9)
    monkeypatch.setattr(benchmark, "_SECONDS_OF_IDLE_CHECK", 0.0)
    kept = jax.config.values["jax_enable_compilation_cache"]
    yield
    jax.config.update("jax_enable_compilation_cache", kept)


def test_a_row_relates_the_time_of_a_unit_to_the_floor_and_to_the_torch_baseline(quick, tmp_path, monkeypatch, capsys):
    """A call of 4 products takes 8 ms: at 1 GFLOP/s the floor is 2.1 ms; PyTorch takes 16 ms with one thread."""
    seconds = {"products, PyTorch, 1 threads": 0.016}

    def timed(functions, *, repeats):
        for function in functions.values():
            function()
        return {
            name: timing.Timing(seconds.get(name, 0.032 if "PyTorch" in name else 0.008), 0.004, repeats)
            for name in functions
        }

    monkeypatch.setattr(benchmark_rows, "time_in_turn", timed)
    config = BenchmarkConfig(groups="steps", repeats=3, convolutions="matmul,lax")
    assert benchmark.execute(benchmark.prepare(config, tmp_path / "run", False)) == 0
    result = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert [row["options"] for row in result["rows"]] == ["matmul, auto", "lax, auto"]
    row = result["rows"][0]
    assert (row["median_seconds"], row["least_seconds"], row["measurements"]) == (0.002, 0.001, 3)
    assert row["gflops"] == pytest.approx(4 * 2 * 64**3 / 0.008 / 1e9)
    assert row["times_the_floor"] == pytest.approx(1.0 / row["gflops"])
    assert row["pytorch_seconds"] == pytest.approx(0.016 / 4)
    assert row["ratio_to_pytorch"] == pytest.approx(row["median_seconds"] / row["pytorch_seconds"])
    assert row["compile_seconds"] > 0
    assert row["memory_bytes"] >= 2 * 64 * 64 * 4
    table = (tmp_path / "run" / "benchmark.md").read_text()
    assert capsys.readouterr().out == table
    assert "| products | matmul, auto | 2 ms | 1 ms |" in table


def test_without_pytorch_the_table_has_no_ratio(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "torch_is_installed", lambda: False)
    prepared = benchmark.prepare(BenchmarkConfig(groups="steps", repeats=1), tmp_path / "run", False)
    benchmark.execute(prepared)
    (row,) = json.loads((tmp_path / "run" / "benchmark.json").read_text())["rows"]
    assert row["ratio_to_pytorch"] is None
    assert row["times_the_floor"] > 0


@pytest.mark.slow
def test_the_arithmetic_of_a_step_is_that_of_its_layers():
    """Convolutions, dense layers, their gradients; of the first layer only that of its kernel."""
    first, second = 2 * 27 * 27 * 25 * 32, 2 * 4 * 4 * 800 * 64
    hidden, output = 2 * 256 * 200, 2 * 200 * 11
    for convolution in ("matmul", "lax"):
        case = benchmark_cases.local_step(32, 2, PerformanceOptions(convolution=convolution))
        assert case.flops / case.units == 2 * (2 * first + 3 * (second + hidden + output))


@pytest.mark.slow
def test_every_case_of_every_group_can_be_traced(monkeypatch):
    """A case counts units, and has arithmetic unless it is an upload."""
    monkeypatch.setattr(benchmark_cases, "_COUNTS", (2,))
    monkeypatch.setattr(benchmark_cases, "_SAMPLES", (64,))
    for group in benchmark_cases.GROUPS:
        inversions = benchmark_inversions.inversion_cases if group == "inversions" else None
        make = inversions or functools.partial(benchmark_cases.cases_of, group)

        def call_all(make=make):
            # Within one trace, so that not even the first states have to be compiled.
            cases = make(PerformanceOptions())
            for case in cases:
                assert case.units >= 1
                assert (case.flops > 0) == ("upload" not in case.name), case.name
            return [case.function(*case.arguments) for case in cases]

        assert all(map(jax.tree.leaves, jax.eval_shape(call_all)))


def run(*arguments):
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_binary_times_a_group(tmp_path):
    done = run("--groups=upload", "--repeats=1", f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "sparse vector uploads of 2 participants, 478665 coordinates, 1 released" in done.stdout
    assert len(json.loads((tmp_path / "run" / "benchmark.json").read_text())["rows"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--groups=steps,speed", "groups=steps,speed: expected some of steps, rounds"),
        ("--repeats=0", "repeats=0: expected at least 1"),
        ("--convolutions=fft", "convolutions=fft: expected some of auto, blocked, matmul, lax"),
        ("--compilation_cache=/dev/null/here", "compilation_cache=/dev/null/here: expected a directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, flag, message):
    done = run(flag, f"--workdir={tmp_path}/run")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_first_round_of_the_main_job_is_waited_for(tmp_path):
    """Its line in the metrics ends the wait; a run that never starts is no time but an error."""
    stripes = write_stripes(tmp_path / "stripes.npz")
    few = ["--participant_classes=0,1;2,3", "--target_class=0", "--judge_samples=80", "--batch_size=16"]
    arguments = [f"--dataset=npz:{stripes}", "--samples_per_participant=40", "--attack=none", *few]
    assert 0.1 < benchmark_commands.seconds_to_first_round(arguments) < 300
    with pytest.raises(RuntimeError, match="no round after"):
        benchmark_commands.seconds_to_first_round(["--dataset=nothing"])


def test_commands_are_timed_one_after_the_other(monkeypatch):
    """Each gets its own directory and all share one cache; one that fails is no time but an error."""
    seen = []

    @contextlib.contextmanager
    def recorded(command, **_):
        seen.append(command)
        yield types.SimpleNamespace(returncode=len(seen) > 26, communicate=lambda: ("", "error: no"))

    monkeypatch.setattr(benchmark_commands, "running", recorded)
    rows = benchmark_commands.sweep_rows()
    assert [row["case"] for row in rows] == ["24 runs, one sweep", "24 runs, a process each"]
    (swept,) = [command for command in seen if "experiments.sweep" in command]
    assert {"--upload_fraction=0.03,0.1,0.3,1", "--learning_rate=0.02,0.05", "--num_seeds=3"} <= set(swept)
    alone = [tuple(command[-3:]) for command in seen[2:]]
    assert len(set(alone)) == 24
    assert ("--upload_fraction=0.3", "--learning_rate=0.05", "--seed=2") in alone
    assert len({command[3] for command in seen[2:]}) == 24
    assert len({command[command.index("--compilation_cache") + 1] for command in seen[2:]}) == 1
    with pytest.raises(RuntimeError, match=r"experiments\.gan_attack .*--seed=0: error: no"):
        benchmark_commands.sweep_rows()


def test_an_interruption_ends_what_was_started_and_removes_what_it_left(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_commands.tempfile, "tempdir", str(tmp_path))
    started = []

    def time_something():
        with benchmark_commands.temporary_directory() as directory:
            (directory / "file").touch()
            with benchmark_commands.running([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
                started.append(process)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_something()
    assert started[0].returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def as_torch(torch, kernel):
    return torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1))


@pytest.mark.parametrize("image_size", [32, 64])
def test_the_torch_baseline_classifier_is_the_same_network(torch, image_size):
    """With our parameters in it, it gives our logits."""
    outputs, blocks = (11, 2) if image_size == 32 else (41, 3)
    model = classifier_for(image_size, outputs, 1)
    params = model.init(jax.random.key(0))
    torch_baseline = torch_baselines.torch_classifier(image_size, outputs)
    with torch.no_grad():
        for index in range(blocks):
            block = params[f"PooledConvolution_{index}"]
            torch_baseline[3 * index].weight.copy_(as_torch(torch, block["kernel"]))
            torch_baseline[3 * index].bias.copy_(torch.tensor(np.asarray(block["bias"])))
        channels = params[f"PooledConvolution_{blocks - 1}"]["bias"].size
        hidden = np.asarray(params["hidden_layer"]["Dense_0"]["kernel"])
        side = int((hidden.shape[0] / channels) ** 0.5)
        hidden = hidden.reshape(side, side, channels, -1).transpose(3, 2, 0, 1).reshape(hidden.shape[1], -1)
        for layer, kernel, name in (
            (torch_baseline[-3], hidden, "hidden_layer"),
            (torch_baseline[-1], np.asarray(params["output_layer"]["Dense_0"]["kernel"]).T, "output_layer"),
        ):
            layer.weight.copy_(torch.tensor(kernel))
            layer.bias.copy_(torch.tensor(np.asarray(params[name]["Dense_0"]["bias"])))
        images = np.random.default_rng(0).uniform(-1, 1, (3, image_size, image_size, 1)).astype(np.float32)
        theirs = torch_baseline(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(model.apply(params, images), theirs, atol=1e-4)


@pytest.mark.parametrize("image_size", [32, 64])
def test_the_torch_baseline_generator_has_as_many_parameters(torch, image_size):
    ours = dcgan_generator(image_size, 1, width=16).init(jax.random.key(0))
    theirs = torch_baselines.torch_generator(image_size, 16)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert count == sum(leaf.size for leaf in jax.tree.leaves(ours))
    assert theirs(torch.zeros(2, 100, 1, 1)).shape == (2, 1, image_size, image_size)


@pytest.mark.parametrize("average", [True, False])
def test_the_torch_baseline_round_trains(torch, average, monkeypatch):
    """The server's parameters move, by the average of the participants or by their sum."""
    servers = []
    classifier = torch_baselines.torch_classifier

    def noted(*sizes):
        servers.append(classifier(*sizes))
        return servers[-1]

    monkeypatch.setattr(torch_baselines, "torch_classifier", noted)
    torch.manual_seed(0)
    run = torch_baselines.local_round(32, 11, participants=3, samples=5, batch_size=2, average=average)
    before = [parameter.detach().clone() for parameter in servers[0].parameters()]
    run()
    moved = [
        float((now - then).detach().abs().max()) for now, then in zip(servers[0].parameters(), before, strict=True)
    ]
    assert min(moved) > 0


def test_the_torch_baselines_of_the_inversions_do_the_same(torch):
    """With the same parameters the network has the same gradients; the generator is as large; all baselines run."""
    model, module = dlg_lenet(10), benchmark_inversions.torch_lenet()
    params = model.init(jax.random.key(0))
    convolutions = list(zip((module[0], module[2], module[4]), ("layer0", "layer2", "layer4"), strict=True))
    dense = params["layer7"]["Dense_0"]
    with torch.no_grad():
        for theirs, name in convolutions:
            theirs.weight.copy_(as_torch(torch, params[name]["kernel"]))
            theirs.bias.copy_(torch.tensor(np.asarray(params[name]["bias"])))
        # Torch flattens channels first.
        kernel = np.asarray(dense["kernel"]).reshape(8, 8, 12, 10).transpose(2, 0, 1, 3).reshape(768, 10)
        module[7].weight.copy_(torch.tensor(kernel.T.copy()))
        module[7].bias.copy_(torch.tensor(np.asarray(dense["bias"])))
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    labels = np.eye(10, dtype=np.float32)[[3, 7]]
    ours = gradient_of(model, params, images, labels)
    theirs = benchmark_inversions.torch_gradient(
        module, torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(labels)
    )
    for place, (_, name) in enumerate(convolutions):
        expected = np.asarray(ours[name]["kernel"]).transpose(3, 2, 0, 1)
        np.testing.assert_allclose(theirs[2 * place].detach().numpy(), expected, rtol=1e-3, atol=1e-6)
    drawn, labelled = benchmark_inversions.torch_grnn_generator()
    sizes = [parameter.numel() for branch in (drawn, labelled) for parameter in branch.parameters()]
    generator = grnn_generator(10).init(jax.random.key(0))
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(generator))
    for torch_baseline in (benchmark_inversions.dlg_torch_baseline, benchmark_inversions.grnn_torch_baseline):
        torch_baseline()()
    benchmark_inversions.white_box_torch_baseline(2)()
