"""Configurations: frozen dataclasses whose fields have metadata, and all that is derived from it.

``option`` makes a field. Its ``Setting`` describes its meaning, its allowed values and its effect. Flags, validation,
config.json, the comparison of a resumed run, batches, sweeps and the hyperparameters of a round are derived from it. So
a new field is named only in its dataclass and where it is used. A configuration may consist of parts: the settings of a
part whose field has the metadata ``FLAT`` have no prefix, others are named ``<part>.<setting>``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

# The largest seed for which jax.random.key does not overflow.
LARGEST_SEED = 2**63 - 1
# The largest int32, the type in which JAX counts.
LARGEST_COUNT = 2**31 - 1

# Metadata of a field that holds a part of a configuration whose settings have no prefix.
FLAT: Mapping[str, bool] = {"flat": True}

Config = TypeVar("Config")


class Bounds(NamedTuple):
    """The numbers from ``lowest`` to ``highest``, with each end only if it is included, and without NaN.

    wording: the expectation in error messages, if the default text would mislead.
    """

    lowest: float
    highest: float = math.inf
    lowest_included: bool = True
    highest_included: bool = False
    wording: str = ""

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        above = value >= self.lowest if self.lowest_included else value > self.lowest
        return above and (value <= self.highest if self.highest_included else value < self.highest)

    def __str__(self) -> str:
        if self.wording:
            return self.wording
        if self.highest < math.inf:
            opening, closing = "[" if self.lowest_included else "(", "]" if self.highest_included else ")"
            return f"a number in {opening}{self.lowest:g}, {self.highest:g}{closing}"
        words = f"of at least {self.lowest:g}" if self.lowest_included else f"above {self.lowest:g}"
        return f"a number {words}, or inf" if self.highest_included else f"a finite number {words}"


def at_least(lowest: float) -> Bounds:
    """Finite numbers from ``lowest``."""
    return Bounds(lowest)


def above(lowest: float) -> Bounds:
    """Finite numbers greater than ``lowest``."""
    return Bounds(lowest, lowest_included=False)


def between(lowest: float, highest: float) -> Bounds:
    """Numbers from ``lowest`` to ``highest``, both included."""
    return Bounds(lowest, highest, highest_included=True)


SEEDS = Bounds(0, LARGEST_SEED, highest_included=True, wording=f"0 to {LARGEST_SEED}")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The metadata of one field of a configuration.

    help: its meaning, with the source of its default; "open" marks a choice that the papers leave open.
    choices: all allowed values; empty means any value of its type. bounds: of a number. check: raises ValueError for a
    text that is not allowed, where the choices cannot be listed.
    kind: 'static' is closed over when the program of a round is built; 'traced' is a number that the program takes as
    an argument; 'host' is read only outside of the program, such as the partition or the number of rounds.
    effect: 'training' decides what is trained; 'chance' only draws another sample of it; 'observation' decides what is
    measured and kept, and when; 'speed' decides only time and memory; 'call' concerns one call of a binary, and
    config.json holds its default.
    per_lane: whether the lanes of a batch may differ in it although it is not traced.
    stated: whether Hitaj et al. 2017 state its value. defenses: the defenses that it belongs to.
    solved_for: whether it is solved for to meet a target epsilon.
    later: whether run directories of earlier versions lack it; their runs had the default.
    name: of its flag and in config.json; by default the name of the field.

    ``settings_of`` fills in the rest. path: the attributes that lead to the value. type, default: those of the field.
    """

    help: str
    choices: tuple[Any, ...] = ()
    bounds: Bounds | None = None
    check: Callable[[str], object] | None = None
    kind: Literal["static", "traced", "host"] = "static"
    effect: Literal["training", "chance", "observation", "speed", "call"] = "training"
    per_lane: bool = False
    stated: bool = True
    defenses: tuple[str, ...] = ()
    solved_for: bool = False
    later: bool = False
    name: str = ""
    path: tuple[str, ...] = ()
    type: type = object
    default: Any = None

    @property
    def decides_result(self) -> bool:
        """Whether another value makes another result."""
        return self.effect not in ("speed", "call")

    @property
    def varies_in_batch(self) -> bool:
        """Whether the lanes of one batch, which share a program, may differ in it."""
        return self.kind == "traced" or self.per_lane

    @property
    def sweepable(self) -> bool:
        """Whether a grid may vary it: a number or a choice that decides what is trained or measured."""
        is_choice = bool(self.choices) or self.check is not None
        return self.effect in ("training", "observation") and (is_choice or self.type in (int, float))


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a configuration; metadata: attributes of its ``Setting``."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **metadata)})


def settings_of(config_class: Any) -> Mapping[str, Setting]:
    """The settings of a configuration class and of its parts by name, in the order of their fields.

    Raises TypeError for two settings of one name.
    """
    return _settings_of(config_class)


@functools.cache
def _settings_of(config_class: Any) -> Mapping[str, Setting]:
    found: dict[str, Setting] = {}
    types = _types(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(part := types[field.name]):
            prefix = "" if field.metadata.get("flat") else f"{field.name}."
            inner = [
                dataclasses.replace(setting, name=prefix + name, path=(field.name, *setting.path))
                for name, setting in settings_of(part).items()
            ]
        else:
            setting = field.metadata.get("setting", Setting(field.name))
            default = None if field.default is dataclasses.MISSING else field.default
            inner = [
                dataclasses.replace(
                    setting, name=setting.name or field.name, path=(field.name,), type=part, default=default
                )
            ]
        for setting in inner:
            if setting.name in found:
                raise TypeError(f"{config_class.__name__}: two settings are named {setting.name}")
            found[setting.name] = setting
    return found


def value_of(config: Any, setting: Setting) -> Any:
    """The value of a setting in a configuration."""
    return functools.reduce(getattr, setting.path, config)


def values_of(config: Any) -> dict[str, Any]:
    """All values of a configuration by name of their setting."""
    return {name: value_of(config, setting) for name, setting in settings_of(type(config)).items()}


def traced_values(config: Any) -> dict[str, float]:
    """The values of the traced settings by name."""
    settings = settings_of(type(config))
    return {name: value for name, value in values_of(config).items() if settings[name].kind == "traced"}


def replace(config: Config, **values: object) -> Config:
    """A configuration with other values, given by name of their setting, or as a whole for a part with a prefix.

    Raises TypeError for an unknown setting.
    """
    settings = settings_of(type(config))
    paths: dict[tuple[str, ...], object] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            paths[name,] = value
        elif name in settings:
            paths[settings[name].path] = value
        else:
            raise TypeError(f"{type(config).__name__} has no setting {name}")
    return _with_paths(config, paths)


def make(config_class: type[Config], **values: object) -> Config:
    """A configuration with these values, given as for ``replace``, and defaults for the rest."""
    return replace(config_class(), **values)


def with_defaults(config: Config, which: Callable[[Setting], bool]) -> Config:
    """The configuration with the default for every setting for which ``which`` returns True."""
    settings = settings_of(type(config)).values()
    return _with_paths(config, {setting.path: setting.default for setting in settings if which(setting)})


def program_of(config: Config) -> Config:
    """The configuration with only the static values, which decide the program of a round; all others are None."""
    settings = settings_of(type(config)).values()
    return _with_paths(config, {setting.path: None for setting in settings if setting.kind != "static"})


def hyperparameters_for(record: Callable[..., Config], config: object, **given: object) -> Config:
    """Build a NamedTuple of a program's arguments. Each field is ``given`` or the value of the setting of its name.

    Raises TypeError for a field that is neither given nor a setting that may vary in a batch.
    """
    settings = settings_of(type(config))
    values = {}
    for name in record._fields:  # type: ignore[attr-defined]
        if name in given:
            values[name] = given[name]
        elif name in settings and settings[name].varies_in_batch:
            values[name] = value_of(config, settings[name])
        else:
            raise TypeError(f"{name}: expected a traced setting of {type(config).__name__}")
    return record(**values)


def flat_class(name: str, config_class: type, change: Callable[[Setting], Setting], *more: type) -> Any:
    """A frozen dataclass with the changed settings of a configuration, and the unchanged fields of ``more``.

    Parts with a prefix stay parts. Used for the flags of a configuration whose settings need other types.
    """
    fields: list[tuple[str, Any, Any]] = []
    for setting in settings_of(config_class).values():
        if "." not in setting.name:
            changed = change(setting)
            field = dataclasses.field(default=changed.default, metadata={"setting": changed})
            fields.append((setting.name, changed.type, field))
    for field in dataclasses.fields(config_class):
        part = _types(config_class)[field.name]
        if dataclasses.is_dataclass(part) and not field.metadata.get("flat"):
            fields.append((field.name, part, field))
    for another in more:
        types = _types(another)
        fields += [(field.name, types[field.name], field) for field in dataclasses.fields(another)]
    return dataclasses.make_dataclass(name, fields, frozen=True)


def check_values(config: Any) -> None:
    """Raise ValueError for the first value outside the choices or bounds of its setting.

    A whole number without bounds is at most ``LARGEST_COUNT``.
    """
    for setting in settings_of(type(config)).values():
        check_value(setting, value_of(config, setting))


def check_value(setting: Setting, value: Any) -> None:
    """Raise ValueError if a value is outside the choices or bounds of its setting, or its check refuses it."""
    given, bounds = f"{setting.name}={value!r}", setting.bounds
    if setting.check is not None:
        setting.check(value)
    if setting.choices:
        if value not in setting.choices:
            raise ValueError(f"{given}: expected one of {', '.join(map(str, setting.choices))}")
    elif bounds is not None and (bounds.wording or setting.type is float):
        if value not in bounds:
            raise ValueError(f"{given}: expected {bounds}")
    elif setting.type is int:
        lowest, highest = (-math.inf, math.inf) if bounds is None else (bounds.lowest, bounds.highest)
        if value < lowest:
            raise ValueError(f"{given}: expected at least {lowest}")
        if value > (most := min(highest, LARGEST_COUNT)):
            raise ValueError(f"{given}: expected at most {most}")


def encoded_values(config: object) -> dict[str, Any]:
    """All values as strict JSON, by name of their setting. Infinities become "inf" and "-inf".

    Raises ValueError for NaN.
    """
    settings = settings_of(type(config))
    return {
        name: _encode_float(name, float(value)) if settings[name].type is float else value
        for name, value in values_of(config).items()
    }


def to_json(config: object) -> dict[str, Any]:
    """The ``encoded_values`` in the form of config.json: a part with a prefix is a nested dictionary."""
    nested: dict[str, Any] = {}
    for name, value in encoded_values(config).items():
        *parts, last = name.split(".")
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def from_json(config_class: type[Config], data: object) -> Config:
    """Build the configuration that ``to_json`` encoded: ``from_json(type(config), to_json(config)) == config``.

    Raises ValueError naming the field if one is unknown, missing or of another type.
    """
    given = _flattened(config_class, data)
    settings = settings_of(config_class)
    unknown = sorted(given.keys() - settings.keys())
    missing = sorted(settings.keys() - given.keys())
    if unknown or missing:
        problems = [f"unknown {name}" for name in unknown] + [f"missing {name}" for name in missing]
        raise ValueError(f"fields of {config_class.__name__}: {', '.join(problems)}")
    return _with_paths(
        config_class(),
        {setting.path: _decode_value(setting, given[name]) for name, setting in settings.items()},
    )


@functools.cache
def _types(config_class: Any) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


def _with_paths(config: Any, paths: Mapping[tuple[str, ...], object]) -> Any:
    own: dict[str, object] = {}
    parts: dict[str, dict[tuple[str, ...], object]] = {}
    for path, value in paths.items():
        if len(path) == 1:
            own[path[0]] = value
        else:
            parts.setdefault(path[0], {})[path[1:]] = value
    changed = {name: _with_paths(own.get(name, getattr(config, name)), inner) for name, inner in parts.items()}
    return dataclasses.replace(config, **own, **changed)


def _encode_float(name: str, value: float) -> float | str:
    if math.isnan(value):
        raise ValueError(f"{name}={value}: expected a number")
    return value if math.isfinite(value) else str(value)


def _flattened(config_class: type, data: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(data, dict):
        raise ValueError(
            f"{prefix.rstrip('.') or config_class.__name__}={data!r}: expected an object with the fields of "
            f"{config_class.__name__}"
        )
    types = _types(config_class)
    nested = {
        field.name: types[field.name]
        for field in dataclasses.fields(config_class)
        if dataclasses.is_dataclass(types[field.name]) and not field.metadata.get("flat")
    }
    flat: dict[str, object] = {}
    for name, value in data.items():
        if name in nested:
            flat |= _flattened(nested[name], value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _decode_value(setting: Setting, value: object) -> object:
    if setting.type is float and isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    # bool is a subclass of int, so isinstance() would accept True as an int.
    if type(value) is setting.type:
        return value
    if setting.type is float and type(value) is int:
        return float(value)
    raise ValueError(f"{setting.name}={value!r}: expected {setting.type.__name__}")
