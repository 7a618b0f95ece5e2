"""What the compiler makes of a call's Triton kernels, for a GPU that need not be here.

In: a function to call, which is called on a CPU. Its launches are recorded in place of being made, with what Triton
would specialise them for, and compiled. Out: a Compiled for each kind of launch: registers, shared memory, spills, its
code in every language on the way. Compiler, assembler and disassembler come with the package triton.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from minedit.config import MineditError
from minedit.lab.made import Compiled
from minedit.lab.names import LANGUAGES

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPCODE = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)")


class _Absent:
    """In place of a compiled kernel: a launch that does nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def of_call(call: Callable[[], object], target: int) -> list[Compiled]:
    """What `call` launches, each kind once. Raises MineditError where it launches nothing, or what cannot be told."""
    if triton.knobs.runtime.interpret:
        raise MineditError("TRITON_INTERPRET is set, with which Triton compiles nothing; unset it")
    launches: list[tuple[JITFunction, tuple, dict]] = []

    def run(self: JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> _Absent:
        launches.append((self, args, kwargs))
        return _Absent()

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        # functions that ask what GPU this is are told
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", lambda *_: divmod(target, 10)))
        stack.enter_context(torch.inference_mode())
        call()
    made = {}
    for launch in launches:
        source, options = _source(*launch, target)
        made.setdefault((source.name, source.hash(), str(options)), (source, options))
    return [_compiled(*each, target) for each in made.values()]


def _source(kernel: JITFunction, args: tuple, kwargs: dict, target: int) -> tuple[ASTSource, dict]:
    """As JITFunction.run has it, which wants a GPU to be there."""
    backend = make_backend(GPUTarget("cuda", target, 32))
    kwargs = {"debug": False, "instrumentation_mode": "", **kwargs}
    bound, special, _ = create_function_from_signature(kernel.signature, kernel.params, backend)(*args, **kwargs)
    options, signature, constants, attributes = kernel._pack_args(backend, kwargs, bound, special, None)
    return ASTSource(kernel, signature, constants, attributes), options.__dict__


def _compiled(source: ASTSource, options: dict, target: int) -> Compiled:
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    texts = {name: str(binary.asm[name]) for name in LANGUAGES[:3]}
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        ptx.write_text(texts["ptx"])
        # ptxas has an "a" variant of newer GPUs, with what PTX names by it
        named = f"sm_{target}" + "a" * (target >= 90)
        said = _said("ptxas", "-v", "--gpu-name", named, str(ptx), "-o", str(cubin))
        texts["sass"] = _said("nvdisasm", "-c", str(cubin))
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    kinds = dict(Counter(OPCODE.findall(texts["sass"])).most_common())
    return Compiled(
        source.name.rpartition(".")[2], target, int(registers[1]), binary.metadata.shared, int(spilled[1]),
        binary.metadata.num_warps, kinds, texts,
    )  # fmt: skip


def _said(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise MineditError(f"{tool}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    return done.stdout + done.stderr
