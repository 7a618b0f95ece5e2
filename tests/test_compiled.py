"""What the compiler made, shown and compared. Oracle: what the assembler says; kernels whose difference is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minedit import cli

pytest.importorskip("triton")

KERNEL = """
import torch, triton, triton.language as tl

@triton.jit
def scaled(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, FORMULA, mask=at < n)

def attend(q, k, v, rule=None, columns=False):
    assert torch.cuda.get_device_capability() == (9, 0)
    out = torch.empty(q.shape, dtype=q.dtype)
    scaled[(triton.cdiv(out.numel(), 256),)](q, out, out.numel(), 256, num_warps=4)
    return (out, None) if columns else out
"""


def compiled(*argv: str | Path) -> subprocess.CompletedProcess:
    """In a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [sys.executable, "-m", "minedit", "kernels", "compiled", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_two_versions_of_a_users_kernel(tmp_path, capsys):
    for version, formula in (("a", "y * 2"), ("b", "tl.exp2(y.to(tl.float32))")):
        file = tmp_path / "mine.py"
        file.write_text(KERNEL.replace("FORMULA", formula))
        done = compiled(f"{file}:attend", "--quick", "--out", tmp_path / version)
        assert done.returncode == 0, done.stderr
        (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("sm_90")]
        ((name, numbers),) = json.loads((tmp_path / version / "compiled.json").read_text()).items()
        assert row[:3] == ["sm_90", "scaled", "float16"] and int(row[-1]) == 0 == numbers["spilled"]
        assert int(row[-3]) == numbers["registers"] > 0 and numbers["warps"] == 4
        texts = [(tmp_path / version / f"{name}.{kind}").read_text() for kind in ("ttir", "ttgir", "ptx", "sass")]
        for text, has in zip(texts, ("tt.store", "ttg.num-warps", ".visible .entry scaled", "STG.E"), strict=True):
            assert has in text
        assert sum(numbers["kinds"].values()) == sum(line.count(";") for line in texts[3].splitlines() if "/*0" in line)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert cli.main(["kernels", "compiled", "--diff", a, b]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == name and "spilled 0, warps 4, instructions " in lines[1] and "MUFU 0 -> 2" in lines[2]
    added = [line for line in lines[3:] if line.startswith("+ ")]
    assert any("math.exp2" in line for line in added) and any("arith.mulf" in line for line in lines if line[0] == "-")
    assert cli.main(["kernels", "compiled", "--diff", a, a]) == 0
    same = capsys.readouterr().out
    assert "->" not in same and len(same.splitlines()) == 2
    assert cli.main(["kernels", "compiled", "--diff", a, str(tmp_path)]) == 2
    assert "has no compiled.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, said",
    [
        (("--target", "hopper"), "--target has 'hopper'; expected sm_80, sm_90 or the like"),
        (("--dtype", "float8"), "--dtype has 'float8'; expected some of float32"),
        (("sdpa",), "'sdpa' launches no Triton kernel on the shapes tried: nothing to compile"),
    ],
)
def test_what_cannot_be_compiled_is_told_in_a_line(argv, said):
    done = compiled("--quick", *argv)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
