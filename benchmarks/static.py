"""What can be known of the kernels without a GPU: every one compiled ahead of time, and its binary read.

For each kernel, dtype, vocabulary and architecture: registers, spills, shared memory, the occupancy that follows, the
width of global accesses, and how often a row is read and written; beside them Liger's kernels, compiled the same way.
From bytes and FLOPs, as a stated model, a PREDICTION of milliseconds on an H100 (nothing here is measured).

    .venv/bin/python -m benchmarks.static [--quick | --dtypes .. --vocabularies ..] [--output ..]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1":
    raise SystemExit("TRITON_INTERPRET=1 replaces the kernels by Python functions, which cannot be compiled; unset it")

import triton
from orlaif_kernels import group_kernel
from orlaif_kernels import row_kernel as kernels
from orlaif_kernels.rows import cluster_launch, compiles_clusters, programs, row_launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.harness import about

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
#: Registers per multiprocessor, most threads, most blocks, shared memory (bytes), L2 (MB), multiprocessors.
MACHINES = {
    "sm_80": (65536, 2048, 32, 164 * 1024, 40, 108),
    "sm_90": (65536, 2048, 32, 228 * 1024, 50, 132),
    "sm_100": (65536, 2048, 32, 228 * 1024, 126, 148),
}
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
VOCABULARIES = (1000, 4096, 4097, 32003, 128256, 151936, 152064, 262144)
#: What each use of the row kernel switches on; how often it reads and writes a row follows.
VARIANTS: dict[str, dict[str, Any]] = {
    "statistics": {"STATISTICS": True, "TERM": False, "GRADIENT": False},
    "loss": {"STATISTICS": True, "TERM": True, "GRADIENT": False},
    "loss and gradient": {"STATISTICS": True, "TERM": True, "GRADIENT": True},
    "gradient": {"STATISTICS": False, "TERM": False, "GRADIENT": True},
    "loss and gradient, compacted, soft-capped": {"STATISTICS": True, "TERM": True, "GRADIENT": True},
}
#: One more, where the report shows that L2 does not hold the rows; behind a switch (``rows.CLUSTERS``).
HELD = "loss and gradient, a row held by a cluster"
_BIN = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")


def build(
    fn: Any, types: dict[str, str], constants: dict[str, Any], target: GPUTarget, warps: int, ctas: int = 1
) -> Any:
    """Compile ``fn``; pointers are 16-byte aligned, as PyTorch's are."""
    signature, constexprs, attributes = {}, {}, {}
    for i, name in enumerate(fn.arg_names):
        if name in constants:
            signature[name], constexprs[(i,)] = "constexpr", constants[name]
        else:
            signature[name] = types[name]
            if types[name].startswith("*"):
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=fn, signature=signature, constexprs=constexprs, attrs=attributes)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_ctas": ctas})


def instructions_per_logit(code: str, itemsize: int) -> list[float]:
    """Of each loop that loads 128 bits at a time, what a thread issues for a logit; a row's sweeps, in their order."""
    lines = [line.strip() for line in code.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.startswith(".L_x_") and line.endswith(":")}
    counts = []
    for i, line in enumerate(lines):
        back = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        if back is None or labels.get(back.group(1), i) >= i:
            continue
        body = [x for x in lines[labels[back.group(1)] : i + 1] if x.startswith("/*")]
        loads = sum("LDG" in x and ".128" in x for x in body)
        if loads and sum("MUFU.EX2" in x for x in body) and len(body) < 2000:
            counts.append(round(len(body) / (loads * 16 / itemsize), 1))
    return counts


def inspect(compiled: Any, arch: str, warps: int, itemsize: int | None = None) -> dict[str, Any]:
    """Registers, spills, shared memory, occupancy, and global accesses by width in bits."""
    loops = None
    if arch.startswith("gfx"):
        text = compiled.asm["amdgcn"]

        def field(name: str) -> int:
            return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))  # type: ignore[union-attr]

        sizes = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "ushort": 16, "short": 16, "ubyte": 8}
        accessed = re.findall(r"(?:global|buffer)_(load|store)_(\w+?)(?:_d16\w*)?\s", text)
        accesses = Counter((kind, sizes.get(width, 8)) for kind, width in accessed)
        # Scalar registers may move into lanes of vector registers, which touches no memory; scratch memory counts.
        registers, spills = field("vgpr_count"), field("vgpr_spill_count") + field("private_segment_fixed_size")
        shared, resident = field("group_segment_fixed_size"), None
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [f"{_BIN}/cuobjdump", "-res-usage", file.name], capture_output=True, text=True
            ).stdout
            code = subprocess.run([f"{_BIN}/nvdisasm", "-c", file.name], capture_output=True, text=True).stdout
        loops = None if itemsize is None else instructions_per_logit(code, itemsize)
        numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
        assert numbers is not None, usage
        registers, stack, _, local = map(int, numbers.groups())
        spills = stack + local + len(re.findall(r"\b(?:LDL|STL)\b", code))
        shared = compiled.metadata.shared
        accesses = Counter()
        for kind, suffix in re.findall(r"\b(LDG|STG)\.E((?:\.\w+)*)", code):
            bits = re.search(r"\.(128|64|U16|S16|U8|S8)", suffix)
            width = int(bits.group(1).strip("US")) if bits else 32
            accesses["load" if kind == "LDG" else "store", width] += 1
        file_size, threads, blocks, memory, _, _ = MACHINES[arch]
        used = -(-registers // 8) * 8 * warps * 32
        resident = min(file_size // used, threads // (warps * 32), blocks, memory // max(1, shared))
    record: dict[str, Any] = {"registers": registers, "spills": spills, "shared_bytes": shared, "threads": warps * 32}
    if resident is not None:
        record |= {"blocks_per_sm": resident, "occupancy": resident * warps * 32 / MACHINES[arch][1]}
    if loops is not None:
        record["instructions_per_logit"] = loops
    for kind in ("load", "store"):
        record[f"{kind}s"] = {str(bits): n for (k, bits), n in sorted(accesses.items(), reverse=True) if k == kind}
    return record


def row_kernel(variant: str, dtype: str, vocabulary: int, arch: str) -> dict[str, Any]:
    """One record of the row kernel."""
    flags = VARIANTS[variant.split(", a row")[0]]
    types = dict.fromkeys(("grad_logps", "grad_entropy", "advantages", "weights", "old_logps", "ref_logps"), "*fp32")
    types |= {"logits": f"*{dtype}", "dlogits": f"*{dtype}", "token_ids": "*i64", "mask": "*u8", "index": "*i64"}
    types |= dict.fromkeys(("state", "normalizer"), "*fp32")
    types |= dict.fromkeys(("num_rows", "num_tokens", "slots", "rows_per_completion"), "i32")
    launch = row_launch(vocabulary, DTYPES[dtype], "soft-capped" in variant)
    if variant == HELD:
        launch = clustered(dtype, vocabulary, arch) or launch
    ctas = launch.get("num_ctas", 1)
    constants: dict[str, Any] = {"V": vocabulary, "BLOCK": launch["BLOCK"], "KL_ESTIMATOR": 3, **flags}
    constants["HELD"] = ctas > 1
    if "compacted" in variant:
        constants["normalizer"] = None
    else:
        constants |= {"index": None, "rate": None}
    if not flags["GRADIENT"]:
        constants |= {"dlogits": None, "normalizer": None}
    if flags["TERM"] or not flags["GRADIENT"]:
        constants |= {"grad_logps": None, "grad_entropy": None}
    if not flags["TERM"]:
        constants |= dict.fromkeys(("advantages", "weights", "old_logps", "ref_logps", "normalizer"))
    for name in kernels.row_kernel.arg_names:
        types.setdefault(name, "fp32")
    warps = max(1, launch["num_warps"] // 2) if arch.startswith("gfx") else launch["num_warps"]  # of 64 lanes there
    compiled = build(kernels.row_kernel, types, constants, TARGETS[arch], warps, ctas)
    record = inspect(compiled, arch, warps, DTYPES[dtype])
    reads, writes = flags["STATISTICS"] + (flags["GRADIENT"] and ctas == 1), int(flags["GRADIENT"])
    record |= {"row_reads": reads, "row_writes": writes}
    if ctas > 1:
        record["multiprocessors_per_row"] = ctas
    elif arch in MACHINES:
        l2, multiprocessors = MACHINES[arch][4:]
        row = vocabulary * DTYPES[dtype]
        resident = min(
            record["blocks_per_sm"], programs(10**9, row, warps * 32, multiprocessors, l2 * 10**6) // multiprocessors
        )
        in_flight = resident * multiprocessors * row / 1e6
        record |= {"programs_per_sm": resident, "in_flight_mb": round(in_flight, 1)}
        if reads == 2:
            record["second_read_from_l2"] = in_flight <= l2
    return {"kernel": f"row_kernel: {variant}", "dtype": dtype, "vocabulary": vocabulary, "target": arch, **record}


def clustered(dtype: str, vocabulary: int, arch: str) -> dict[str, int] | None:
    """How a cluster holds such a row, where L2 does not hold all that are worked on; clusters are sm_90's."""
    if arch != "sm_90" or not compiles_clusters():
        return None
    l2, multiprocessors = MACHINES[arch][4:]
    return cluster_launch(vocabulary, DTYPES[dtype], multiprocessors, l2 * 10**6)


def small_kernels(arch: str) -> list[dict[str, Any]]:
    """The kernels around it, which do not depend on dtype and vocabulary."""
    wave = 1 if arch.startswith("gfx") else 2
    integers = dict.fromkeys(("num_completions", "group_size", "num_elements"), "i32")
    pointers = {"ranks": "*i64", "x": "*bf16", "zscore_eps": "fp32"}
    jobs: list[tuple[Any, dict[str, Any], int]] = [
        (group_kernel.group_kernel, {"MAPPING": m, "LANES": 8}, 2 * wave) for m in range(4)
    ]
    jobs += [(kernels.scale_kernel, {"BLOCK": 8192}, 4 * wave)]
    records = []
    for fn, constants, warps in jobs:
        types = dict.fromkeys(fn.arg_names, "*fp32") | integers | pointers
        compiled = build(fn, types, constants, TARGETS[arch], warps)
        name = fn.__name__
        if "MAPPING" in constants:
            name += f" ({list(group_kernel.MAPPINGS)[constants['MAPPING']]})"
        records.append({"kernel": name, "target": arch, **inspect(compiled, arch, warps)})
    return records


def liger_kernels(dtype: str, vocabulary: int, arch: str) -> list[dict[str, Any]]:
    """Liger's GRPO loss from logits, forward and backward, with its launch parameters (ops/grpo_loss.py)."""
    from liger_kernel.ops import grpo_loss as liger

    constants: dict[str, Any] = {
        "TEMPERATURE": 1.0, "BETA": 0.04, "EPS_LOW": 0.2, "EPS_HIGH": 0.2, "LOSS_TYPE": 0, "SAPO_TEMP_POS": 1.0,
        "SAPO_TEMP_NEG": 1.05, "DELTA": 0.0, "USE_BIAS_CORRECTION_KL": False, "L": 512, "N": vocabulary,
        "VLLM_IS_RATIO": None, "PHI_SEQ": None,
    }  # fmt: skip
    records = []
    for name, block, warps, reads, writes in (("fwd", 2048, 1, 1, 0), ("bwd", 4096, 16, 1, 1)):
        fn = getattr(liger, f"_grpo_loss_{name}_kernel")
        types = dict.fromkeys(fn.arg_names, "*fp32")
        types |= {"LOGITS": f"*{dtype}", "DLOGITS": f"*{dtype}", "INPUT_IDS": "*i64", "COMPLETION_MASK": "*i32"}
        types |= {"loss_stride0": "i32", "loss_stride1": "i32", "VLLM_IS_RATIO_STRIDE": "i32"}
        compiled = build(fn, types, {**constants, "BLOCK_N": block}, TARGETS[arch], warps)
        record = {"row_reads": reads, "row_writes": writes, **inspect(compiled, arch, warps)}
        records.append({"kernel": f"liger {name}", "dtype": dtype, "vocabulary": vocabulary, "target": arch, **record})
    return records


# ---------------------------------------------------------------------------------------------------------- prediction

#: The model: bandwidth and FLOP/s that copies and GEMMs of these sizes reach on an H100 SXM, and tokens of a chunk.
BANDWIDTH, FLOPS, LAUNCH_S, CHUNK = 3.0e12, 798e12, 4e-6, 2048


def held_by_l2(vocabulary: int, itemsize: int = 2, arch: str = "sm_90") -> bool:
    """Whether all rows that are worked on at a time fit in L2, so that the second sweep reads no memory."""
    l2, multiprocessors = MACHINES[arch][4:]
    launch, row = row_launch(vocabulary, itemsize), vocabulary * itemsize
    at_once = programs(10**9, row, launch["num_warps"] * 32, multiprocessors, l2 * 10**6)
    return at_once * row <= l2 * 10**6


def predict(tokens: int, hidden: int, vocabulary: int) -> dict[str, Any]:
    """PREDICTED milliseconds on an H100 in bf16, forward and backward: bytes / bandwidth + FLOPs / throughput, one
    after the other, as if nothing overlapped. A *floor* is what no way of doing it goes below: least bytes, GEMMs.

    Beside GEMMs and row passes a fused head moves, of the head's gradient in float32, the first chunk's write, a read
    and a write for each further chunk, and the narrowing (a read, and a write of 2 bytes); of the hidden states the
    gather, the zero fill of their gradient, the scatter into it, and its product with the incoming gradient.
    """
    in_l2 = held_by_l2(vocabulary)
    row = 2 * vocabulary * tokens / BANDWIDTH  # one read, or one write, of all logits
    in_place = (2 if in_l2 else 3) * row
    gemm = 2 * tokens * hidden * vocabulary / FLOPS
    chunks = -(-tokens // CHUNK)
    head = vocabulary * hidden * (4 + 8 * (chunks - 1) + 6) / BANDWIDTH
    states = tokens * hidden * 2 * (2 + 1 + 2 + 2) / BANDWIDTH
    milliseconds = {
        "floor_ms": {
            "from logits: one read, one write": 2 * row,
            "through a head: three GEMMs": 3 * gemm,
            "through a frozen head: two GEMMs": 2 * gemm,
        },
        "predicted_ms": {
            "from logits, in place": in_place + 4 * LAUNCH_S,
            "from logits, out of place": 3 * row + 4 * LAUNCH_S,
            "fused head": 3 * gemm + in_place + head + states,
            "fused head, frozen": 2 * gemm + in_place + states,
        },
        "of_these_ms": {"row passes": in_place, "the head's gradient in float32": head, "hidden states": states},
    }
    return {
        "tokens": tokens,
        "hidden": hidden,
        "vocabulary": vocabulary,
        "second_read_from_l2": in_l2,
        **{kind: {k: round(1e3 * x, 3) for k, x in named.items()} for kind, named in milliseconds.items()},
        "predicted_gb_above_inputs_and_outputs": round(
            (min(tokens, CHUNK) * vocabulary * 2 + vocabulary * hidden * 2) / 1e9, 2
        ),
        "predicted_gb_frozen_head": round(min(tokens, CHUNK) * vocabulary * 2 / 1e9, 2),
    }


def jobs(quick: bool, dtypes: list[str], vocabularies: list[int]) -> list[tuple[str, str, str, int]]:
    """Variant, architecture, dtype and vocabulary of each row kernel; ``quick``: all variants for one architecture, and
    for the others the two that are largest."""
    if not quick:
        all_of_them = [(x, arch, d, v) for arch in TARGETS for d in dtypes for v in vocabularies for x in VARIANTS]
        return all_of_them + [(HELD, "sm_90", d, v) for d in dtypes for v in vocabularies if clustered(d, v, "sm_90")]
    sizes = [("bf16", 152064), ("bf16", 32003), ("fp32", 152064)]
    largest = [(x, arch, *sizes[0]) for arch in TARGETS if arch != "sm_90" for x in VARIANTS if "loss and" in x]
    held = [(HELD, "sm_90", "bf16", 262144)] if compiles_clusters() else []
    return [*largest, *held, *[(x, "sm_90", *size) for size in sizes for x in VARIANTS]]


def report(quick: bool, dtypes: list[str], vocabularies: list[int]) -> dict[str, Any]:
    """All records."""
    records = [r for arch in (["sm_90"] if quick else TARGETS) for r in small_kernels(arch)]
    records += [row_kernel(variant, d, v, arch) for variant, arch, d, v in jobs(quick, dtypes, vocabularies)]
    try:
        for dtype in [] if quick else dtypes:
            records += [r for v in vocabularies for r in liger_kernels(dtype, v, "sm_90")]
    except ImportError:
        print("liger-kernel is not installed: its figures are left out")
    shapes = [(n, h, v) for h, v in ((3584, 152064), (2048, 151936)) for n in (2048, 8192, 32768)]
    shapes += [(8192, 4096, 128256), (8192, 3840, 262144)]
    return {
        "what": "compiled ahead of time and read from the binaries; milliseconds are PREDICTIONS of a stated model",
        "commit": about(False)["commit"],
        "versions": {"triton": triton.__version__, "liger-kernel": _version("liger-kernel")},
        "kernels": records,
        "predictions_h100": [predict(*shape) for shape in shapes],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Write the JSON, and print what stands out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a sample, in half a minute")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=list(VOCABULARIES))
    parser.add_argument("--output", default="outputs/static.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    figures = report(arguments.quick, arguments.dtypes, arguments.vocabularies)
    os.makedirs(os.path.dirname(arguments.output) or ".", exist_ok=True)
    with open(arguments.output, "w", encoding="utf-8") as file:
        lines = {key: [json.dumps(item) for item in figures.pop(key)] for key in ("kernels", "predictions_h100")}
        file.write(json.dumps(figures)[:-1])
        for key, items in lines.items():  # a record a line, for whoever compares two of these files
            file.write(f',\n"{key}": [\n' + ",\n".join(items) + "\n]")
        file.write("}\n")
        figures |= {key: [json.loads(item) for item in items] for key, items in lines.items()}
    names = f"{'kernel':<55} {'dtype':<5} {'V':>7} {'target':<7}"
    print(f"{names} {'regs':>4} {'spill':>5} {'occ':>5} {'instructions a logit':>20}  loads / stores by bits")
    for r in figures["kernels"]:
        if r.get("vocabulary", 152064) in (152064, 32003) and r.get("dtype", "bf16") == "bf16":
            occupancy = f"{100 * r['occupancy']:.0f}%" if "occupancy" in r else ""
            print(
                f"{r['kernel']:<55} {r.get('dtype', ''):<5} {r.get('vocabulary', ''):>7} {r['target']:<7} "
                f"{r['registers']:>4} {r['spills']:>5} {occupancy:>5} {r.get('instructions_per_logit', '')!s:>20}  "
                f"{r['loads']} / {r['stores']}"
            )
    print("\nPREDICTED, not measured: milliseconds on an H100, bf16, forward and backward")
    for p in figures["predictions_h100"]:
        print(f"N={p['tokens']} H={p['hidden']} V={p['vocabulary']}: {p['predicted_ms']}; floors {p['floor_ms']}")


if __name__ == "__main__":
    main()
