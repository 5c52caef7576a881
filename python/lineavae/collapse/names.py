"""Names of the arrays of a posterior in a file."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

Spread: TypeAlias = Literal["logvar", "std", "variance", "log_std"]

# The first of each is this package's own. torch.distributions, Keras' and Pyro's examples, scvi-tools and
# pythae have the others.
USUAL_NAMES = {
    "mean": ("mean", "mu", "loc", "z_mean", "z_mu", "z_loc", "qz_m", "qzm", "embedding"),
    "logvar": ("logvar", "log_var", "log_variance", "z_logvar", "z_log_var", "log_covariance"),
    "std": ("std", "sigma", "scale", "z_std", "z_sigma", "z_scale"),
    "variance": ("variance", "var", "z_var", "qz_v", "qzv"),
    "log_std": ("log_std", "logstd", "log_sigma", "log_scale"),
}
# How scvi-tools ends the names of a minified model's posterior, as in scvi_latent_qzm. Beside it there often
# is X_latent_qzm, which it was made of.
_MINIFIED = {"mean": "_latent_qzm", "variance": "_latent_qzv"}
# Names that an error lists of a file that has none of these.
_LISTED = 10
OPTIONS = {
    "mean": "--mean-key",
    "logvar": "--logvar-key",
    "std": "--std-key",
    "variance": "--var-key",
    "log_std": "--log-std-key",
}


class Keys(NamedTuple):
    """Names of the arrays of a shard: the mean's, and those of what tells the variance.

    None stands for the usual names: ``mean``, ``logvar``, ``std``, ``variance`` and ``log_std``, and where
    these are missing others such as ``mu``, ``loc``, ``sigma``, ``scale``, ``var``, ``qz_m`` or ``qz_v``, if
    just one of them is there. Those of scvi-tools' minified models, such as ``scvi_latent_qzm``, go before
    ``X_latent_qzm``, and have their own variance. If a spread is named, no other is looked for. If there are
    several, the first in the order logvar, std, variance, log_std is taken.

    Examples
    --------
    >>> from lineavae.collapse.names import Keys
    >>> Keys().choose(["loc", "scale", "labels"])
    ('loc', 'std', 'scale')
    >>> Keys(variance="sigma").choose(["mu", "sigma"])
    Traceback (most recent call last):
        ...
    ValueError: 'sigma' is the usual name of the std: name it by --std-key, or rename the array
    """

    mean: str | None = None
    logvar: str | None = None
    std: str | None = None
    variance: str | None = None
    log_std: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """The names that are not left to the usual ones, by kind."""
        return {kind: name for kind, name in self._asdict().items() if name is not None}

    @property
    def first_names(self) -> tuple[str, ...]:
        """The names that are given, or else the first of the usual ones."""
        spreads = [kind for kind in get_args(Spread) if kind in self.given] or ("logvar", "std")
        return tuple(self.given.get(kind, USUAL_NAMES[kind][0]) for kind in ("mean", *spreads))

    def check(self) -> None:
        """Raise a ValueError where two names are one, or a name is the usual one of something else."""
        if len(set(self.given.values())) < len(self.given):
            raise ValueError(f"keys must differ from each other, got {tuple(self.given.values())}")
        for kind, name in self.given.items():
            for other, names in USUAL_NAMES.items():
                if name in names and other != kind:
                    raise ValueError(
                        f"{name!r} is the usual name of the {other}: name it by {OPTIONS[other]}, "
                        "or rename the array"
                    )

    def choose(self, names: Collection[str]) -> tuple[str, Spread, str]:
        """Choose among the names of a file: that of the mean, the kind of the spread, and its name.

        Raises
        ------
        ValueError
            None fits, or more than one.
        """
        self.check()
        spreads = [kind for kind in get_args(Spread) if kind in self.given]
        _, mean = self._find(["mean"], names)
        variance = mean.replace(_MINIFIED["mean"], _MINIFIED["variance"])
        if not spreads and mean.endswith(_MINIFIED["mean"]) and variance in names:
            return mean, "variance", variance
        kind, spread = self._find(spreads or get_args(Spread), names)
        return mean, cast("Spread", kind), spread

    def endings(self, stem: str) -> list[str]:
        """Give the names that the name of an .npy file, without its suffix, ends with; the longest first."""
        found = []
        for kind, usual in USUAL_NAMES.items():
            first, *others = [self.given[kind]] if kind in self.given else usual
            found += [first] if stem.endswith(first) else []
            # "menu" has no "mu" in it; and what ends with another name of its kind only hides a prefix
            found += [
                name
                for name in others
                if re.search(rf"(^|[_.\- ]){re.escape(name)}$", stem)
                and not any(name.endswith(f"_{other}") for other in usual)
            ]
        return sorted(found, key=len, reverse=True)

    def _find(self, kinds: Collection[str], names: Collection[str]) -> tuple[str, str]:
        for kind in kinds:
            first = self.given.get(kind, USUAL_NAMES[kind][0])
            if first in names:
                return kind, first
        others = [
            (kind, name)
            for kind in kinds
            if kind not in self.given
            for name in names
            if name in USUAL_NAMES[kind] or (kind in _MINIFIED and name.endswith(_MINIFIED[kind]))
        ]
        others = [other for other in others if not other[1].startswith("X_")] or others
        if len(others) == 1:
            return others[0]
        wanted = "mean" if "mean" in kinds else "variance"
        options = ", ".join(OPTIONS[kind] for kind in kinds)
        listed = [repr(name) for name in names]
        got = ", ".join(listed[:_LISTED]) or "no arrays"
        if len(listed) > _LISTED:
            got += f" and {len(listed) - _LISTED} others"
        if others:
            found = " and ".join(repr(name) for _, name in others)
            raise ValueError(f"{found} may all be the {wanted}: name it by {options}")
        looked_for = ", ".join(repr(self.given.get(kind, USUAL_NAMES[kind][0])) for kind in kinds)
        if any(name.endswith((".weight", ".bias")) for name in names):
            advice = (
                "these are the parameters of a model, and wanted is what its encoder gives; "
                "lineavae.collapse.PosteriorWriter writes that"
            )
        else:
            advice = f"name it by {options}"
        raise ValueError(f"there is no {wanted}, such as {looked_for}, among {got}: {advice}")
