"""What rows may share is found on the model itself; what does not hold is switched off and said; what cannot be is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_rows import alpaca_rows, write_jsonl
from test_architectures import our_losses, plain_losses, rows
from test_causal_lm import fast_losses
from tiny_architectures import tiny_model
from torch import nn

from instruct_prune import DataConfig, EncodeConfig, InputError, Run, ScoreConfig
from instruct_prune.encode.batching import plan_batches
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.models.names import context_of
from instruct_prune.models.sharing import Shortcuts, repeated


def exact(module: Any, data: list[Any]) -> CausalLM:
    """The model of the house, after its losses were compared with the plain ones."""
    held = CausalLM.holding(module)
    expected = plain_losses(module, data)
    for batch_tokens in (64, 1000):
        np.testing.assert_allclose(our_losses(held, data, batch_tokens, True), expected, atol=1e-4, rtol=0)
    return held


# ---- caches ----


@pytest.mark.parametrize("name", ["llama", "mamba2", "qwen3_5_text", "lfm2", "nemotron_h", "rwkv"])
def test_a_cache_is_repeated_and_left_as_it_was(name: str) -> None:
    model = tiny_model(name)
    with torch.inference_mode():
        output = CausalLM.holding(model).decoder(input_ids=torch.arange(3, 13)[None], use_cache=True)
    cache = next(getattr(output, word) for word in ("cache", "past_key_values", "state") if hasattr(output, word))

    def tensors(value: Any) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
        inside = vars(value).values() if inside is None and hasattr(value, "__dict__") else inside
        return [tensor for entry in inside or () for tensor in tensors(entry)]

    before = [tensor.clone() for tensor in tensors(cache)]
    with torch.inference_mode():
        three = repeated(cache, 3)
    assert type(three) is type(cache)
    batched = [(old, new) for old, new in zip(before, tensors(three), strict=True) if old.ndim > 1]
    assert batched
    for old, new in batched:
        assert len(new) == 3
        assert all(torch.equal(new[i], old[0]) for i in range(3))
        with torch.inference_mode():
            new.zero_()
    assert all(torch.equal(old, now) for old, now in zip(before, tensors(cache), strict=True))


def test_a_copy_is_freed_as_soon_as_nobody_has_it() -> None:
    # It holds the keys and values of a whole batch: copies that wait for the garbage collector fill the memory.
    original = [torch.zeros(1, 2)]
    gc.collect()
    gc.disable()
    try:
        copy = weakref.ref(repeated(original, 3)[0])
        assert copy() is None
    finally:
        gc.enable()


def test_a_cache_that_cannot_be_continued_is_not_shared_and_the_price_is_said() -> None:
    held = exact(tiny_model("mamba"), rows())
    assert not held.shortcuts.prefixes
    assert held.shortcuts.batches
    # 20 of the tokens of 11 of the 12 rows would not have been computed
    lengths = sum(len(row.ids) for row in rows())
    (remark,) = held.remarks
    assert f"about {220 / (lengths - 220):.0%} more tokens" in remark
    assert "MambaForCausalLM" in remark


def test_nothing_is_said_of_prefixes_where_there_are_none() -> None:
    held = CausalLM.holding(tiny_model("mamba"))
    assert held.allowed(np.full(3, -1, dtype=np.int32), (), np.asarray([5, 6, 7], dtype=np.int32))[1] == ()
    assert held.remarks == ()


# ---- batches ----


class LeakyNorm(nn.Module):
    """A norm over the whole batch: rows change each other's losses."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = self.inner(states) + 0.5 * states.mean(dim=0, keepdim=True)
        return whole


def test_rows_run_one_by_one_where_a_batch_changes_losses(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    model.model.norm = LeakyNorm(model.model.norm)
    held = exact(model, rows())
    assert not held.shortcuts.batches
    assert held.shortcuts.prefixes
    assert "one by one" in held.remarks[0]


def test_plans_keep_rows_alone() -> None:
    lengths = np.asarray([30, 30, 9, 9, 9], dtype=np.int32)
    alone = lengths > 10
    plan = plan_batches(np.arange(5), lengths, batch_tokens=1000, alone=alone)
    batches = [batch.rows.tolist() for chunk in plan.chunks for batch in chunk]
    assert batches == [[0], [1], [2, 3, 4]]


# ---- longrope ----


def longrope(limit: int) -> Any:
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=limit,
        initializer_range=0.3,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": limit,
        },
    )
    return Phi3ForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("limit", [len(rows()[3].ids), len(rows()[3].ids) - 1, 60, 200])
def test_a_batch_never_mixes_rows_of_other_rotary_factors(limit: int) -> None:
    """Rows of 24 to 64 tokens; one has exactly as many as the limit, or one more."""
    data = rows()
    held = exact(longrope(limit), data)
    long = sum(len(row.ids) > limit for row in data)
    assert any("longrope" in remark for remark in held.remarks) == bool(long)


def test_the_factors_matter() -> None:
    """Else the test above could not fail."""
    short, long = (plain_losses(longrope(limit), rows()) for limit in (200, 20))
    assert np.abs(np.subtract(short, long)).max() > 0.01


# ---- depth ----


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        ("llama", "model.layers"),
        ("gpt2", "transformer.h"),
        ("opt", "model.decoder.layers"),
        ("gpt_neox", "gpt_neox.layers"),
        ("mpt", "transformer.blocks"),
        ("mamba", "backbone.layers"),
        ("mamba2", "backbone.layers"),
        ("falcon_mamba", "backbone.layers"),
        ("rwkv", "rwkv.blocks"),
        ("nemotron_h", "model.layers"),
        ("bloom", "transformer.h"),
        ("cohere", "model.layers"),
        ("openai-gpt", "transformer.h"),
        ("phi", "model.layers"),
        ("bert", "bert.encoder.layer"),
    ],
)
def test_an_early_exit_is_a_model_with_fewer_blocks(name: str, stack: str) -> None:
    model, cut = tiny_model(name), tiny_model(name)
    owner, _, last = stack.rpartition(".")
    parent = cut.get_submodule(owner)
    setattr(parent, last, nn.ModuleList(list(getattr(parent, last))[:1]))
    shares = CausalLM.holding(model).shortcuts.prefixes
    found = fast_losses(model, rows(), 300, shares, (SubnetSpec("depth", 1), SubnetSpec("depth", 2)))
    np.testing.assert_allclose(found[:, 0], plain_losses(cut, rows()), atol=1e-4, rtol=0)
    np.testing.assert_allclose(found[:, 1], plain_losses(model, rows()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gemma3n_text", "inkling2_text", "deepseek_v4"])
def test_a_depth_that_cannot_be_read_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"depth|earlier"):
        fast_losses(tiny_model(name), rows(), 300, False, (SubnetSpec("depth", 1),))


# ---- refused in words ----


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertLMHeadModel(BertConfig(vocab_size=96, is_decoder=False, initializer_range=0.3, **sizes)).eval()
    with pytest.raises(InputError, match=r"tokens that come after it .* not a causal language model"):
        CausalLM.holding(model.requires_grad_(False))


def test_rounding_is_no_look_ahead_where_losses_are_large(tiny_llama: Callable[..., Any]) -> None:
    """Random tokens cost this model hundreds of nats, and another kernel for longer rows may round each by a thousandth of that."""
    module = tiny_llama()
    with torch.no_grad():
        module.lm_head.weight.mul_(400)
    module.lm_head.register_forward_hook(lambda head, x, logits: logits.float() * (1 + (logits.shape[1] > 40) / 1024))
    CausalLM.holding(module.to(torch.bfloat16))


def test_attention_that_fails_in_long_rows_only_is_refused() -> None:
    from transformers import BigBirdConfig, BigBirdForCausalLM

    with pytest.raises(InputError, match="random hashes"):
        CausalLM.holding(tiny_model("reformer"))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(InputError, match=r"block_sparse .* Set attention_type to original_full"):
        CausalLM.holding(BigBirdForCausalLM(BigBirdConfig(vocab_size=96, is_decoder=True, **sizes)).eval())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_no_numbers_are_refused(tiny_llama: Callable[..., Any], value: float) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(InputError, match=r"not a finite number in float32\. Its weights are damaged"):
        CausalLM.holding(model)


def test_a_model_that_cannot_run_is_refused(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.down_proj = nn.Linear(7, 7)
    with pytest.raises(InputError, match=r"LlamaForCausalLM cannot be run on a row of \d+ tokens: RuntimeError"):
        CausalLM.holding(model)


def test_float16_on_a_cpu_is_refused(tiny_llama: Callable[..., Any], tiny_model_folder: Path) -> None:
    cpu = torch.device("cpu")
    named = CausalLM(ScoreConfig(str(tiny_model_folder)), EncodeConfig(), "alpaca")
    with pytest.raises(InputError, match=r"float16 on a CPU: .* --dtype float32 or bfloat16"):
        named.dtype("float16", cpu)
    assert named.dtype("float16", torch.device("cuda")) == "float16"
    with pytest.raises(InputError, match=r"model\.float\(\)"):
        CausalLM(ScoreConfig(), EncodeConfig(), None, (tiny_llama().half(), None)).dtype("auto", cpu)


# ---- whole runs ----


def scored(tmp_path: Path, model: Any, tokenizer: Any, **options: Any) -> Run:
    run = Run(tmp_path / "run")
    tmp_path.mkdir(exist_ok=True)
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(24))
    encode = EncodeConfig(**options)
    run.score(
        DataConfig((str(data),)),
        ScoreConfig(subnets=("dense",), batch_tokens=400),
        encode=encode,
        model=(model, tokenizer),
    )
    return run


def test_a_run_tells_what_it_could_not_share(
    tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "initializer_range": 0.3}
    model = MambaForCausalLM(MambaConfig(vocab_size=len(tiny_tokenizer), **sizes)).eval()
    run = scored(tmp_path, model, tiny_tokenizer)
    assert np.isfinite(run.scores.losses).sum() == 24
    told = capsys.readouterr().err
    assert told.count("more tokens: the cache of MambaForCausalLM cannot be shared") == 1
    assert "note: what many rows begin with" in told


def test_parts_of_another_plan_are_not_taken(
    tmp_path: Path, tiny_tokenizer: Any, tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was begun where prefixes are shared, and goes on where they are not: same losses, no part of the first."""
    from instruct_prune.errors import IncompleteRunError
    from instruct_prune.measure import engine
    from instruct_prune.models import sharing

    model = tiny_llama(vocab_size=len(tiny_tokenizer))
    whole = scored(tmp_path / "whole", model, tiny_tokenizer).scores
    monkeypatch.setattr(engine, "_sigterm", _stopped_at_once)
    with pytest.raises(IncompleteRunError):
        scored(tmp_path / "broken", model, tiny_tokenizer)
    monkeypatch.undo()
    monkeypatch.setattr(sharing.Trial, "shortcuts", lambda self, model, prefixes: Shortcuts(False, False, True, "so"))
    again = scored(tmp_path / "broken", model, tiny_tokenizer).scores
    np.testing.assert_allclose(again.losses, whole.losses, atol=1e-5)


class _stopped_at_once:
    """In place of a signal handler: stops after three parts."""

    def __enter__(self) -> Any:
        return _AfterSome()

    def __exit__(self, *_: object) -> None:
        return None


class _AfterSome:
    def __init__(self) -> None:
        self.asked = 0

    def __bool__(self) -> bool:
        self.asked += 1
        return self.asked > 3

    def __getitem__(self, i: int) -> int:
        return 15


# ---- vocabulary and positions ----


def test_a_token_without_an_embedding_is_told_before_scoring(
    tmp_path: Path, tiny_tokenizer: Any, tiny_llama: Callable[..., Any]
) -> None:
    n = len(tiny_tokenizer)
    with pytest.raises(
        InputError, match=rf"line \d+: token .* the tokenizer has {n} tokens, the model embeddings for 280 only"
    ):
        scored(tmp_path, tiny_llama(vocab_size=280), tiny_tokenizer)


def test_tokens_without_embeddings_that_do_not_occur_are_a_note(
    tmp_path: Path, tiny_tokenizer: Any, tiny_llama: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    n = len(tokenizer)
    tokenizer.add_tokens(["<image_soft_token>"])
    run = scored(tmp_path, tiny_llama(vocab_size=n), tokenizer)
    assert np.isfinite(run.scores.losses).sum() == 24
    note = f"the tokenizer has {n + 1} tokens, the model embeddings for {n}: none of the others occurs in these rows"
    assert note in capsys.readouterr().err


def test_a_longer_row_than_there_are_positions_is_cut_and_said(
    tmp_path: Path, tiny_tokenizer: Any, tiny_llama: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama(vocab_size=len(tiny_tokenizer), max_position_embeddings=64)
    run = scored(tmp_path, model, tiny_tokenizer, max_length=512)
    assert "note: --max-length 512: the model has 64 positions, so that is the limit" in capsys.readouterr().err
    lengths = run.scores.n_prompt + run.scores.n_response
    assert lengths.max() == 64
    assert np.isfinite(run.scores.losses).all()


def test_a_context_that_is_not_stated_is_what_was_asked_for(tiny_tokenizer: Any) -> None:
    from transformers import MambaConfig, RobertaConfig

    class Held:
        config = MambaConfig(vocab_size=len(tiny_tokenizer))

    asked = CausalLM(ScoreConfig(), EncodeConfig(max_length=5000), "alpaca", (Held(), tiny_tokenizer))
    assert asked.writing().max_length == 5000
    assert CausalLM(ScoreConfig(), EncodeConfig(), "alpaca", (Held(), tiny_tokenizer)).writing().max_length == 2048
    assert context_of(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512


@pytest.mark.parametrize(
    ("subnets", "told"), [(("dense", "dropout:0.1"), "no attention"), (("dense", "depth:3"), "2 depths")]
)
def test_subnets_that_the_model_does_not_have_are_told_before_any_is_measured(
    tmp_path: Path, tiny_tokenizer: Any, subnets: tuple[str, ...], told: str
) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "initializer_range": 0.3}
    model = MambaForCausalLM(MambaConfig(vocab_size=len(tiny_tokenizer), **sizes)).eval()
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(12))
    with pytest.raises(InputError, match=told):
        Run(tmp_path / "run").score(
            DataConfig((str(data),)), ScoreConfig(subnets=subnets), model=(model, tiny_tokenizer)
        )
    assert not list((tmp_path / "run").rglob("0*.parquet"))
