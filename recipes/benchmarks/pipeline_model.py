"""A language model that costs next to nothing, so that everything around forward passes can be timed.

Its tokenizer is that of the embedded default. A row's state is the mean of its tokens' made-up vectors (256 numbers), so that rows
of like words lie together; a token's loss is a number of its own, and a little of the subnet's. One transformer layer is there for
masks to be made of; it is not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.models.model import States
from instruct_prune.models.text_batch import TextBatch

NAME = "pipeline_model:OneLayer"
TOKENIZER = CausalLM.default
WIDTH, HIDDEN = 256, 64


class OneLayer(CausalLM):
    """Losses and states by looking up tokens."""

    def __init__(
        self, config: ScoreConfig, encode: EncodeConfig, data_format: str | None, loaded: tuple[Any, Any] | None = None
    ) -> None:
        super().__init__(replace(config, model=TOKENIZER), encode, data_format, loaded)
        self.name = NAME

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": NAME}

    def load(self, dtype: str, device: torch.device, offload: Path | None = None) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        vocabulary = self._configuration.vocab_size
        size = {
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        module = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **size)).eval().requires_grad_(False)
        # Not `hold`: it compares losses with the module's own, and these are made up.
        self.module, self._long_above, self._most = module.to(device), None, self.context
        self._vectors = torch.randn(vocabulary, WIDTH, device=device)
        self._surprise = torch.rand(vocabulary, device=device) * 4

    def width(self, depth: int | None) -> int:
        return WIDTH

    def forward(self, batch: TextBatch) -> States:
        return {None: self._vectors[batch.input_ids] if self._pooled else self._vectors[:0]}

    def pool(self, batch: TextBatch, states: States, depth: int | None, how: str) -> Tensor:
        own = states[None]
        inside = (torch.arange(own.shape[1], device=own.device)[None] < batch.lengths[:, None]).float()
        return torch.einsum("bt,bth->bh", inside, own) / batch.lengths[:, None]

    def token_losses(self, batch: TextBatch, states: States, depth: int | None = None) -> Tensor:
        left = int((self.module.model.layers[0].mlp.up_proj.weight != 0).sum())
        return self._surprise[batch.targets] + 0.2 * self._surprise[(batch.targets * 7 + left) % len(self._surprise)]
