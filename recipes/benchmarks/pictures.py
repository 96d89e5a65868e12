"""How fast are pictures read, beside one at a time (the paper's loop) and plain batches?

    python recipes/benchmarks/pictures.py --rows 2000 --dtype bfloat16

The pictures (JPEG, 256 pixels a side) and the weights (a vision transformer of the shape of ViT-L/16) are made up. Each line
decodes, resizes and runs all pictures once; methods take turns; medians are printed, with the largest difference between pooled
features of the first line's and this line's. *of rate* is the share of the rate at which the machine multiplies matrices of the model's
own shapes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scoring import hardware
from scoring_model import linear_shapes, matrix_rate, synchronise

from instruct_prune import EncodeConfig, Row, ScoreConfig, load_data
from instruct_prune.arrays import Float32

SHAPE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLASSES, SIDE, SEEN = 10, 256, 224


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", help="cuda or cpu; the GPU where there is one")
    parser.add_argument("--shape", default=json.dumps(SHAPE), help="JSON of a ViTConfig")
    return parser.parse_args()


def draw(folder: Path, rows: int) -> None:
    """Pictures of noise, a folder for each class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(rows):
        path = folder / f"class {i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE)).save(path)


def transform(picture: Any) -> Any:
    import torch

    pixels = np.asarray(picture.resize((SEEN, SEEN)), dtype=np.float32)
    return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)


class Pictures:
    """The model, the pictures, and the ways to run them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        import torch
        from transformers import ViTConfig, ViTModel

        from instruct_prune.models.image_encoder import ImageEncoder

        self.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.manual_seed(0)
        with torch.device(self.device):
            config = ViTConfig(image_size=SEEN, **json.loads(options.shape))
            module: Any = ViTModel(config, add_pooling_layer=False)
        self.module = module.to(getattr(torch, options.dtype)).eval()
        self.encoder = ImageEncoder(ScoreConfig(), EncodeConfig(), None, loaded=(self.module, transform))
        self.encoder.load(options.dtype, self.device)
        self.folder = folder
        rows = [row for row in load_data([str(folder / "pictures")]) if isinstance(row, Row)]
        self.encoder.write_items(folder / "items", rows, lambda done: None, strict=True)
        self.items = self.encoder.open_items(folder / "items")
        tokens = (SEEN // config.patch_size) ** 2 + 1
        bench: Any = SimpleNamespace(model=self.module, device=self.device)
        self.rate = matrix_rate(bench)
        self.operations = 2.0 * tokens * sum(a * b for a, b in linear_shapes(bench)) * len(self.items)

    def batches(self, size: int) -> Float32:
        """Plain batches, decoded one after the other."""
        import torch

        found = []
        with torch.inference_mode():
            for start in range(0, len(self.items), size):
                some = range(start, min(start + size, len(self.items)))
                pixels = torch.stack([transform(self.items[i].open()) for i in some])
                states = self.module(pixels.to(self.device, self.module.dtype)).last_hidden_state
                found.append(states.float().mean(dim=1).cpu().numpy())
        return np.concatenate(found)

    def ours(self, depths: tuple[int, ...] = ()) -> Float32:
        """The engine's loop: batches, probes, parts."""
        from instruct_prune.measure.engine import measure_parts
        from instruct_prune.measure.measurement import Measurement
        from instruct_prune.measure.parts import PartStore
        from instruct_prune.measure.probes import State
        from instruct_prune.measure.stored import find
        from instruct_prune.measure.subnet import DENSE
        from instruct_prune.run.measure import batch_cost, plan_work

        measurements = [Measurement(DENSE, State("mean", depth)) for depth in (None, *depths)]
        size = batch_cost(self.encoder, ScoreConfig(), self.device.type)
        with tempfile.TemporaryDirectory() as parts:
            store = PartStore(Path(parts), "benchmark")
            work = plan_work(self.encoder, self.items, measurements, size, store)
            measure_parts(self.encoder, work, work.missing())
            return find(work, "mean_dense").array(np.arange(len(self.items)))


def main() -> None:
    import torch

    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder / "pictures", options.rows)
        pictures = Pictures(options, folder)
        last = len(pictures.encoder.depths())
        lines: dict[str, Callable[[], Float32]] = {
            "one at a time": lambda: pictures.batches(1),
            "batches of 64": lambda: pictures.batches(64),
            "ours": pictures.ours,
            "ours, 3 probes": lambda: pictures.ours((max(1, last // 3), max(1, 2 * last // 3))),
        }
        gpu = pictures.device.type == "cuda"
        seconds: dict[str, list[float]] = {name: [] for name in lines}
        features, peak = {}, {}
        pictures.batches(min(64, options.rows))  # warm-up
        for _ in range(options.repeats):
            for name, method in lines.items():
                if gpu:
                    torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
                features[name] = method()
                synchronise(pictures.device)
                seconds[name].append(time.perf_counter() - began)
                used = (
                    torch.cuda.max_memory_allocated()
                    if gpu
                    else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                )
                peak[name] = used
        show(options, pictures, seconds, features, peak)


def show(
    options: argparse.Namespace,
    pictures: Pictures,
    seconds: dict[str, list[float]],
    features: dict[str, Float32],
    peak: dict[str, int],
) -> None:
    print(f"{hardware(options.device)}; {options.rows:,} pictures in {options.dtype}, {options.repeats} repeats")
    print(f"matrix products at the model's shapes: {pictures.rate / 1e9:,.0f} GFLOP/s\n")
    print(f"{'method':<16}{'seconds':>9}{'pictures/s':>12}{'ours is':>9}{'of rate':>9}{'peak MB':>9}{'max diff':>10}")
    ours, first = statistics.median(seconds["ours"]), features["one at a time"]
    for name, runs in seconds.items():
        took = statistics.median(runs)
        numbers = f"{took:>9.2f}{options.rows / took:>12,.0f}{took / ours:>8.2f}x{pictures.operations / took / pictures.rate:>9.0%}"
        print(f"{name:<16}{numbers}{peak[name] / 1e6:>9,.0f}{float(np.abs(features[name] - first).max()):>10.1e}")


if __name__ == "__main__":
    main()
