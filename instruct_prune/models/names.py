"""From a model's name to what is loaded: a Hub id, a local folder, a GGUF file, or an embedded default.

A name is one of these or an error; no other model is ever taken in its place. An embedded default whose wheel is not
installed is the same model on the Hub, which is said on standard error.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.models.pretrained import NO_SDPA, loaded, whole
from instruct_prune.models.sources import EMBEDDED, check_on_hub, converted_gguf, hub_commit, weights_of
from instruct_prune.registry import load_attribute, suggestion

DEFAULTS = {"causal_lm": "smollm2-135m-instruct", "image_encoder": "efficientnet-lite0"}
"""{kind of model: the name that is taken when the user names none}."""

SAMPLE_BYTES = 1 << 20  # of a file of weights, at its start, middle and end

NO_SIGHT = (
    "the rows show pictures, and no model for them is installed: name a vision-language model with --model (a Hub id or a folder). "
    "To score the text alone, name their column: --columns messages=COLUMN."
)


@dataclass(frozen=True)
class ModelSource:
    """What ``from_pretrained`` is given.

    Attributes:
        name: as the user wrote it.
        location: folder, file of weights, or Hub id.
        revision: for Hub ids.
        is_local: whether ``location`` is a folder or file.
    """

    name: str
    location: str
    revision: str | None
    is_local: bool

    def identity(self) -> dict[str, Any]:
        """Name and content: hash of the configuration and of samples of the weight files, or the Hub commit."""
        if self.is_local and Path(self.location).is_file():
            with open(self.location, "rb") as file:
                return {"name": self.name, "content": hashlib.file_digest(file, "sha256").hexdigest()}
        if self.is_local:
            return {"name": self.name, "content": folder_fingerprint(Path(self.location))}
        return {"name": self.name, "revision": hub_commit(self.location, self.revision)}


def find_model(name: str, revision: str | None = None, option: str = "--model") -> ModelSource:
    """Resolve a name to what can be loaded; a GGUF file is converted on first use.

    Raises:
        InputError: as `locate`.
    """
    source = locate(name, revision, option)
    path = Path(source.location)
    return replace(source, location=str(converted_gguf(path))) if path.suffix == ".gguf" else source


def check_model(name: str, revision: str | None = None, option: str = "--model") -> None:
    """Refuse a name that cannot be loaded; nothing is loaded or converted, and a Hub id is asked for once.

    Raises:
        InputError: as `locate`, or the Hub does not have it, or cannot be reached.
    """
    source = locate(name, revision, option)
    if not source.is_local:
        check_on_hub(source.location, source.revision, option)


def locate(name: str, revision: str | None = None, option: str = "--model") -> ModelSource:
    """Where the model of a name lies.

    Raises:
        InputError: the name is empty, a path that is not there, an embedded default that is neither installed nor on the
            Hub, or nothing that could be a Hub id.
    """
    if not name:
        raise InputError(f"{option} is empty. Name a Hub id, a folder, a GGUF file, or one of {', '.join(EMBEDDED)}.")
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"{option} {name}: there is no such GGUF file.")
        return ModelSource(name, str(path), None, True)
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "modules.json", "adapter_config.json")):
            raise InputError(f"{option} {name}: the folder has no config.json, so it is not a transformers model.")
        return ModelSource(name, str(path), None, True)
    if name.lower() in EMBEDDED:
        return _embedded(name.lower(), option)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{option} {name}: there is no such model folder or GGUF file.")
    if "/" not in name:
        raise InputError(
            f"{option} {name}: unknown model.{suggestion(name.lower(), EMBEDDED)} Name a Hub id (owner/name), a local folder, "
            f"a GGUF file, or one of the embedded defaults: {', '.join(EMBEDDED)}."
        )
    return ModelSource(name, name, revision, False)


def _embedded(name: str, option: str) -> ModelSource:
    path = weights_of(name, option)
    if path is None:
        return ModelSource(name, EMBEDDED[name].hub or "", None, False)
    return ModelSource(name, str(path), None, True)


def name_for_trainers(name: str) -> str:
    """What a trainer's file calls a model, so that it loads from any folder: a Hub id, or an absolute path.

    An embedded default is named by its Hub id, a GGUF file by the folder of the model that was made of it.
    """
    entry = EMBEDDED.get(name.lower())
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return os.path.abspath(converted_gguf(path))
    if path.is_dir():
        return os.path.abspath(path)
    return entry.hub if entry is not None and entry.hub is not None else name


def call_factory(name: str, wanted: str) -> tuple[Any, Any]:
    """What the user's own ``module:factory`` makes: a module of torch, and what is called to make its inputs.

    Raises:
        InputError: there is no such function, it has parameters, or it returns something else (then ``wanted`` is told).
    """
    from torch import nn

    factory = load_attribute(name, "--model", "a factory, a function without parameters,")
    try:
        inspect.signature(factory).bind()  # TypeError: it has parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"--model {name}: {error}. Write module:factory, a function without parameters.") from error
    made = factory()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1])):
        raise InputError(f"--model {name}: {wanted}.")
    return made


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer.

    Raises:
        InputError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    return loaded(AutoTokenizer, source)


def load_causal_lm(
    source: ModelSource, dtype: str, device_map: str | dict[str, Any] | None = None, offload_folder: Path | None = None,
    factory: str = "AutoModelForCausalLM",
) -> Any:  # fmt: skip
    """The language model, in evaluation mode, without gradients.

    Args:
        source: which model.
        dtype: torch name of the weights' type.
        device_map: "auto" or {module: device, "cpu" or "disk"} to spread one model over devices.
        offload_folder: where weights that fit nowhere else go.
        factory: the class of transformers that makes it.
    """
    import torch
    import transformers

    kind = getattr(transformers, factory)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    if device_map is not None:
        options |= {"device_map": device_map, "offload_folder": None if offload_folder is None else str(offload_folder)}
    try:
        model = whole(kind, source, **options)
    except ValueError as error:
        if NO_SDPA not in str(error):
            raise
        model = whole(kind, source, **{**options, "attn_implementation": "eager"})
    return model.eval().requires_grad_(False)


def load_vision_model(source: ModelSource, dtype: str) -> Any:
    """An image model of transformers (of CLIP and SigLIP the vision part), in evaluation mode, without heads.

    Raises:
        InputError: it cannot be loaded, or takes no pixels.
    """
    import torch
    from transformers import AutoModel

    model = whole(AutoModel, source, ("pool", "head"), dtype=getattr(torch, dtype))
    model = getattr(model, "vision_model", model)
    if not hasattr(model, "main_input_name"):  # before transformers 5 the vision part is a bare module
        model.main_input_name = next(iter(inspect.signature(model.forward).parameters), "")
    if model.main_input_name != "pixel_values":
        raise InputError(
            f"model {source.name!r} ({type(model).__name__}) takes no pictures. Name an image model (ResNet, ViT, ConvNeXt, "
            "DINOv2, CLIP, SigLIP, ...), a module:factory, or efficientnet-lite0."
        )
    # Poolers on top are never run here; left in, their weights would take part in global magnitude thresholds.
    if getattr(model, "pooler", None) is not None and any(True for _ in model.pooler.parameters()):
        model.pooler = None
    if getattr(model, "use_head", False):  # SigLIP
        model.use_head = False
        del model.head
    return model.eval().requires_grad_(False)


def load_image_processor(source: ModelSource) -> Any:
    """The model's image processor, in its PIL version: torchvision is not needed.

    Raises:
        InputError: it has none, or it needs torchvision.
    """
    import transformers
    from transformers import AutoImageProcessor

    options: dict[str, Any] = (
        {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
    )
    return loaded(AutoImageProcessor, source, **options)


def pick_dtype(wanted: str, device_type: str) -> str:
    """Resolve "auto": bfloat16 where the hardware multiplies it natively (AMX or AVX512-BF16, GPUs that have it)."""
    if wanted != "auto":
        return wanted
    import torch

    if device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device_type == "cpu":
        native = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        native = native or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return "bfloat16" if native else "float32"
    return "float32"


def load_config(source: ModelSource) -> Any:
    """The model's configuration."""
    from transformers import AutoConfig

    return loaded(AutoConfig, source)


def context_length(source: ModelSource) -> int:
    """Tokens that fit in the model's context; 2048 where its configuration does not say."""
    return context_of(load_config(source))


def context_of(config: Any, unstated: int = 2048) -> int:
    """The same, of a configuration of transformers; ``unstated`` where it does not say."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "context_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value - _positions_lost(text) if name == "max_position_embeddings" else value
    return unstated


def _positions_lost(config: Any) -> int:
    """RoBERTa and what is made of it count positions from the one after the padding token's id."""
    counted = ("roberta", "camembert", "data2vec-text", "xmod")
    model_type = str(getattr(config, "model_type", ""))
    return int(config.pad_token_id or 0) + 1 if any(name in model_type for name in counted) else 0


def folder_fingerprint(folder: Path) -> str:
    """Hash of a model folder: small files whole, weight files by size and samples of their bytes (start, middle, end)."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.suffix not in (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja"):
            continue
        size = path.stat().st_size
        total.update(f"{path.relative_to(folder).as_posix()}:{size}".encode())
        with open(path, "rb") as file:
            for start in sorted({0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES)}):
                file.seek(start)
                total.update(file.read(SAMPLE_BYTES))
    return total.hexdigest()


def weights_hash(model: Any) -> str:
    """Hash of all parameters and buffers of a module, by name."""
    import torch

    total = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        total.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
