"""Loss per response token of a causal language model (METHOD section 1).

What makes it fast changes no number: the output head runs on response positions only, in pieces whose logits stay in
cache; rows need no attention mask, because padding on the right cannot be seen by a causal model; the tokens that a whole
group of rows begins with (a template's preamble) are computed once for each subnet; float32 on a CPU runs oneDNN's products.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from instruct_prune.encode.batching import Plan
from instruct_prune.encode.item import Tokens
from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models.linear import OneDnnLinear

HEAD_POSITIONS = {"cpu": 256, "other": 4096}  # positions whose logits exist at a time when the vocabulary is whole
BLOCK_POSITIONS, BLOCK_WORDS = 1024, 2048  # and when it is not: 8 MB of float32 logits, which a CPU keeps in cache
PROBE_TOLERANCE = 1e-3  # relative, in the model's own dtype twice as many bits would be asked of float32


@dataclass(frozen=True)
class TextBatch:
    """Right-padded rows.

    Attributes:
        input_ids: int64 [b, t], without the shared prefix and without what comes after the last but one target.
        rows, positions: int64 [m], where the states that predict the m targets lie.
        targets: int64 [m].
        counts: int64 [b], targets of each row.
        prefix: index of the shared prefix, or -1.
    """

    input_ids: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    counts: Tensor
    prefix: int


class CausalLM:
    """The text backbone.

    Args:
        model: a transformers causal language model, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model: Any = model.eval()
        self.head = output_head(model)
        self.decoder = decoder_of(model)
        self._adjust = logit_adjustment(model.config)
        # transformers 5.23 renamed the argument, and warns of the old name.
        names = inspect.signature(self.decoder.forward).parameters
        self._cache_argument = "cache" if "cache" in names else "past_key_values"
        self._prefixes: tuple[Tensor, ...] = ()
        self._caches: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._depths: tuple[int, ...] = ()

    @property
    def device(self) -> torch.device:
        weight: Tensor = self.model.get_input_embeddings().weight
        hook = getattr(self.model, "_hf_hook", None)
        offloaded = getattr(hook, "execution_device", None)
        return torch.device(offloaded) if weight.device.type == "meta" and offloaded is not None else weight.device

    def fit(self, items: Any) -> None:
        with torch.inference_mode():
            self._check_head()

    def start_pass(self, subnets: tuple[SubnetSpec, ...], plan: Plan) -> None:
        self._prefixes = tuple(torch.as_tensor(p, dtype=torch.int64) for p in plan.prefixes)
        self._caches.clear()
        self._depths = tuple(int(s.value) for s in subnets if s.kind == "depth")
        n_blocks = self.model.config.num_hidden_layers
        wrong = [d for d in self._depths if not 1 <= d <= n_blocks]
        if wrong:
            raise InputError(f"depth:{wrong[0]} was asked for, but the model has {n_blocks} blocks (1 to {n_blocks}).")

    def collate(self, items: Sequence[Tokens], prefix: int) -> TextBatch:
        skip = len(self._prefixes[prefix]) if prefix >= 0 else 0
        inputs, rows, positions, targets = [], [], [], []
        for i, item in enumerate(items):
            own = torch.from_numpy(item.ids[skip:].astype("int64"))
            at = torch.from_numpy(item.response_mask[skip + 1 :].nonzero()[0])  # state at p predicts token p + 1
            inputs.append(own[: int(at[-1]) + 1])  # nothing comes of the states from the last target on
            rows.append(torch.full_like(at, i))
            positions.append(at)
            targets.append(own[at + 1])
        ids = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        counts = torch.as_tensor([len(p) for p in positions])
        device = self.device
        return TextBatch(
            input_ids=ids.to(device, non_blocking=True),
            rows=torch.cat(rows).to(device, non_blocking=True),
            positions=torch.cat(positions).to(device, non_blocking=True),
            targets=torch.cat(targets).to(device, non_blocking=True),
            counts=counts.to(device, non_blocking=True),
            prefix=prefix,
        )

    @torch.inference_mode()
    def losses(self, batch: TextBatch) -> Tensor:
        columns = []
        for nll in self.token_losses(batch):
            # Back on the padded grid and summed by row: a scatter-add would not be deterministic on a GPU.
            grid = nll.new_zeros(batch.input_ids.shape)
            grid[batch.rows, batch.positions] = nll
            columns.append(grid.sum(dim=1) / batch.counts)
        return torch.stack(columns, dim=1)

    @torch.inference_mode()
    def token_losses(self, batch: TextBatch) -> list[Tensor]:
        """float32 [m], one for each subnet of the pass: -log p of every target, row after row."""
        by_onednn = batch.input_ids.device.type == "cpu" and self.model.dtype == torch.float32
        with OneDnnLinear() if by_onednn else nullcontext():
            states = self._states(batch)
            return [self._token_losses(hidden[batch.rows, batch.positions], batch.targets) for hidden in states]

    def _states(self, batch: TextBatch) -> tuple[Tensor, ...]:
        """Final hidden states [b, t, h]: one tensor, or one for each exit depth."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.prefix >= 0:
            cache, length = self._prefix_cache(batch.prefix, len(batch.input_ids))
            width = batch.input_ids.shape[1]
            positions = torch.arange(length, length + width, device=batch.input_ids.device)
            inputs |= {self._cache_argument: cache, "use_cache": True, "position_ids": positions[None]}
        if not self._depths:
            return (self.decoder(**inputs).last_hidden_state,)
        states = self.decoder(**inputs, output_hidden_states=True).hidden_states
        last, norm = len(states) - 1, final_norm(self.decoder)
        # The state after the last block comes back normed already; the others are raw.
        return tuple(states[d] if d == last else norm(states[d]) for d in self._depths)

    def _prefix_cache(self, index: int, n_rows: int) -> tuple[DynamicCache, int]:
        """Keys and values of a shared prefix under the present weights, computed once, repeated for each row."""
        prefix = self._prefixes[index]
        if index not in self._caches:
            cache = DynamicCache()
            ids = prefix[None].to(self.device)
            self.decoder(**{"input_ids": ids, self._cache_argument: cache, "use_cache": True})
            self._caches[index] = [(layer.keys, layer.values) for layer in cache.layers]
        cache = DynamicCache()
        for i, (keys, values) in enumerate(self._caches[index]):
            cache.update(keys.expand(n_rows, -1, -1, -1), values.expand(n_rows, -1, -1, -1), i)
        return cache, len(prefix)

    def _token_losses(self, states: Tensor, targets: Tensor) -> Tensor:
        """float32 [m]: -log p(target). Logits exist for a few positions at a time, never for all."""
        if states.device.type == "cpu" and self._plain_head:
            return self._token_losses_by_block(states, targets)
        step = HEAD_POSITIONS.get(states.device.type, HEAD_POSITIONS["other"])
        nll = torch.empty(len(states), dtype=torch.float32, device=states.device)
        for start in range(0, len(states), step):
            piece = slice(start, start + step)
            logits = self._adjust(self.head(states[piece])).float()
            nll[piece] = F.cross_entropy(logits, targets[piece].to(logits.device), reduction="none").to(nll.device)
        return nll

    def _token_losses_by_block(self, states: Tensor, targets: Tensor) -> Tensor:
        """The same, the vocabulary in blocks: a log-sum-exp of each block's, so that logits never leave the cache."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]
        nll = torch.empty(len(states), dtype=torch.float32)
        for start in range(0, len(states), BLOCK_POSITIONS):
            piece = slice(start, start + BLOCK_POSITIONS)
            x, y = states[piece], targets[piece]
            own = torch.empty(len(x), dtype=torch.float32)
            sums = []
            for first in range(0, len(weight), BLOCK_WORDS):
                block = slice(first, first + BLOCK_WORDS)
                bias = None if self.head.bias is None else self.head.bias[block]  # type: ignore[index]
                logits = self._adjust(F.linear(x, weight[block], bias)).float()
                sums.append(logits.logsumexp(dim=1))
                here = ((y >= first) & (y < first + BLOCK_WORDS)).nonzero()[:, 0]
                own[here] = logits[here, y[here] - first]
            nll[piece] = torch.stack(sums).logsumexp(dim=0) - own
        return nll

    @property
    def _plain_head(self) -> bool:
        """Whether the head is its weight and nothing else: not quantised, not offloaded, no adapter on it."""
        return type(self.head) is nn.Linear and not hasattr(self.head, "_hf_hook")

    def _check_head(self) -> None:
        """Compare with the model's own forward once, so that an unknown scaling of logits cannot go unnoticed."""
        ids = torch.arange(8, device=self.device)[None] % self.model.config.get_text_config().vocab_size
        own = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()
        state = self.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, -1:]
        ours = self._adjust(self.head(state))[0].float().to(own.device)
        scale = float(own.abs().max()) + 1e-6
        coarse = 16 if self.model.dtype != torch.float32 else 1
        if float((own - ours).abs().max()) > coarse * PROBE_TOLERANCE * scale:
            raise InputError(
                f"{type(self.model).__name__} changes its logits after the output head in a way that is not known here "
                "(neither soft-capping nor scaling of the configuration), so its losses would be wrong. Please report it."
            )


def output_head(model: Any) -> nn.Module:
    """The layer that turns states into logits."""
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no language-model head; --model must be a causal language model.")
    return head  # type: ignore[no-any-return]


def decoder_of(model: Any) -> nn.Module:
    """The model without its head: token ids in, final states out."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if decoder is None or decoder is model:
        decoder = model.base_model
    return decoder  # type: ignore[no-any-return]


def final_norm(decoder: nn.Module) -> nn.Module:
    """The norm between the last block and the head, by the names that model families give it."""
    for name in ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f"):
        module = getattr(decoder, name, None)
        if isinstance(module, nn.Module):
            return module
    raise InputError(f"{type(decoder).__name__} has no final norm of a known name, so depth subnets cannot exit early.")


def logit_adjustment(config: Any) -> Callable[[Tensor], Tensor]:
    """What the model does to logits after the head: Gemma's soft-capping, Cohere's and Granite's scaling."""
    text = config.get_text_config()
    cap = getattr(text, "final_logit_softcapping", None)
    times = getattr(text, "logit_scale", None)
    divided = getattr(text, "logits_scaling", None)

    def adjust(logits: Tensor) -> Tensor:
        if times is not None:
            logits = logits * times
        if divided is not None:
            logits = logits / divided
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return adjust
