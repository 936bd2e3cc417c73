"""Groups of which there is no record: named in a line of their own, rather than shown with empty figures."""

from __future__ import annotations

from itertools import compress

import numpy as np
from numpy.typing import NDArray

from fedfair.assessment import kept_groups
from fedfair.data.crossing import axes, group_names
from fedfair.report._load import Experiment


def present(experiment: Experiment, attribute: str) -> NDArray[np.bool_]:
    """Return whether each group of an attribute or a crossing has a training or test record, [G].

    All have where nobody can tell: under noise, from sums over sites, and as long as a site has not told of
    training and test records. Such a group, and one that lacks test records alone, stays not estimable.
    """
    found = [run.evaluation for run in experiment.runs.values() if run.evaluation is not None]
    counts = [own[:, 0] for evaluation in found for own in (evaluation.train_counts, evaluation.counts)]
    told = bool(found) and all(own.any((1, 2)).all() for own in counts)
    if experiment.summed or not told or any(evaluation.released for evaluation in found):
        return np.ones(len(group_names(experiment.attributes, attribute)), np.bool_)
    records = np.sum(counts, axis=0)
    by_group = kept_groups(records, experiment.cells, axes(experiment.attributes, attribute))
    return np.asarray(by_group.any((0, 2)))


def shown(experiment: Experiment, attribute: str) -> list[str]:
    """Return the groups with records."""
    names = group_names(experiment.attributes, attribute)
    return list(compress(names, present(experiment, attribute)))


def absent(experiment: Experiment, attribute: str) -> list[str]:
    """Return the groups without any record."""
    names = group_names(experiment.attributes, attribute)
    return list(compress(names, ~present(experiment, attribute)))
