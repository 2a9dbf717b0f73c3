"""The memory that a run needs at least is found from shapes; what cannot fit is refused by the name of its cause."""

import jax
import numpy as np
import pytest

from gan_leak import machine
from gan_leak.collaboration import init_federation
from gan_leak.runs import memory
from gan_leak.runs.federated.setup import build_experiment, prepare_data
from reference.quick import small_run, use_linear_networks, write_stripes


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


def needed(monkeypatch, config, **arguments):
    """What is found to be needed, in bytes."""
    data = prepare_data(config)
    experiment = build_experiment(config, data)
    found = []
    monkeypatch.setattr(memory, "check_fits", lambda what, size: found.append((what, size)))
    memory.check_run(config, data, experiment, **arguments)
    ((what, size),) = found
    return what, size, data, experiment


def test_the_bound_counts_the_state_and_the_images_that_there_are(stripes, monkeypatch):
    use_linear_networks(monkeypatch)
    config = small_run(stripes)
    _, size, data, experiment = needed(monkeypatch, config)
    state = init_federation(jax.random.key(0), experiment.classifier, experiment.transform, 2, experiment.attack)
    held = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves((state, data.federation)))
    batch = 4 * config.attack.generator_batch_size * (config.attack.generator_width * 16 * 16 + 32 * 32)
    # But for the number of the round.
    assert size == held - 4 + batch + 4 * config.evaluation.samples * 32 * 32
    assert needed(monkeypatch, config, lanes=7)[1] == 7 * size


@pytest.mark.parametrize(
    "changes",
    [
        {"generator_width": 60_000},
        {"generator_width": 2**31 - 1},
        {"generator_batch_size": 10**8},
        {"fakes_per_round": 10**8},
        {"fake_memory_rounds": 10**8},
        {"evaluation_samples": 10**9},
        {"delay": 10**8},
    ],
)
def test_numbers_that_no_machine_can_hold_are_refused_by_name(stripes, changes):
    config = small_run(stripes, **changes, **({"schedule": "asynchronous"} if "delay" in changes else {}))
    data = prepare_data(config)
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name}={value}.* of memory, expected at most"):
        memory.check_run(config, data, build_experiment(config, data))


def test_who_takes_part_in_a_round_counts_and_not_who_waits_on_the_disk(stripes, monkeypatch):
    use_linear_networks(monkeypatch)
    all_of_them = small_run(stripes, participant_classes="0;1;2;3;1;1;2;3", attack="none", batch_size=4)
    cohorts = small_run(
        stripes, participant_classes="0;1;2;3;1;1;2;3", attack="none", batch_size=4, participants_per_round=2
    )
    assert needed(monkeypatch, cohorts)[1] < needed(monkeypatch, all_of_them)[1]


def test_the_limits_of_the_machine_and_of_the_process_count(monkeypatch, tmp_path):
    total = machine.os.sysconf("SC_PHYS_PAGES") * machine.os.sysconf("SC_PAGE_SIZE")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(limit), str(tmp_path / "absent")))
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (machine.resource.RLIM_INFINITY,) * 2)
    assert machine.usable_memory() == total
    limit.write_text("max\n")
    assert machine.usable_memory() == total
    limit.write_text("1000000\n")
    assert machine.usable_memory() == 1_000_000
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (5_000, 6_000))
    assert machine.usable_memory() == 5_000
    machine.check_fits("x needs", 2_500)
    with pytest.raises(ValueError, match=r"^x needs at least 0\.0 GB of memory, expected at most 0\.0 GB, half of"):
        machine.check_fits("x needs", 2_501)
