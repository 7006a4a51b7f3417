"""The corruptions and attacks of a robustness run, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TypeAlias

from torch import Tensor

from probekit.analysis.robustness.conditions import Perturbation, attacked
from probekit.errors import OptionError, close_matches, warn
from probekit.models.image_model import Model
from probekit.perturbations.attacks.attack import Attack
from probekit.perturbations.attacks.checks import check_epsilons, check_model_for_attack
from probekit.perturbations.attacks.gradient import get_attack
from probekit.perturbations.corruptions.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, Corruption
from probekit.perturbations.corruptions.published import PublishedCorruptions

Corruptions: TypeAlias = "str | Sequence[str] | PublishedCorruptions | None"
Attacks: TypeAlias = "str | Attack | Sequence[str | Attack] | None"
Epsilons: TypeAlias = "float | Sequence[float] | Mapping[str, float | Sequence[float]]"

_GROUPS = {"all": CORRUPTIONS, "extra": EXTRA_CORRUPTIONS}
_CHECKED = 32


def choose_corruptions(
    asked: str | Sequence[str] | None, images: Tensor, severity: int, table: int | None
) -> tuple[str, ...]:
    """Selects corruption types, and tests each on the first image at one severity.

    Warns:
        ProbekitWarning: Frost is left out because its photographs are not installed.
    """
    names = [asked] if isinstance(asked, str) else list(asked or ())
    known = (*_GROUPS, *CORRUPTIONS, *EXTRA_CORRUPTIONS)
    if unknown := [name for name in names if name not in known]:
        raise OptionError(
            f"there is no corruption {unknown[0]!r}; "
            f"{close_matches(str(unknown[0]), known, what='corruption')}"
        )
    members = dict.fromkeys(one for name in names for one in _GROUPS.get(name, (name,)))
    found = []
    for name in members:
        try:
            Corruption(name, severity, table=table)(images[:1], [0])
            found.append(name)
        except OptionError as error:
            if name != "frost" or name in names:
                raise
            warn(f"frost is left out: {error}")
    return tuple(found)


def choose_severities(asked: int | Sequence[int]) -> tuple[int, ...]:
    """The distinct severities in increasing order."""
    severities = [asked] if isinstance(asked, int) else list(asked)
    if not severities:
        raise OptionError("severities must be one or more of 1, 2, 3, 4, 5")
    for severity in severities:
        Corruption(CORRUPTIONS[0], severity)
    return tuple(sorted({int(severity) for severity in severities}))


def choose_attacks(
    asked: Attacks, epsilons: Epsilons, model: Model, images: Tensor, labels: Tensor, *, move: bool
) -> list[Perturbation]:
    """Selects attacks, and checks whether the model can be attacked."""
    listed = [asked] if isinstance(asked, str | Attack | type) else list(asked or ())
    attacks = [get_attack(one) for one in listed]
    labels_of = [attack_label(attack) for attack in attacks]
    if repeated := [name for name in labels_of if labels_of.count(name) > 1]:
        raise OptionError(f"the attack {repeated[0]} is given twice; remove one")
    radii = [
        check_epsilons(_epsilons_of(attack, label, epsilons), attack.norm, images[0].numel())
        for attack, label in zip(attacks, labels_of, strict=True)
    ]
    _check_names(epsilons, attacks, labels_of)
    for loss in dict.fromkeys(attack.loss for attack in attacks):
        check_model_for_attack(model, images[:_CHECKED], labels[:_CHECKED], loss=loss)
    return [
        attacked(attack, label, dict.fromkeys(some), move_all=move)
        for attack, label, some in zip(attacks, labels_of, radii, strict=True)
    ]


def attack_label(attack: Attack) -> str:
    """The name of an attack, with the options that differ from their defaults.

    >>> from probekit.perturbations.attacks.gradient import FGSM, PGD
    >>> attack_label(FGSM()), attack_label(PGD(steps=10, norm="l2"))
    ('fgsm', 'pgd(steps=10, norm=l2)')
    """
    options = [
        f"{one.name}={getattr(attack, one.name)}"
        for one in fields(attack)  # type: ignore[arg-type]  # attacks are dataclasses
        if one.init and getattr(attack, one.name) != one.default
    ]
    return f"{attack.name}({', '.join(options)})" if options else attack.name


def _epsilons_of(attack: Attack, label: str, epsilons: Epsilons) -> float | Sequence[float]:
    if not isinstance(epsilons, Mapping):
        return epsilons
    for name in (label, attack.name):
        if name in epsilons:
            return epsilons[name]
    raise OptionError(f"no epsilons are given for the attack {label}; there are {list(epsilons)}")


def _check_names(epsilons: Epsilons, attacks: Sequence[Attack], labels: Sequence[str]) -> None:
    if not isinstance(epsilons, Mapping):
        return
    known = {*labels, *(attack.name for attack in attacks)}
    if unknown := [name for name in epsilons if name not in known]:
        raise OptionError(
            f"epsilons are given for {unknown[0]!r}, which is not an attack of this run; "
            f"{close_matches(str(unknown[0]), sorted(known), what='attack')}"
        )
