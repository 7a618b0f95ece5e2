"""Metrics against the lpips package, torchmetrics and PIE-Bench's own calculator, on the same weights.

The calculator and DINO's network are on no index: `make parity PNPINVERSION=checkout DINO=checkout ARGS="-k metrics"`
of cure-lab/PnPInversion and facebookresearch/dino. Their code is run as it stands, on random weights.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import fill, normal
from torch import Tensor

ROOT = Path(__file__).parents[2]
APART = Path(sys.prefix) / "apart"  # torchvision, whose wheel is of CUDA's PyTorch, and lpips, which needs it
if not APART.is_dir():
    pytest.skip("only `make parity` installs lpips", allow_module_level=True)
sys.path.append(str(APART))
sys.modules.setdefault("torchvision._meta_registrations", ModuleType("unused"))  # of operators that are not there

import lpips  # noqa: E402
import torchmetrics  # noqa: E402
import torchvision  # noqa: E402
from torchmetrics.functional.image import structural_similarity_index_measure  # noqa: E402
from torchmetrics.functional.multimodal import clip_score  # noqa: E402
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, ViTConfig, ViTModel  # noqa: E402

from minedit.image import to_pil  # noqa: E402
from minedit.metrics import clip, dino  # noqa: E402
from minedit.metrics.asked import decoded  # noqa: E402
from minedit.metrics.lpips import load_lpips  # noqa: E402
from minedit.metrics.pixels import blackened, mse, psnr, ssim  # noqa: E402
from minedit.picturebook.score import rendered  # noqa: E402
from minedit.picturebook.world.edits import pairs  # noqa: E402


def pictures(side: int = 128, count: int = 3) -> tuple[list[Image.Image], list[Image.Image]]:
    """Renderings and their counterfactuals, the last with grain."""
    found = [rendered(pair, side) for pair in pairs("tune")[: 19 * count : 19]]
    grain = 12 * normal("grain", side, side, 3).numpy()
    before, after = map(list, zip(*found, strict=True))
    after[-1] = Image.fromarray((np.asarray(after[-1]) + grain).clip(0, 255).astype(np.uint8))
    return before, after


def unit(images: list[Image.Image]) -> Tensor:
    """[B,3,H,W] in [0,1]."""
    return torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in images]).float() / 255


def near(name: str, ours: Tensor, theirs: Tensor, most: float) -> None:
    apart = ((ours - theirs).abs() / theirs.abs().clamp(min=1e-3)).max().item()
    print(f"\n  {name}: {apart:.1e} apart, of {theirs.tolist()}")
    assert apart <= most


def oracle(net: str, features: dict[str, Tensor]) -> lpips.LPIPS:
    """Of the package, with its own heads."""
    found = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    for name, weight in found.net.named_parameters():
        weight.data.copy_(features["features." + name.split(".", 1)[1]])
    return found.eval()


def squeezenet(path: Path) -> dict[str, Tensor]:
    """Random weights of torchvision's SqueezeNet, also in a file, with what it classifies by."""
    torch.manual_seed(5)
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    torch.save(state, path)
    return state


@torch.no_grad()
@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips(net, tmp_path):
    a, b = map(unit, pictures())
    ours = load_lpips(None if net == "alex" else tmp_path / "net.pth") if net == "alex" else None
    if net == "squeeze":
        features = squeezenet(tmp_path / "net.pth")
        ours = load_lpips(tmp_path / "net.pth")
    else:
        features = {name: weight for name, weight in ours.state_dict().items() if name.startswith("features")}
    theirs = oracle(net, features)
    near(f"LPIPS {net}", ours(a, b), theirs(a, b, normalize=True).flatten(), 1e-5)
    odd = [each[..., :101, :87] for each in (a, b)]
    near(f"LPIPS {net}, 101 x 87", ours(*odd), theirs(*odd, normalize=True).flatten(), 1e-5)


@torch.no_grad()
def test_lpips_over_a_part():
    a, b = map(unit, pictures())
    ours = load_lpips()
    theirs = oracle("alex", ours.state_dict())
    theirs.spatial = True
    inside = (normal("inside", 1, 1, 128, 128) > 0.5).float()
    wanted = (theirs(a, b, normalize=True) * inside).sum((1, 2, 3)) / inside.sum()
    near("LPIPS over a part", ours(a, b, inside), wanted, 1e-5)


def test_pixels():
    a, b = map(unit, pictures())
    for at in range(len(a)):
        one, other = a[at : at + 1], b[at : at + 1]
        wanted = torchmetrics.functional.image.peak_signal_noise_ratio(one, other, data_range=1.0)
        near("PSNR", psnr(one, other), wanted[None], 1e-5)
        wanted = structural_similarity_index_measure(one.double(), other.double(), data_range=1.0)
        near("SSIM", ssim(one, other), wanted[None], 1e-9)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A small CLIP of random weights, whose pictures are resized and cut as OpenAI's are."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision, text = {**sizes, "image_size": 224, "patch_size": 32}, {**sizes, "eos_token_id": 49407}
    torch.manual_seed(3)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(folder)
    side = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    CLIPImageProcessor(**side).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((ROOT / "weights" / "tokenizer" / name).read_bytes())
    return folder


class Projected(CLIPModel):
    """Its features as transformers 4 returned them, and torchmetrics wants them."""

    def get_image_features(self, *args: object, **more: object) -> Tensor:
        return super().get_image_features(*args, **more).pooler_output

    def get_text_features(self, *args: object, **more: object) -> Tensor:
        return super().get_text_features(*args, **more).pooler_output


TEXTS = ["a cat in the room at night", 'A Girl, sitting: on the "beach" ', "a plate"]


def processor(folder: Path) -> CLIPProcessor:
    """With PIL's resizing, as it was when the figures were published, and torchvision's is another."""
    try:
        from transformers import CLIPImageProcessorPil as Pil
    except ImportError:
        from transformers import CLIPImageProcessor as Pil
    from transformers import CLIPTokenizer

    return CLIPProcessor(Pil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder))


@torch.no_grad()
def test_clip(clip_folder):
    model, read = Projected.from_pretrained(clip_folder).eval(), processor(clip_folder)
    ours = clip.load_clip(clip_folder)
    images = [pictures(300)[0][0].resize((300, 260)), *pictures(96)[0][1:]]
    found = clip.score(ours.images(images), ours.texts(TEXTS)).clamp(min=0)
    assert found.max() > 1
    for at, (image, text) in enumerate(zip(images, TEXTS, strict=True)):
        array = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        wanted = clip_score(array, text, lambda: (model, read))
        near("CLIP score", found[at : at + 1], wanted[None], 1e-4)
    # torchmetrics cuts a long text's end off with its last token, at which CLIP looks; transformers puts that one back
    long = ["a dog" + " and a very small dog" * 30]
    ids = read.tokenizer(long, truncation=True, max_length=77, return_tensors="pt")
    wanted = torch.nn.functional.normalize(model.get_text_features(**ids), dim=-1)
    assert ids["input_ids"].shape[1] == 77
    near("a long text", (ours.texts(long) * wanted).sum(-1), torch.ones(1), 1e-6)


@pytest.fixture(scope="module")
def calculator(tmp_path_factory, clip_folder):
    """PIE-Bench's, and our networks with its random weights: (theirs, squeeze, clip, vit)."""
    checkout, vision = os.environ.get("PNPINVERSION"), os.environ.get("DINO")
    if not (checkout and vision):
        pytest.skip("name checkouts: make parity PNPINVERSION=... DINO=...")
    folder = tmp_path_factory.mktemp("pie")
    features = squeezenet(folder / "squeeze.pth")
    network = imported(Path(vision), "vision_transformer").vit_base(patch_size=8)
    fill(network)
    (folder / "vit").mkdir()
    vit_like(network.state_dict()).save_pretrained(folder / "vit")
    patch = pytest.MonkeyPatch()
    patch.setattr(torch.hub, "load", lambda *_: network)
    squeeze = torchvision.models.squeezenet1_1(weights=None)
    squeeze.load_state_dict(features)
    patch.setattr(torchvision.models, "squeezenet1_1", lambda **_: squeeze)
    held = Projected.from_pretrained(clip_folder).eval(), processor(clip_folder)
    patch.setattr("torchmetrics.multimodal.clip_score._get_clip_model_and_processor", lambda _: held)
    evaluation = imported(Path(checkout), "evaluation.matrics_calculator")
    theirs = evaluation.MetricsCalculator("cpu")
    masks = imported(Path(checkout), "evaluation.evaluate").mask_decode
    patch.undo()
    vit = dino.load_dino(folder / "vit")
    return theirs, masks, load_lpips(folder / "squeeze.pth"), clip.load_clip(clip_folder), vit


def imported(folder: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(folder))


def vit_like(state: dict[str, Tensor]) -> ViTModel:
    """transformers' ViT with the weights of DINO's, whose norms have an epsilon of 1e-6."""
    found = ViTModel(ViTConfig(patch_size=8, layer_norm_eps=1e-6), add_pooling_layer=False)
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    names |= {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    given = {}
    for name, weight in state.items():
        place, _, kind = name.rpartition(".")
        if name in names or place in names:
            given[names.get(name) or f"{names[place]}.{kind}"] = weight
            continue
        _, number, *inner = place.split(".")
        layer, inner = f"layers.{number}.", ".".join(inner)
        if inner == "attn.qkv":
            for part, each in zip("qkv", weight.chunk(3), strict=True):
                given[f"{layer}attention.{part}_proj.{kind}"] = each
            continue
        inner = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}.get(
            inner, inner
        )
        given[f"{layer}{inner}.{kind}"] = weight
    found.load_state_dict(given)
    return found


RUNS = [0, 5, 700, 40, 128 * 60, 128 * 30 + 17, 128 * 128 - 9, 4000]


def test_masks(calculator):
    _, masks, *_ = calculator
    assert np.array_equal(decoded(RUNS, 128), masks(RUNS, [128, 128]))
    assert np.array_equal(decoded([], 64), masks([], [64, 64]))


@torch.no_grad()
def test_published_figures(calculator):
    """Of PIE-Bench: of the background, blackened; LPIPS by SqueezeNet; CLIP; structure distance."""
    theirs, _, squeeze, ours, vit = calculator
    mask = decoded(RUNS, 128)
    background = torch.from_numpy(1 - mask)[None, None]
    deep = np.repeat(mask[:, :, None], 3, axis=2)
    for a, b in zip(*pictures(), strict=True):
        x, y = unit([a]), unit([b])
        black = blackened(x, background), blackened(y, background)
        sides = b, a, 1 - deep, 1 - deep
        for name, function, measure, most in (
            ("PSNR", psnr, theirs.calculate_psnr, 1e-5),
            ("MSE", mse, theirs.calculate_mse, 1e-5),
            ("SSIM", ssim, theirs.calculate_ssim, 1e-3),
            ("LPIPS squeeze", squeeze, theirs.calculate_lpips, 1e-3),
        ):
            near(f"{name} of the background", function(*black), torch.tensor([measure(*sides)]), most)
            near(f"{name}", function(x, y), torch.tensor([measure(b, a)]), most)
        edited = Image.fromarray(np.uint8(np.array(b) * deep))
        for image, args in ((b, ()), (edited, (deep,))):
            wanted = torch.tensor([theirs.calculate_clip_similarity(b, TEXTS[0], *args)])
            near("CLIP", clip.score(ours.images([image]), ours.texts(TEXTS[:1])).clamp(min=0), wanted, 1e-4)
    wanted = torch.tensor([float(theirs.calculate_structure_distance(b, a))])
    near("structure distance", dino.structure_distance(vit, x, y, published=True), wanted, 1e-3)
    assert to_pil(2 * x - 1)[0].tobytes() == a.tobytes()
