"""Causal language models: rows become tokens, and the loss is per response token (METHOD section 1).

What makes it fast changes no number: the output head runs on response positions only, in pieces whose logits stay in
cache; rows need no attention mask, because padding on the right cannot be seen by a causal model; the tokens that a whole
group of rows begins with (a template's preamble) are computed once for each subnet; float32 on a CPU runs oneDNN's products.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from instruct_prune.arrays import Int32, Int64
from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.batching import Plan, shared_prefixes
from instruct_prune.encode.item import Encoded, Tokens
from instruct_prune.encode.store import TokenStore, write_store
from instruct_prune.encode.tokenize import Encoder, Writing
from instruct_prune.errors import InputError
from instruct_prune.models import names
from instruct_prune.models.decoder import decoder_of, final_norm, logit_adjustment, output_head
from instruct_prune.models.linear import OneDnnLinear
from instruct_prune.models.model import Advance, Items, Model, States
from instruct_prune.registry import is_reference, load_attribute
from instruct_prune.rows.row import Row

ENCODE_BATCH = 2048
HEAD_POSITIONS = {"cpu": 256, "other": 4096}  # positions whose logits exist at a time when the vocabulary is whole
BLOCK_POSITIONS, BLOCK_WORDS = 1024, 2048  # and when it is not: 8 MB of float32 logits, which a CPU keeps in cache
CHECK_TOLERANCE = 1e-3  # relative, in the model's own dtype twice as many bits would be asked of float32


@dataclass(frozen=True)
class TextBatch:
    """Right-padded rows.

    Attributes:
        input_ids: int64 [b, t], without the shared prefix and, where no states are pooled, without what comes after the
            last but one target.
        lengths: int64 [b], tokens of each row in ``input_ids``.
        rows, positions: int64 [m], where the states that predict the m targets lie.
        targets: int64 [m].
        counts: int64 [b], targets of each row.
        prefix: index of the shared prefix, or -1.
    """

    input_ids: Tensor
    lengths: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    counts: Tensor
    prefix: int


@dataclass(frozen=True)
class Prefix:
    """What a shared beginning leaves under the present weights: keys and values by layer, states [p, h] by depth."""

    cache: list[tuple[Tensor, Tensor]]
    states: dict[int | None, Tensor]


class CausalLM(Model):
    """A causal language model of transformers.

    Args:
        config: its name and how it is run.
        encode: how rows become tokens.
        data_format: ``Source.format``; decides what the template "auto" is.
        loaded: a model and its tokenizer made in Python, in place of those that ``config.model`` names.

    Raises:
        InputError: no such model, no fast tokenizer, a template that does not fit.
    """

    default = "smollm2-135m-instruct"
    unit = "tokens"
    batch = {"cpu": 4096, "other": 32768}  # noqa: RUF012

    def __init__(
        self, config: ScoreConfig, encode: EncodeConfig, data_format: str | None, loaded: tuple[Any, Any] | None = None
    ) -> None:
        self._encode = encode
        self._data_format = data_format
        self.name = (config.model or self.default) if loaded is None else type(loaded[0]).__name__
        if loaded is None and is_reference(self.name):
            loaded = from_factory(self.name)
        self._loaded = loaded
        self._share_prefix = config.share_prefix
        self.source = None if loaded is not None else names.find_model(self.name, config.model_revision)
        self._prefixes: tuple[Tensor, ...] = ()
        self._shared: dict[int, Prefix] = {}
        self._depths: tuple[int, ...] = ()
        self._pooled = False

    @classmethod
    def holding(cls, module: Any) -> CausalLM:
        """For items that are encoded already: a loaded model, without a tokenizer.

        Raises:
            InputError: as `hold`.
        """
        model = cls(ScoreConfig(), EncodeConfig(), None, (module, None))
        model.hold(module)
        return model

    # ---- rows become tokens ----

    @cached_property
    def tokenizer(self) -> Any:
        if self._loaded is not None:
            return self._loaded[1]
        assert self.source is not None
        return names.load_tokenizer(self.source)

    @property
    def bos_token_id(self) -> int | None:
        found: int | None = self.tokenizer.bos_token_id
        return found

    @cached_property
    def encoder(self) -> Encoder:
        """Rows to tokens, under the template that the options and the data ask for."""
        wanted = self._encode.max_length
        if wanted is not None and wanted < 2:
            raise InputError(f"--max-length {wanted}: a row needs at least two tokens, one of them to be predicted.")
        context = (
            names.context_of(self._loaded[0].config) if self._loaded is not None else names.context_length(self.source)  # type: ignore[arg-type]
        )
        return Encoder(
            self.tokenizer,
            self._encode.template,
            max_length=min(wanted or context, context),
            turns=self._encode.turns,
            overlong=self._encode.overlong,
            data_format=self._data_format,
        )

    def writing(self) -> Writing:
        return self.encoder.writing

    @property
    def encoding(self) -> Mapping[str, Any]:
        # The tokenizer's name may be a path: its hash is what counts.
        return {k: v for k, v in self.encoder.identity.items() if k != "tokenizer"}

    @property
    def notes(self) -> Sequence[str]:
        return self.encoder.notes

    def write_items(self, folder: Path, rows: Iterable[Row], advance: Advance, strict: bool) -> None:
        write_store(folder, self._encoded(rows, advance))

    def _encoded(self, rows: Iterable[Row], advance: Advance) -> Iterator[tuple[Encoded, str, int]]:
        waiting = iter(rows)
        while batch := list(islice(waiting, ENCODE_BATCH)):
            for row, encoded in zip(batch, self.encoder.encode(batch), strict=True):
                yield encoded, row.source, row.line
            advance(len(batch))

    def open_items(self, folder: Path) -> TokenStore:
        return TokenStore.open(folder)

    def cost(self, item: Tokens) -> int:
        return len(item.ids)

    def shared_prefixes(self, items: Items, rows: Int64) -> tuple[Int32 | None, tuple[Int32, ...]]:
        if not self._share_prefix:
            return None, ()
        assert isinstance(items, TokenStore)
        return shared_prefixes(items.ids, items.offset, rows, items.first_target[rows])

    # ---- tokens become numbers ----

    @property
    def identity(self) -> Mapping[str, Any]:
        if self.source is not None:
            return self.source.identity()
        assert self._loaded is not None
        return {"name": self.name, "content": names.weights_hash(self._loaded[0])}

    def dtype(self, wanted: str, device: torch.device) -> str:
        if self._loaded is not None:
            return str(self._loaded[0].dtype).removeprefix("torch.")
        return names.pick_dtype(wanted, device.type)

    def load(self, dtype: str, device: torch.device, offload: Path | None = None) -> None:
        if self._loaded is not None:
            self.hold(self._loaded[0].to(device).eval().requires_grad_(False))
            return
        assert self.source is not None
        if offload is not None:
            self.hold(names.load_causal_lm(self.source, dtype, "auto", offload))
        else:
            self.hold(names.load_causal_lm(self.source, dtype).to(device))

    def hold(self, module: Any) -> None:
        """Take a loaded transformers model.

        Raises:
            InputError: it has no output head, or does something unknown to its logits.
        """
        self.module: Any = module
        self.head = output_head(module)
        self.decoder = decoder_of(module)
        self._adjust = logit_adjustment(module.config)
        # transformers 5.23 renamed the argument, and warns of the old name.
        parameters = inspect.signature(self.decoder.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        with torch.inference_mode():
            self._check_head()

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
        self._prefixes = tuple(torch.as_tensor(p, dtype=torch.int64) for p in plan.prefixes)
        self._shared.clear()
        self._depths, self._pooled = tuple(depths), pooled
        n_blocks = self.module.config.get_text_config().num_hidden_layers
        wrong = [d for d in depths if not 1 <= d <= n_blocks]
        if wrong:
            raise InputError(f"depth {wrong[0]} was asked for, but the model has {n_blocks} blocks (1 to {n_blocks}).")

    def collate(self, items: Sequence[Tokens], prefix: int) -> TextBatch:
        skip = len(self._prefixes[prefix]) if prefix >= 0 else 0
        inputs, rows, positions, targets = [], [], [], []
        for i, item in enumerate(items):
            own = torch.from_numpy(item.ids[skip:].astype("int64"))
            at = torch.from_numpy(item.response_mask[skip + 1 :].nonzero()[0])  # state at p predicts token p + 1
            # Nothing comes of the states from the last target on, unless states are pooled.
            inputs.append(own if self._pooled else own[: int(at[-1]) + 1])
            rows.append(torch.full_like(at, i))
            positions.append(at)
            targets.append(own[at + 1])

        def there(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        return TextBatch(
            input_ids=there(nn.utils.rnn.pad_sequence(inputs, batch_first=True)),
            lengths=there(torch.as_tensor([len(ids) for ids in inputs])),
            rows=there(torch.cat(rows)),
            positions=there(torch.cat(positions)),
            targets=there(torch.cat(targets)),
            counts=there(torch.as_tensor([len(p) for p in positions])),
            prefix=prefix,
        )

    def forward(self, batch: TextBatch) -> States:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.prefix >= 0:
            length = len(self._prefixes[batch.prefix])
            width = batch.input_ids.shape[1]
            positions = torch.arange(length, length + width, device=batch.input_ids.device)
            cache = self._cache_for(batch.prefix, len(batch.input_ids))
            inputs |= {self._cache_argument: cache, "use_cache": True, "position_ids": positions[None]}
        with self._fast():
            return self._states(inputs)

    def losses(self, batch: TextBatch, states: States, depth: int | None) -> Tensor:
        nll = self.token_losses(batch, states, depth)
        # Back on the padded grid and summed by row: a scatter-add would not be deterministic on a GPU.
        grid = nll.new_zeros(batch.input_ids.shape)
        grid[batch.rows, batch.positions] = nll
        return grid.sum(dim=1) / batch.counts

    def token_losses(self, batch: TextBatch, states: States, depth: int | None = None) -> Tensor:
        """float32 [m]: -log p of every target, row after row."""
        hidden = states[depth][batch.rows, batch.positions]
        with self._fast():
            # The state after the last block comes back normed already; the others are raw.
            if depth is not None and depth != self.depths()[-1]:
                hidden = final_norm(self.decoder)(hidden)
            return self._token_losses(hidden, batch.targets)

    def pool(self, batch: TextBatch, states: States, depth: int | None, how: str) -> Tensor:
        own = states[depth].float()
        before = (
            self._prefix(batch.prefix).states[depth].float() if batch.prefix >= 0 else own.new_zeros(0, own.shape[2])
        )
        if how == "last":
            return own[torch.arange(len(own), device=own.device), batch.lengths - 1]
        place = torch.arange(own.shape[1], device=own.device)[None]
        inside = (place < batch.lengths[:, None]).float()
        weights = inside if how == "mean" else inside * (place + len(before) + 1)
        head = torch.ones(len(before), device=own.device)
        head = head if how == "mean" else head.cumsum(0)
        total = torch.einsum("bt,bth->bh", weights, own) + head @ before
        return total / (weights.sum(dim=1) + head.sum())[:, None]

    def _fast(self) -> AbstractContextManager[Any]:
        return OneDnnLinear() if self.device.type == "cpu" and self.module.dtype == torch.float32 else nullcontext()

    def _states(self, inputs: Mapping[str, Any]) -> dict[int | None, Tensor]:
        """Hidden states [b, t, h] after the model, and after each depth that the pass reads."""
        output = self.decoder(**inputs, **({"output_hidden_states": True} if self._depths else {}))
        every = output.hidden_states if self._depths else ()
        return {None: output.last_hidden_state, **{depth: every[depth] for depth in self._depths}}

    def _prefix(self, index: int) -> Prefix:
        """What a shared prefix leaves, computed once for each subnet."""
        if index not in self._shared:
            cache = DynamicCache()
            ids = self._prefixes[index][None].to(self.device)
            states = self._states({"input_ids": ids, self._cache_argument: cache, "use_cache": True})
            layers = [(layer.keys, layer.values) for layer in cache.layers]
            self._shared[index] = Prefix(layers, {d: s[0] for d, s in states.items()} if self._pooled else {})
        return self._shared[index]

    def _cache_for(self, index: int, n_rows: int) -> DynamicCache:
        """Keys and values of a shared prefix under the present weights, repeated for each row."""
        cache = DynamicCache()
        with self._fast():
            for i, (keys, values) in enumerate(self._prefix(index).cache):
                cache.update(keys.expand(n_rows, -1, -1, -1), values.expand(n_rows, -1, -1, -1), i)
        return cache

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
        ids = torch.arange(8, device=self.device)[None] % self.module.config.get_text_config().vocab_size
        own = self.module(input_ids=ids, use_cache=False).logits[0, -1].float()
        state = self.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, -1:]
        ours = self._adjust(self.head(state))[0].float().to(own.device)
        scale = float(own.abs().max()) + 1e-6
        coarse = 16 if self.module.dtype != torch.float32 else 1
        if float((own - ours).abs().max()) > coarse * CHECK_TOLERANCE * scale:
            raise InputError(
                f"{type(self.module).__name__} changes its logits after the output head in a way that is not known here "
                "(neither soft-capping nor scaling of the configuration), so its losses would be wrong. Please report it."
            )


def from_factory(name: str) -> tuple[Any, Any]:
    """Call a factory of the user's own: (transformers model, its tokenizer).

    Raises:
        InputError: no such module or function, or it returns something else.
    """
    made = load_attribute(name, "--model", "a factory, a function without parameters,")()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise InputError(
            f"--model {name}: for texts, the factory must return (a causal language model of transformers, its tokenizer)."
        )
    return made
