"""The batches of a figure: its settings, and the controls that belong to each."""

import pytest

from experiments.reproduction.claims import left_out, read_claim
from experiments.reproduction.hitaj import FIGURES
from experiments.reproduction.study import Study, batches_of
from gan_leak.reports.reproduction_results import NEAREST_VARIANT


def study(scale, tmp_path, *, every_control=True):
    return Study(scale, False, every_control, 2, {}, "tfds:cifar10", tmp_path, pytest.fail, pytest.fail)


@pytest.mark.parametrize(("scale", "every_control"), [("quick", True), ("paper", True), ("paper", False)])
@pytest.mark.parametrize("number", ["6", "7", "8", "12", "14"])
def test_at_full_length_every_setting_has_its_own_controls(number, scale, every_control, tmp_path):
    """On request only the first has; so it is in a short run, which leaves out what takes long."""
    figure = next(figure for figure in FIGURES if figure.number == number)
    found = batches_of(study(scale, tmp_path, every_control=every_control), figure)
    names = ["passive", "unowned", *(["undefended"] if number == "12" else [])]
    short = [setting for setting, preset in figure.settings.items() if read_claim(preset).quick]
    settings = short if scale == "quick" else list(figure.settings)
    assert list(left_out(figure.settings, scale)) == [setting for setting in figure.settings if setting not in settings]
    with_controls = settings if scale == "paper" and every_control else settings[:1]
    expected = [(setting, NEAREST_VARIANT) for setting in settings]
    expected += [(setting, name) for setting in with_controls for name in names]
    assert list(found) == expected
    for (setting, name), configs in found.items():
        assert [config.seed for config in configs] == [0, 1]
        if name == "passive":
            own = found[setting, NEAREST_VARIANT][0]
            assert (own.attack.kind, configs[0].attack.kind) == ("active", "passive")
            assert configs[0].federation == own.federation
            assert configs[0].defense == own.defense
