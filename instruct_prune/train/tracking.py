"""Where the training loss goes besides the terminal: trackio, Weights & Biases or TensorBoard, by transformers' own callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instruct_prune.train.config import TrainConfig
from instruct_prune.train.processes import is_main


def tracker_arguments(config: TrainConfig, folder: Path | None) -> dict[str, Any]:
    """What `TrainingArguments` are told; ``folder`` is the training's, and the name of the run there."""
    by_itself = config.report_to in ("none", "tensorboard") or folder is None
    return {
        "report_to": "none" if by_itself else config.report_to,
        # Not its last part alone: trackio takes two runs of one name for one that goes on.
        "run_name": None if folder is None else str(folder),
        "trackio_space_id": None,  # transformers 4 would publish the run as a Space of the user's
    }


def tracker_callbacks(config: TrainConfig, folder: Path | None) -> list[Any]:
    """TensorBoard's, which writes to ``folder/tensorboard``; by itself it would write among the checkpoints, which are deleted."""
    if config.report_to != "tensorboard" or folder is None or not is_main():
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(folder / "tensorboard")))]
