"""Causal language models: rows become tokens, and the loss is per response token (docs/method.md, section 1).

What makes it fast changes no number beyond rounding: the output head runs on response positions only, in pieces whose logits stay in
cache; rows need no attention mask, because padding on the right cannot be seen by a causal model; the tokens that a whole
group of rows begins with (a template's preamble) are computed once for each subnet; on a CPU, float32 runs
oneDNN's products, and passes with gradients in bfloat16 compute attention over short rows by plain products.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instruct_prune.arrays import Bool, Int32, Int64
from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.batching import Plan
from instruct_prune.encode.item import Tokens
from instruct_prune.errors import InputError
from instruct_prune.models import names
from instruct_prune.models.decoder import (
    Exits,
    UpToHead,
    decoder_of,
    find_exits,
    logit_adjustment,
    long_above,
    output_head,
)
from instruct_prune.models.head import Head
from instruct_prune.models.kernels import OneDnnLinear, ShortAttention
from instruct_prune.models.model import Items, States
from instruct_prune.models.sharing import Shortcuts, Trial, repeated
from instruct_prune.models.text_batch import TextBatch, pooled_states
from instruct_prune.models.text_model import TextModel

MOST_PREFIXES = 32  # shared beginnings whose caches are held at a time
CACHES = ("cache", "past_key_values", "cache_params", "state")  # names that models give to what they keep of a row


@dataclass(frozen=True)
class Prefix:
    """What a shared beginning leaves under the present weights: the model's cache of one row, states [p, h] by depth."""

    cache: Any
    states: dict[int | None, Tensor]


class CausalLM(TextModel):
    """A causal language model of transformers, which its class ``factory`` loads."""

    factory = "AutoModelForCausalLM"
    default = names.DEFAULTS["causal_lm"]
    unit = "tokens"
    pooling = "weighted"
    batch = {"cpu": 4096, "other": 32768}  # noqa: RUF012

    def __init__(
        self, config: ScoreConfig, encode: EncodeConfig, data_format: str | None, loaded: tuple[Any, Any] | None = None
    ) -> None:
        super().__init__(config, encode, data_format, loaded)
        self._prefixes: tuple[Tensor, ...] = ()
        self._shared: dict[int, Prefix] = {}
        self._last_losses: tuple[States, int | None, Tensor] | None = None  # what was asked for last, and the answer
        self._depths: tuple[int, ...] = ()
        self._pooled = False
        self._remarks: list[str] = []
        self._cache_argument: str | None = None
        self.shortcuts = Shortcuts()

    @classmethod
    def holding(cls, module: Any) -> CausalLM:
        """For items that are encoded already: a loaded model, without a tokenizer.

        Raises:
            InputError: as `hold`.
        """
        model = cls(ScoreConfig(), EncodeConfig(), None, (module, None))
        model.hold(module)
        return model

    def dtype(self, wanted: str, device: torch.device) -> str:
        if self._loaded is not None:
            found = str(self._loaded[0].dtype).removeprefix("torch.")
        else:
            found = names.pick_dtype(wanted, device.type)
        if found == "float16" and device.type == "cpu":
            raise InputError(
                "float16 on a CPU: its sums overflow and it is slower than float32. Take --dtype float32 or bfloat16"
                + (", or convert the model first (model.float())." if self._loaded is not None else ".")
            )
        return found

    def load(self, dtype: str, device: torch.device, offload: Path | None = None) -> None:
        if self._loaded is not None:
            self.hold(self._loaded[0].to(device).eval().requires_grad_(False))
            return
        assert self.source is not None
        spread = None if offload is None else "auto"
        module = names.load_causal_lm(self.source, dtype, spread, offload, self.factory)
        self.hold(module if spread else module.to(device))

    def hold(self, module: Any) -> None:
        """Take a loaded transformers model.

        Raises:
            InputError: it has no output head, or does something unknown to its logits.
        """
        self._take(module)
        with torch.inference_mode():
            trial = Trial(module)
            wrong = []
            for decoder in (decoder_of(module), UpToHead(module, self.head.module)):
                self._run_by(decoder)
                wrong.append(trial.alone(self))
                if not wrong[-1]:
                    self.shortcuts = trial.shortcuts(self, self._share_prefix and self._cache_argument is not None)
                    return
        raise InputError(
            f"{type(module).__name__} changes its logits after the output head in a way that is not known here (neither "
            f"soft-capping nor scaling of the configuration): {wrong[-1]}. Its losses would be wrong. Please report it."
        )

    def _take(self, module: Any) -> None:
        self.module: Any = module
        self._long_above = long_above(module.config)
        self._most = min(names.context_of(module.config, 2**30), self._long_above or 2**30)

    @property
    def head(self) -> Head:
        """The output head, as it is now: an adapter takes its place and gives it back."""
        return Head(output_head(self.module), logit_adjustment(self.module.config))

    def _run_by(self, decoder: Any) -> None:
        self.decoder = decoder
        self._exits: Exits | None = None
        self._parameters = inspect.signature(decoder.forward).parameters
        # transformers 5.23 renamed past_key_values, and warns of the old name.
        self._cache_argument = next((name for name in CACHES if name in self._parameters), None)

    # ---- what rows may share ----

    @property
    def remarks(self) -> Sequence[str]:
        return tuple(self._remarks)

    def shared_prefixes(self, items: Items, rows: Int64) -> tuple[Int32 | None, tuple[Int32, ...]]:
        group, prefixes = super().shared_prefixes(items, rows)
        if group is None:
            return None, ()
        return self.allowed(group, prefixes, items.lengths[rows])

    def allowed(
        self, group: Int32, prefixes: tuple[Int32, ...], lengths: Int32
    ) -> tuple[Int32 | None, tuple[Int32, ...]]:
        """The shared beginnings of rows of these lengths, without those that this model cannot share."""
        if prefixes and not self.shortcuts.prefixes:
            shared = np.asarray([len(prefix) for prefix in prefixes])
            saved = int(((np.bincount(group[group >= 0], minlength=len(prefixes)) - 1) * shared).sum())
            total = int(lengths.sum())
            self._remark(
                f"what many rows begin with is computed with each of them, about {saved / (total - saved):.0%} more tokens: the "
                f"cache of {type(self.module).__name__} cannot be shared ({self.shortcuts.reason})"
            )
            return None, ()
        if self._long_above is not None:
            group = np.where(lengths > self._long_above, np.int32(-1), group)
        return group, prefixes

    def alone(self, lengths: Int32) -> Bool | None:
        if not self.shortcuts.batches:
            self._remark(
                f"rows run one by one, since a batch of {type(self.module).__name__} is not exact ({self.shortcuts.reason})"
            )
            return np.ones(len(lengths), dtype=np.bool_)
        if self._long_above is None or not (long := lengths > self._long_above).any():
            return None
        self._remark(
            f"{int(long.sum()):,} rows of more than {self._long_above:,} tokens run one by one: this model turns positions by "
            "other factors (longrope) where a row is longer"
        )
        return long

    def _remark(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks.append(text)

    @property
    def device(self) -> torch.device:
        weight: Tensor = self.module.get_input_embeddings().weight
        hook = getattr(self.module, "_hf_hook", None)
        offloaded = getattr(hook, "execution_device", None)
        return torch.device(offloaded) if weight.device.type == "meta" and offloaded is not None else weight.device

    def depths(self) -> tuple[int, ...]:
        return tuple(range(1, self.module.config.get_text_config().num_hidden_layers + 1))

    def width(self, depth: int | None) -> int:
        size: int = self.module.config.get_text_config().hidden_size
        return size

    def start_pass(self, plan: Plan, depths: Sequence[int], pooled: bool) -> None:
        super().start_pass(plan, depths, pooled)
        self._prefixes = tuple(torch.as_tensor(p, dtype=torch.int64) for p in plan.prefixes)
        self._shared.clear()
        self._depths, self._pooled = tuple(depths), pooled
        if depths and self._exits is None:
            with torch.inference_mode():
                self._exits = find_exits(self.decoder, len(self.depths()), self.device)

    def collate(self, items: Sequence[Tokens], prefix: int) -> TextBatch:
        skip = len(self._prefixes[prefix]) if prefix >= 0 else 0
        whole = self._pooled or self._long_above is not None  # where a row's length decides, it stays as it is
        long = self._long_above is not None and any(len(item.ids) > self._long_above for item in items)
        most = self._most - skip if self.shortcuts.batches and not long else None  # rows that run alone are not padded
        return TextBatch.of(items, prefix, skip, whole, self.device, most)

    def forward(self, batch: TextBatch) -> States:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        with self._fast():
            if batch.prefix >= 0:
                assert self._cache_argument is not None
                cache = repeated(self._prefix(batch.prefix).cache, len(batch.input_ids))
                inputs |= {self._cache_argument: cache, "use_cache": True}
                if self.shortcuts.positions:
                    first = len(self._prefixes[batch.prefix])
                    last = first + batch.input_ids.shape[1]
                    inputs["position_ids"] = torch.arange(first, last, device=batch.input_ids.device)[None]
            return self._output(inputs)[0]

    def losses(self, batch: TextBatch, states: States, depth: int | None) -> Tensor:
        if self._last_losses is not None and self._last_losses[0] is states and self._last_losses[1] == depth:
            return self._last_losses[2]  # several probes of a pass ask for the same
        nll = self.token_losses(batch, states, depth)
        # Back on the padded grid and summed by row: a scatter-add would not be deterministic on a GPU.
        grid = nll.new_zeros(batch.input_ids.shape)
        grid[batch.rows, batch.positions] = nll
        self._last_losses = states, depth, grid.sum(dim=1) / batch.counts
        return self._last_losses[2]

    def token_losses(self, batch: TextBatch, states: States, depth: int | None = None) -> Tensor:
        """float32 [m]: -log p of every target, row after row."""
        hidden = states[depth][batch.rows, batch.positions]
        with self._fast():
            if depth is not None and depth != self.depths()[-1]:
                assert self._exits is not None
                hidden = self._exits.way(hidden)
            return self.head.losses(hidden, batch.targets)

    def pool(self, batch: TextBatch, states: States, depth: int | None, how: str) -> Tensor:
        own = states[depth].float()
        before = (
            self._prefix(batch.prefix).states[depth].float() if batch.prefix >= 0 else own.new_zeros(0, own.shape[2])
        )
        # After an inner block the first token of a row is where attention rests: its state is some hundred times as long
        # as the others' and says nothing about the row. The norm at the end of the model tames it.
        return pooled_states(batch, own, before, how, first=0 if depth in (None, self.depths()[-1]) else 1)

    def _fast(self) -> AbstractContextManager[Any]:
        if self.device.type != "cpu":
            return nullcontext()
        if self.module.dtype == torch.float32:
            return OneDnnLinear()
        return ShortAttention() if torch.is_grad_enabled() else nullcontext()

    def _output(self, inputs: Mapping[str, Any]) -> tuple[dict[int | None, Tensor], Any]:
        """Hidden states [b, t, h] after the model and after each depth that the pass reads, and the cache that is left."""
        self._last_losses = None
        known = {name: value for name, value in inputs.items() if name in self._parameters}
        output = self.decoder(**known, **({"output_hidden_states": True} if self._depths else {}))
        every = output.hidden_states if self._depths else ()
        states: dict[int | None, Tensor] = {None: output.last_hidden_state}
        for depth in self._depths:
            assert self._exits is not None
            # After the last block is where the model ends: its final norm is in that state, and in no other.
            states[depth] = every[self._exits.state[depth]] if depth in self._exits.state else output.last_hidden_state
        return states, getattr(output, self._cache_argument, None) if self._cache_argument is not None else None

    def _prefix(self, index: int) -> Prefix:
        """What a shared prefix leaves, computed once for each subnet."""
        if index not in self._shared:
            if len(self._shared) == MOST_PREFIXES:
                del self._shared[next(iter(self._shared))]  # the oldest: a cache may take as much memory as a batch
            ids = self._prefixes[index][None].to(self.device)
            states, cache = self._output({"input_ids": ids, "use_cache": True})
            self._shared[index] = Prefix(cache, {d: s[0] for d, s in states.items()} if self._pooled else {})
        return self._shared[index]
