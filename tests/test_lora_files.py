"""LoRAs of every maker: LoHa and LoKr, peft's files and folders, names of every age; and settings that mean harm.

Oracles: the formulas of the papers written out by index in float64, and the same LoRA under kohya's names.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import hostile
import pytest
import torch
import torch.nn.functional as F
from hostile import archive, number, numbers, one, pickled, record, storage, tensor, text
from safetensors.torch import save_file
from seeded import normal
from test_lora import LAYERS, assert_equal, dotted, half, kohya, layer_of, pair
from torch import Tensor
from weight_files import slim

from minedit.config import MineditError
from minedit.files.checkpoint import load, save
from minedit.files.lora import merge
from minedit.files.taesd import load_taesd

LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj"  # [64, 8]
CONV = "lora_unet_down_blocks_1_resnets_0_conv1"  # [16, 8, 3, 3]
OURS = {LINEAR: "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj", CONV: "input_blocks.4.0.in_layers.2"}


def message(path: Path, **settings: object) -> str:
    with pytest.raises(MineditError) as error:
        merge(slim(), path, **settings)
    said = str(error.value)
    assert said.isprintable() and len(said) < 700
    return said


def assert_adds(path: Path, layer: str, expected: Tensor) -> None:
    """`expected` [out, in, ...] in float64, and nothing else."""
    before, after = (layer_of(model, OURS[layer]).weight.double() for model in (slim(), merge(slim(), path)))
    assert after.shape == expected.shape == before.shape
    assert (after - before - expected).abs().max() < 1e-6 * (before.abs().max() + expected.abs().max())


def tensors_of(layer: str, shapes: dict[str, tuple[int, ...]], alpha: float | None = 3.0) -> dict[str, Tensor]:
    named = {f"{layer}.{name}": normal(name, *shape) for name, shape in shapes.items()}
    return named | ({} if alpha is None else {f"{layer}.alpha": torch.tensor(alpha)})


def product(a: Tensor, b: Tensor, core: Tensor | None = None) -> Tensor:
    """a b, or Tucker's, each term of the sum by its own."""
    if core is None:
        return sum(a[:, i, None].double() * b[None, i].double() for i in range(len(b)))
    out = torch.zeros(a.shape[1], b.shape[1], *core.shape[2:], dtype=torch.float64)
    for i in range(len(core)):
        for j in range(core.shape[1]):
            outer = a[i].double()[:, None] * b[j].double()[None]
            out += outer[:, :, None, None] * core[i, j].double()
    return out


@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_loha_is_two_products_number_by_number(tmp_path, layer):
    """Rank 2, alpha 3: hadamard factors as FedPara's equation (arXiv:2108.06098)."""
    out, *rest = layer_of(slim(), OURS[layer]).weight.shape
    wide = torch.Size(rest).numel()
    shapes = {f"hada_w{i}_{x}": (out, 2) if x == "a" else (2, wide) for i in (1, 2) for x in "ab"}
    found = tensors_of(layer, shapes)
    save_file(found, tmp_path / "file")
    w = {name.rpartition(".")[2]: x for name, x in found.items()}
    first, second = (product(w[f"hada_w{i}_a"], w[f"hada_w{i}_b"]) for i in (1, 2))
    assert_adds(tmp_path / "file", layer, (3 / 2 * first * second).view(out, *rest))


def test_loha_of_a_convolution_by_tucker(tmp_path):
    shapes = {f"hada_w{i}_{x}": (2, 16 if x == "a" else 8) for i in (1, 2) for x in "ab"}
    found = tensors_of(CONV, shapes | {"hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3)})
    save_file(found, tmp_path / "file")
    w = {name.rpartition(".")[2]: x for name, x in found.items()}
    first, second = (product(w[f"hada_w{i}_a"], w[f"hada_w{i}_b"], w[f"hada_t{i}"]) for i in (1, 2))
    assert_adds(tmp_path / "file", CONV, 3 / 2 * first * second)


def test_locon_of_a_convolution_by_tucker(tmp_path):
    """Oracle: the three convolutions one after the other, in float64: LyCORIS computes them so beside the layer's own.

    Ranks of down and up may differ; alpha is divided by that of down.
    """
    shapes = {"lora_down.weight": (2, 8, 1, 1), "lora_mid.weight": (3, 2, 3, 3), "lora_up.weight": (16, 3, 1, 1)}
    found = tensors_of(CONV, shapes)
    save_file(found, tmp_path / "file")
    down, mid, up = (found[f"{CONV}.{name}"].double() for name in shapes)
    units = torch.eye(8 * 9, dtype=torch.float64).view(72, 8, 3, 3)  # each shows one number of the whole's kernel
    whole = F.conv2d(F.conv2d(F.conv2d(units, down), mid), up)  # [72, 16, 1, 1]
    assert_adds(tmp_path / "file", CONV, 3 / 2 * whole.view(8, 3, 3, 16).permute(3, 0, 1, 2))
    save_file(found | {f"{CONV}.lora_mid.weight": torch.ones(3, 2, 1, 1)}, tmp_path / "file")
    assert "the shapes differ of 1 tensor" in message(tmp_path / "file")


def kronecker(a: Tensor, b: Tensor) -> Tensor:
    """[out, in] ⊗ [out, in, ...], block by block."""
    rows = [torch.cat([x.item() * b.double() for x in row], dim=1) for row in a.double()]
    return torch.cat(rows, dim=0)


@pytest.mark.parametrize("first", ["whole", "product"])
@pytest.mark.parametrize(
    ("layer", "second"), [(LINEAR, "whole"), (LINEAR, "product"), (CONV, "whole"), (CONV, "product"), (CONV, "tucker")]
)
def test_lokr_is_a_kronecker_product(tmp_path, layer, first, second):
    """Blocks of 4 x 2. Alpha counts where a factor has a rank, 2."""
    weight = layer_of(slim(), OURS[layer]).weight
    out, wide, kernel = len(weight) // 4, weight.shape[1] // 2, tuple(weight.shape[2:])
    flat = (2, torch.Size((wide, *kernel)).numel())
    shapes = {"lokr_w1": (4, 2)} if first == "whole" else {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 2)}
    shapes |= {
        "whole": {"lokr_w2": (out, wide, *kernel)},
        "product": {"lokr_w2_a": (out, 2), "lokr_w2_b": flat},
        "tucker": {"lokr_t2": (2, 2, *kernel), "lokr_w2_a": (2, out), "lokr_w2_b": (2, wide)},
    }[second]
    found = tensors_of(layer, shapes)
    save_file(found, tmp_path / "file")
    w = {name.rpartition(".")[2]: x for name, x in found.items()}
    w1 = w["lokr_w1"] if first == "whole" else product(w["lokr_w1_a"], w["lokr_w1_b"])
    w2 = w["lokr_w2"] if second == "whole" else product(w["lokr_w2_a"], w["lokr_w2_b"], w.get("lokr_t2"))
    factor = 1 if (first, second) == ("whole", "whole") else 3 / 2
    assert_adds(tmp_path / "file", layer, factor * kronecker(w1, w2.reshape(out, wide, *kernel)))


def test_products_that_do_not_fit(tmp_path):
    wrong = {
        "of another layer": {"hada_w1_a": (9, 2), "hada_w1_b": (2, 8), "hada_w2_a": (9, 2), "hada_w2_b": (2, 8)},
        "of another rank": {"hada_w1_a": (64, 2), "hada_w1_b": (3, 8), "hada_w2_a": (64, 2), "hada_w2_b": (2, 8)},
        "transposed": {"lokr_w1": (2, 4), "lokr_w2": (4, 16)},
        "of no numbers": {"lokr_w1": (0, 4), "lokr_w2": (4, 16)},
    }
    for name, shapes in wrong.items():
        save_file(tensors_of(LINEAR, shapes), tmp_path / "file")
        assert "the shapes differ of 1 tensor" in message(tmp_path / "file"), name
    save_file(tensors_of(LINEAR, {"lokr_w1": (4, 2)}), tmp_path / "file")
    assert "looks like a LoKr, but lacks factors of 1 tensor" in message(tmp_path / "file")


# Names and files of every maker.


@pytest.mark.parametrize("old", ["lora_te_text_model_", "lora_te1_text_model_", "lora_te_", "lora_te1_", "lycoris_te_"])
def test_names_of_the_text_encoder_of_every_age(tmp_path, old):
    names = {name: ours for name, ours in LAYERS.items() if "_te_" in name}
    found = {name.replace("lora_te_text_model_", old): x for name, x in kohya(slim(), names).items()}
    save_file(found, tmp_path / "file")
    save_file(kohya(slim(), names), tmp_path / "kohya")
    assert_equal(merge(slim(), tmp_path / "file"), merge(slim(), tmp_path / "kohya"))


def peft(part: str, adapter: str = "") -> dict[str, Tensor]:
    """The layers of one part, as peft itself names them."""
    found = {}
    for name, ours in LAYERS.items():
        theirs = dotted(name)
        if theirs.startswith(f"{part}."):
            down, up = pair(ours, layer_of(slim(), ours))
            stem = "base_model.model." + theirs.removeprefix(f"{part}.")
            found |= {f"{stem}.lora_A{adapter}.weight": down, f"{stem}.lora_B{adapter}.weight": up}
    return found


def expected(path: Path, parts: tuple[str, ...], alpha: float) -> object:
    names = {name: ours for name, ours in LAYERS.items() if dotted(name).split(".")[0] in parts}
    save_file(kohya(slim(), names, alpha), path)
    return merge(slim(), path)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("adapter", ["", ".default"])
def test_pefts_own_folder(tmp_path, part, adapter):
    """Its alpha stands beside the weights; the file is found in the folder, and the settings beside the file."""
    folder = tmp_path / "lora"
    folder.mkdir()
    save_file(peft(part, adapter), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    right = expected(tmp_path / "kohya", (part,), 6.0)
    assert_equal(merge(slim(), folder), right)
    assert_equal(merge(slim(), folder / "adapter_model.safetensors"), right)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_dora": True}))
    assert "looks like a DoRA" in message(folder)


def test_a_folder_of_both_parts(tmp_path):
    for part in ("unet", "text_encoder"):
        (tmp_path / "lora" / part).mkdir(parents=True)
        save_file(peft(part), tmp_path / "lora" / part / "adapter_model.safetensors")
        (tmp_path / "lora" / part / "adapter_config.json").write_text('{"lora_alpha": 6}')
    assert_equal(merge(slim(), tmp_path / "lora"), expected(tmp_path / "kohya", ("unet", "text_encoder"), 6.0))


def test_other_folders(tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    assert "is a folder with none of pytorch_lora_weights.safetensors" in message(folder)
    save_file(half(), folder / "any.safetensors")
    assert merge(slim(), folder).lora[0][:2] == (str(folder), 1.0)
    save_file(half(), folder / "other.safetensors")
    assert "is a folder with 2 files .safetensors (any.safetensors, other.safetensors); name one" in message(folder)
    save_file(half(), folder / "pytorch_lora_weights.safetensors")
    merge(slim(), folder)


def test_load_takes_one_lora_or_several_with_or_without_scale(tmp_path):
    save(slim(), tmp_path / "model")
    save_file(half(), file := tmp_path / "lora")
    for lora, times in ((file, 1), (str(file), 1), ([file], 1), ((file, 1), 1), ([(file, 1.0), str(file)], 2)):
        assert [each[:2] for each in load(tmp_path / "model", lora=lora).lora] == [(str(file), 1.0)] * times
    for lora in (5, [5], [(file, 1, 2)], {"a": 1}, None):
        with pytest.raises(MineditError, match="lora is .*, expected a file, or a list of files"):
            load(tmp_path / "model", lora=lora)
    with pytest.raises(MineditError, match="5 is no path; expected a LoRA"):
        load(tmp_path / "model", lora=[(5, 1.0)])


# Files that are broken or mean harm.


def test_a_lora_that_holds_nan_says_so(tmp_path):
    save_file({name: x * torch.nan for name, x in half().items()}, tmp_path / "file")
    said = message(tmp_path / "file", scale=0.5)
    assert "it holds them in 2 tensors" in said and "download it again" in said and "--dtype" not in said
    save_file(half() | {"lora_unet_conv_in.alpha": torch.tensor(1.0)}, tmp_path / "file")
    name = next(iter(half())).split(".")[0]
    save_file(half() | {f"{name}.alpha": torch.tensor(torch.inf)}, tmp_path / "file")
    assert "has alpha inf for" in message(tmp_path / "file")


HEADERS = {
    "a list": ("[]", "is [], expected an object"),
    "a number": ("1", "is 1, expected an object"),
    "no JSON": ("{", "is not JSON"),
    "deep": ("[" * 10**5, "is not JSON (it has more than 16 levels)"),
    "long": ('{"lora_alpha": ' + "9" * 5000 + "}", "is not JSON (it has a number of more than 100 digits)"),
    "NaN": ('{"lora_alpha": NaN}', "is not JSON (it has NaN for a number)"),
    "vast": ('{"lora_alpha": 1e999}', "is not JSON"),
    "alpha that is text": ('{"lora_alpha": "8"}', "says lora_alpha is '8', expected a finite number"),
    "alpha that is true": ('{"unet.lora_alpha": true}', "says unet.lora_alpha is True"),
    "patterns that are none": ('{"alpha_pattern": 3}', "says alpha_pattern is 3, expected an object"),
    "a pattern's alpha": ('{"alpha_pattern": {"a": "b"}}', "says alpha_pattern of a is 'b'"),
    "a pattern that never ends": (json.dumps({"alpha_pattern": {"(a|a)*" * 180 + "$": 1}}), "patterns are not run"),
    "a pattern with a cursor": (json.dumps({"alpha_pattern": {"\x1b[2J" * 999: 1}}), "patterns are not run"),
    "DoRA": ('{"unet.use_dora": true}', "looks like a DoRA"),
}


@pytest.mark.parametrize(("header", "says"), HEADERS.values(), ids=HEADERS)
def test_settings_in_a_header_are_foreign(tmp_path, header, says):
    save_file(half(), tmp_path / "file", {"lora_adapter_metadata": header})
    began = time.process_time()
    assert says in message(tmp_path / "file")
    assert time.process_time() - began < 5


MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("pattern", ["attn1.to_q", r"attn1\.to_q", "attn1.to_q$", "to_q", f"^{MIDDLE}", MIDDLE])
def test_patterns_are_ends_of_names(tmp_path, pattern):
    stem, factors = f"unet.{MIDDLE}", (torch.ones(2, 24), torch.ones(24, 2))
    found = {f"{stem}.lora_{x}.weight": factor for x, factor in zip("AB", factors, strict=True)}
    save_file(found, tmp_path / "file", {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {pattern: 8}})})
    save_file(found | {f"{stem}.alpha": torch.tensor(8.0)}, tmp_path / "said")
    assert_equal(merge(slim(), tmp_path / "file"), merge(slim(), tmp_path / "said"))
    other = {"unet.alpha_pattern": {"xattn1.to_q": 8, "^attn1.to_q": 8, "to_k": 8}, "unet.lora_alpha": 2}
    save_file(found, tmp_path / "other", {"lora_adapter_metadata": json.dumps(other)})
    save_file(found, tmp_path / "plain")
    assert_equal(merge(slim(), tmp_path / "other"), merge(slim(), tmp_path / "plain"))


def spread(names: dict[str, tuple[int, ...]]) -> bytes:
    """A torch file of four numbers whose tensors have any shape, by strides of 0."""
    one_each = [(text(name), tensor(shape=numbers(*s), stride=numbers(*[0] * len(s)))) for name, s in names.items()]
    return archive(pickled(record(*one_each)))


@pytest.mark.parametrize("size", [2**15, 2**20, 2**40])
def test_sizes_that_are_not_stored_are_not_made(tmp_path, size):
    """A file of less than a kilobyte; and before anything is compared, nothing of it is read."""
    down, up = next(iter(half())), list(half())[1]
    (tmp_path / "rank").write_bytes(spread({down: (size, 8), up: (8, size)}))
    (tmp_path / "alien").write_bytes(spread({"lora_unet_attic.alpha": (size,), "x": (size, size)}))
    assert "has fewer numbers than" in message(tmp_path / "rank")
    assert "has fewer numbers than" in message(tmp_path / "alien")
    (tmp_path / "taesd").write_bytes(spread({"1.weight": (size, size, 3, 3)}))
    with pytest.raises(MineditError, match="has fewer numbers than 1.weight .*; expected a TAESD"):
        load_taesd(tmp_path / "taesd")


def test_a_shape_of_a_hundred_thousand_axes(tmp_path):
    """Its sizes were multiplied anew for every axis, by every reader."""
    axes = 100_000
    many = numbers(*[2] * axes)
    files = {
        "pickle": archive(one(tensor(shape=many, stride=many))),
        "legacy": hostile.legacy(one(tensor(storage(hostile.FLOAT, hostile.KEY, number(4), b"N"), 0, many, many))),
        "empty": archive(one(tensor(shape=numbers(*[2] * axes, 0), stride=numbers(*[2] * axes, 0)))),
        "header": hostile.safetensors({"a": {"dtype": "F32", "shape": [1] * axes + [4], "data_offsets": [0, 16]}}),
    }
    began = time.process_time()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        for read in (load, load_taesd, lambda path: merge(slim(), path)):
            with pytest.raises(MineditError, match="axes, expected 8 at most"):
                read(tmp_path / name)
    assert time.process_time() - began < 20
