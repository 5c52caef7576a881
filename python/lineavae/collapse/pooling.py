"""Whether the posteriors of several files belong together, by their names and by what each says alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lineavae.collapse._counts import clopper_pearson
from lineavae.collapse._tables import ranges
from lineavae.collapse.files import Shard
from lineavae.ops import LatentStatistics

_OF_A_MODEL = re.compile(
    r"(check-?point|ckpt|epoch|iter(?:ation)?|step|seed|model|run|version)s?[-_=.]?\d+", re.I
)


def pooling_warnings(
    shards: Sequence[Shard], each: LatentStatistics, threshold: int, delta: float
) -> list[str]:
    """Say why the posteriors of some shards look like those of several models, a sentence each.

    Their names number checkpoints, epochs, seeds or models; or a latent is proven to be collapsed in one
    shard and not to be in another, at the threshold of this index and a level of 0.95 that all proofs share.
    """
    found = []
    names = {tuple(match.group(0).lower() for match in _OF_A_MODEL.finditer(shard.name)) for shard in shards}
    if len(names) > 1:
        some = sorted({name for matches in names for name in matches})
        shown = ", ".join([*some[:3], *(["..."] if len(some) > 3 else [])])
        found.append(
            f"the files look like those of {len(names)} models ({shown}), and are pooled as one; "
            "--each takes every file for a model"
        )
    below = each.counts[..., threshold].cpu().numpy()
    total = each.moments[..., 0].cpu().numpy().astype(np.int64)
    interval = clopper_pearson(below, below, total, 1 - 0.05 / below.size)
    both = np.asarray((interval.lower >= 1 - delta).any(0) & (interval.upper < 1 - delta).any(0))
    if both.any():
        found.append(
            f"latents {ranges(both)} are collapsed in some files and not in others, which is no chance: "
            "they are of different models, or of different data"
        )
    return found
