"""What selection needs to know of image runs."""

from __future__ import annotations

import dataclasses

from instruct_prune.config import SelectConfig
from instruct_prune.run.folder import RunFolder
from instruct_prune.select import find_method


def is_image_run(folder: RunFolder) -> bool:
    return bool(folder.stage("encode").get("images"))


def with_classes_as_strata(folder: RunFolder, config: SelectConfig) -> SelectConfig:
    """Classes are the strata of an image run, unless the user names clusters or a column."""
    clustered = (
        config.stratify is None and config.clusters == "auto" and find_method(config.method).strata == "clusters"
    )
    if clustered and is_image_run(folder):
        return dataclasses.replace(config, stratify="label")
    return config
