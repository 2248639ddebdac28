"""Formulations: what a user writes, and how they are found."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, dataclass_transform

from lipmodel.errors import UsageError


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Formulation:
    """A way to bound a Lipschitz constant: options as annotated class attributes, and one method, `build`.

    name: what the command line calls it. norms: the pairs (input norm, output norm) that `build` can state; other pairs
    are reached through single rows and columns where that is exact. default_norm: used when no norm is asked for.
    Options are dataclass fields: annotate them with a type, give a default (`lm.option(default, help=...)`).
    """

    name: ClassVar[str] = ""
    norms: ClassVar[set[tuple[str, str]]] = set()
    default_norm: ClassVar[str] = "2"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        if cls.name:
            _REGISTERED[cls.name] = cls

    def build(self, system: Any, spec: Any) -> Any:
        """State the problem for one increment system: a Model, Multipliers, or a NormExpression."""
        raise NotImplementedError(f"the formulation {self.name!r} does not define build(system, spec)")

    def options(self) -> dict[str, Any]:
        """The options and their values, for certificates and reports."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


_REGISTERED: dict[str, type[Formulation]] = {}
ALIASES = {"autolip": "product"}
"""Names in the literature of formulations that go by another one here."""
_BUILT_IN = {
    "product": "lipmodel_formulations.product:Product",
    "fourier-lipsdp": "lipmodel_formulations.fourier:FourierLipSDP",
    "liplt": "lipmodel_formulations.liplt:LipLT",
    "combettes-pesquet": "lipmodel_formulations.liplt:CombettesPesquet",
    "k3": "lipmodel_formulations.absolute:K3",
    "k4": "lipmodel_formulations.absolute:K4",
    "path-norm": "lipmodel_formulations.absolute:PathNorm",
    "seqlip": "lipmodel_formulations.seqlip:SeqLip",
    "lipsdp-neuron": "lipmodel_formulations.lipsdp:LipSDPNeuron",
    "lipsdp-layer": "lipmodel_formulations.lipsdp:LipSDPLayer",
    "geolip": "lipmodel_formulations.geolip:GeoLIP",
    "chordal-lipsdp": "lipmodel_formulations.chordal:ChordalLipSDP",
    "geolip-triangle": "lipmodel_formulations.triangle:GeoLIPTriangle",
    "lipopt": "lipmodel_formulations.lipopt:LiPopt",
    "sos": "lipmodel_formulations.sos:SOS",
    "shor": "lipmodel_formulations.shor:Shor",
    "hr1": "lipmodel_formulations.shor:HR1",
    "hr2": "lipmodel_formulations.shor:HR2",
    "lipsdp-pair": "lipmodel_formulations.pairs:LipSDPPair",
    "eclipse": "lipmodel_formulations.eclipse:ECLipsE",
    "eclipse-fast": "lipmodel_formulations.eclipse:ECLipsEFast",
    "syed-hu": "lipmodel_formulations.syed_hu:SyedHu",
    "s-opt": "lipmodel_formulations.s_opt:SOpt",
}


def option(default: Any, *, help: str) -> Any:
    """An option of a formulation: a default and a line of help."""
    return dataclasses.field(default=default, metadata={"help": help})


@lru_cache(maxsize=1)
def _entry_points() -> dict[str, str]:
    found = dict(_BUILT_IN)
    found.update({e.name: e.value for e in entry_points(group="lipmodel.formulations")})
    return found


def formulation_names() -> list[str]:
    """Every known formulation, the built-in ones first."""
    return list(dict.fromkeys([*_entry_points(), *_REGISTERED]))


def formulation_class(name: str) -> type[Formulation]:
    """The class behind a name or a `FILE.py:CLASS`. Raises UsageError."""
    if ".py:" in name or name.endswith(".py"):
        return _from_file(name)
    name = ALIASES.get(name, name)
    if name in _entry_points():
        from importlib import import_module

        module, _, attribute = _entry_points()[name].partition(":")
        try:
            cls: type[Formulation] = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"the formulation {name!r} is announced as {module}:{attribute}, but: {error}") from error
        return cls
    if name in _REGISTERED:
        return _REGISTERED[name]
    known = ", ".join(formulation_names())
    raise UsageError(f"unknown formulation {name!r}: the known ones are {known}; or give a file, ./mine.py:MyClass")


def _from_file(name: str) -> type[Formulation]:
    from importlib.util import module_from_spec, spec_from_file_location

    path_text, _, attribute = name.partition(".py:")
    path = Path(path_text if path_text.endswith(".py") else path_text + ".py")
    if not path.is_file():
        raise UsageError(f"{path}: no such file; a formulation from a file is given as ./mine.py:MyClass")
    module_name = f"_lipmodel_user_{abs(hash(str(path.resolve())))}"
    spec = spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    before = dict(_REGISTERED)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path}: the file does not run: {type(error).__name__}: {error}") from error
    finally:
        _REGISTERED.clear()
        _REGISTERED.update(before)
    found = {
        k: v
        for k, v in vars(module).items()
        if isinstance(v, type) and issubclass(v, Formulation) and v is not Formulation and v.__module__ == module_name
    }
    if not attribute:
        if len(found) == 1:
            return next(iter(found.values()))
        raise UsageError(f"{path}: say which class, as {path}:CLASS; it defines {', '.join(found) or 'no formulation'}")
    if attribute not in found:
        listed = ", ".join(found) or "none"
        raise UsageError(
            f"{path}: no formulation class {attribute!r} (a subclass of lm.Formulation); it defines: {listed}"
        )
    return found[attribute]


def formulation(value: Any, options: Mapping[str, Any] | None = None) -> Formulation:
    """An instance from a name, `FILE.py:CLASS`, a class or an instance, with options. Raises UsageError."""
    if isinstance(value, Formulation):
        if options:
            return type(value)(**{**value.options(), **_checked(type(value), options)})
        return value
    cls = value if isinstance(value, type) and issubclass(value, Formulation) else formulation_class(str(value))
    if not cls.norms:
        raise UsageError(f"the formulation {cls.__name__} declares no norms: set norms = {{('2', '2')}} or others")
    bad = [pair for pair in cls.norms if not _is_pair(pair)]
    if bad:
        raise UsageError(
            f"the formulation {cls.__name__} declares the norm pair {bad[0]!r}: "
            "write pairs such as ('2', '2') with 1, 2, inf"
        )
    return cls(**_checked(cls, options or {}))


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(x in ("1", "2", "inf") for x in pair)


def _checked(cls: type[Formulation], options: Mapping[str, Any]) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [key for key in options if key.replace("-", "_") not in fields]
    if unknown:
        listed = ", ".join(fields) or "none"
        raise UsageError(f"the formulation {cls.name!r} has no option {unknown[0]!r}; its options: {listed}")
    result = {}
    for key, value in options.items():
        f = fields[key.replace("-", "_")]
        result[f.name] = _converted(cls, f.name, value, f.default)
    return result


def _converted(cls: type[Formulation], name: str, value: Any, default: Any) -> Any:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    try:
        if isinstance(default, bool):
            table = {
                "true": True,
                "yes": True,
                "1": True,
                "on": True,
                "false": False,
                "no": False,
                "0": False,
                "off": False,
            }
            return table[value.strip().lower()]
        return type(default)(value)
    except (KeyError, ValueError, TypeError):
        kind = type(default).__name__
        raise UsageError(f"option {name} of {cls.name!r}: {value!r} is not a {kind} (default {default!r})") from None
