"""What the head's kernels take of a GPU, as the compiled code says; needs no GPU.

    python -m benchmarks.head_kernel [--json out.json]

Compiled by the Triton that is installed, with the assembler in it, for four generations. registers:
of one thread, of 255. shared: bytes of one program's shared memory, with those that its generation
sets aside. spilled: bytes a thread that did not fit into registers. loads: bytes that a thread
reads of the logits at a time, of 16.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

ARCHITECTURES = {80: "A100", 89: "L40S, RTX 4090", 90: "H100", 100: "B200"}
DTYPES = ("bf16", "fp16", "fp32")
VOCABULARIES = (128_256, 50_257)  # of Llama 3; of GPT-2, whose rows lie anywhere
CAPS = (None, 30.0)


def cubin(name: str, architecture: int, dtype: str, vocabulary: int, cap: float | None) -> Any:
    """``forward_kernel`` or ``backward_kernel``, as it is compiled at its first launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from orpo_dist.scoring import head_kernel
    from orpo_dist.scoring.finish import Finish

    kernel = getattr(head_kernel, name)
    pointers = {"logits": f"*{dtype}", "targets": "*i64"}
    pointers |= dict.fromkeys(("logps", "sums", "grad"), "*fp32")
    constants = head_kernel.constants(vocabulary, Finish(cap=cap))
    types = {**pointers, "stride": "i32", **dict.fromkeys(constants, "constexpr")}
    aligned = [
        n for n in kernel.arg_names if n in pointers or (n == "stride" and not vocabulary % 16)
    ]
    source = ASTSource(
        fn=kernel,
        signature={name: types[name] for name in kernel.arg_names},
        constexprs=constants,
        attrs={(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": head_kernel.WARPS, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(made: Any) -> dict[str, int]:
    """What one compiled kernel takes."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    said = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", told)}
    read: dict[int, int] = {}  # a width in bytes -> bytes that are read by it; most are logits
    for count, bits in re.findall(r"ld\.global\S*?(?:\.v(\d))?\.[bfu](\d+)", made.asm["ptx"]):
        width = int(count or 1) * int(bits) // 8
        read[width] = read.get(width, 0) + width
    return {
        "registers": said["REG"],
        "shared": said["SHARED"] + made.metadata.shared,
        "spilled": said["LOCAL"] + said["STACK"],
        "loads": max(read, key=lambda width: read[width]),
    }


def measured() -> list[dict[str, Any]]:
    """A line for every kernel that was compiled."""
    cases = product(("forward", "backward"), CAPS, VOCABULARIES, DTYPES, ARCHITECTURES)
    return [
        {
            "pass": name, "cap": cap, "vocabulary": vocabulary, "dtype": dtype,
            "architecture": architecture,
            **resources(cubin(f"{name}_kernel", architecture, dtype, vocabulary, cap)),
        }
        for name, cap, vocabulary, dtype, architecture in cases
    ]  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    """One row a kernel, one column an architecture: registers, shared memory, spilled bytes."""
    rows: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for line in lines:
        key = tuple(line[name] for name in ("pass", "cap", "vocabulary", "dtype"))
        rows.setdefault(key, {})[line["architecture"]] = line
    head = " | ".join(f"sm_{a} ({name})" for a, name in ARCHITECTURES.items())
    found = [f"| pass | capped | words | logits | bytes a load | {head} |", "|---" * 9 + "|"]
    for (name, cap, vocabulary, dtype), by in rows.items():
        cells = " | ".join(
            f"{by[a]['registers']}, {by[a]['shared']:,}, {by[a]['spilled']}" for a in ARCHITECTURES
        )
        capped = "no" if cap is None else "yes"
        loads = " to ".join(str(n) for n in sorted({by[a]["loads"] for a in ARCHITECTURES}))
        found.append(f"| {name} | {capped} | {vocabulary:,} | {dtype} | {loads} | {cells} |")
    return "\n".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    import triton

    lines = measured()
    print(f"Triton {triton.__version__}\n\n{table(lines)}")
    if arguments.json:
        text = json.dumps({"triton": triton.__version__, "kernels": lines}, indent=2)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
