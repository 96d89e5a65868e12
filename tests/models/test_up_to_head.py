"""Models that are run up to their output head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from instruct_prune.models.decoder import UpToHead


def test_the_head_sees_one_position_of_each_row_as_one_block() -> None:
    """Cut out of longer rows as it lies, it would be multiplied row by row, with a copy of the head's weight for each."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50)).eval()
    seen: list[tuple[tuple[int, ...], bool]] = []

    def look(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((tuple(args[0].shape), args[0].is_contiguous()))

    ids = torch.arange(24).view(4, 6)
    with torch.inference_mode():
        expected = model.model(ids).last_hidden_state
        hook = model.lm_head.register_forward_hook(look)
        found = UpToHead(model, model.lm_head)(input_ids=ids).last_hidden_state
    hook.remove()
    assert seen == [((4, 1, 16), True)]
    torch.testing.assert_close(found, expected)
