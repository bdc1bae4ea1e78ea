"""Compile the Triton kernels ahead of time, without a GPU, and print what came out as JSON.

Run without TRITON_INTERPRET. One entry a kernel, size, gradient dtype and architecture: registers
and stack bytes of ptxas's report, and the instructions and 16-byte loads and stores in the machine code;
of the loads also those before the first barrier.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sdsgsm_fast.kernels.triton import (
    occlude_kernel,
    paste_kernel,
    update_kernel,
    window_mean_kernel,
)

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ABSENT = (
    "momentum_ptr",
    "momentum_out_ptr",
    "active_ptr",
    "eps_ptr",
    "alpha_ptr",
    "background_ptr",
)
INDICES = ("image_ptr", "row_ptr", "col_ptr", "rows_ptr", "cols_ptr")
FLOATS = ("pad", "eps", "alpha", "background", "gain", "decay", "lo", "hi", "sign")
IMAGE_SIZES = {"one pass": (3072, 3069), "two passes": (150528, 268203)}  # multiples of 16 and odd


def type_of(name: str, grad: str) -> str:
    if name == "grad_ptr":
        return grad
    if name == "measured_ptr":
        return "*fp64"
    if name in INDICES:
        return "*i32"
    if name.endswith("_ptr"):
        return "*fp32"
    return "fp32" if name in FLOATS else "i32"


def compiled(fn: Any, size: int, grad: str, arch: int, warps: int, **constants: Any) -> dict[str, Any]:
    constants = {
        "CHANNELS_LAST": False,
        "SIGN": False,
        "NORMALIZE": 1,
        "EDGED": size % 8 != 0,
        **constants,
    }
    constants |= dict.fromkeys(ABSENT)
    known = {k: v for k, v in constants.items() if k in fn.arg_names}
    signature = {n: "constexpr" if n in known else type_of(n, grad) for n in fn.arg_names}
    aligned = [n for n in signature if n.endswith("_ptr") and n not in known]
    if size % 16 == 0:
        aligned += [n for n in ("size", "pixels", "channels") if n in signature]
    attributes = {(fn.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(fn=fn, signature=signature, constexprs=known, attrs=attributes)
    target = GPUTarget("cuda", arch, 32)
    binary = triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        code, usage = (
            subprocess.run([TOOLS / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "--dump-resource-usage"))
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    load_16 = r"LDG\.E\.(?:\w+\.)*128"
    before_barrier = code.split("BAR.SYNC")[0]
    return {
        "kernel": fn.__name__, "size": size, "grad": grad, "arch": arch,
        "registers": int(registers), "stack": int(stack),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "loads_16": len(re.findall(load_16, code)),
        "loads_16_ahead": len(re.findall(load_16, before_barrier)),
        "stores_16": len(re.findall(r"STG\.E\.(?:\w+\.)*128", code)),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?!NOP)", code, re.MULTILINE)),
    }  # fmt: skip


def main() -> None:
    rows = []
    for arch in (80, 90, 100):
        for grad in ("*fp32", "*bf16") if arch == 90 else ("*bf16",):
            for size in IMAGE_SIZES["one pass"]:
                head, tail = update_kernel.blocks_of(size)
                common = (size, grad, arch, update_kernel.warps(head + tail))
                rows.append(compiled(update_kernel.update_image, *common, HEAD=head, TAIL=tail))
            for size in IMAGE_SIZES["two passes"]:
                common = (size, grad, arch, update_kernel.warps(update_kernel.CHUNK))
                rows.append(compiled(update_kernel.norm_part, *common, BLOCK=update_kernel.CHUNK))
                rows.append(compiled(update_kernel.update_part, *common, BLOCK=update_kernel.CHUNK, PARTS=64))
        for size in (4096, 4099):  # with channels a multiple of 16, and not
            common = (paste_kernel.paste, size, "*fp32", arch, 4)
            rows.append(compiled(*common, HAS_CROPS=True, PIXELS=32, CHANNELS=64))
        rows.append(compiled(occlude_kernel.occlude, 3072, "*fp32", arch, 4, BLOCK=1024))
        rows.append(
            compiled(
                window_mean_kernel.window_mean,
                1024,
                "*fp32",
                arch,
                4,
                BLOCK=1024,
                OVER_H=2,
                OVER_W=2,
            )
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
