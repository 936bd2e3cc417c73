"""Which blocks send one row per group, from the configuration alone, so that all sides agree."""

from __future__ import annotations

from fedfair.blocks import block_names
from fedfair.config import Config
from fedfair.data.schema import Schema
from fedfair.errors import ConfigError, nearest
from fedfair.paths import RowPlan


def row_plan(config: Config, schema: Schema) -> RowPlan:
    """Return the plan of a run.

    No block sends group rows in weights mode or for a method that does not modulate: the site's
    own weighted update is then all there is.

    Raises
    ------
    ConfigError
        If `training.group_rows` names an unknown block.
    """
    training, names = config.training, block_names(tuple(schema.modalities))
    wanted = names if training.group_rows == "all" else tuple(training.group_rows)
    for name in wanted:
        if name not in names:
            raise ConfigError(
                f"`training.group_rows` must name blocks of the model, got {name!r}"
                f"{nearest(str(name), names)}"
            )
    if training.mode == "weights" or not config.method.modulates:
        return RowPlan()
    split = training.mode == "gradient" if training.split_rows is None else training.split_rows
    return RowPlan(frozenset(wanted), split)
