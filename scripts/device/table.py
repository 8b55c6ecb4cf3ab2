"""The table of ratios from what check.sh left in a folder: python3 table.py FOLDER

Ours and the peer's times are of one run on one machine. A ratio is the peer's time over ours: above 1, Weft is faster.
A row appears when its numbers are there.
"""

import json
import pathlib
import sys

HYBRID = "3*gdn2 + attention"
# Title, our row, the peer's row, target of the ratio.
LARGE, CAUSAL = "8192 x 8192 x 8192", "B4 T4096 H16 D128"
PAIRS = [
    ("bf16 product 8192^3", ("kernels", "matmul A B", LARGE), "product", None),
    ("attention, SDPA flash", ("kernels", "attention", CAUSAL), "sdpa-flash", None),
    ("attention, SDPA cuDNN", ("kernels", "attention", CAUSAL), "sdpa-cudnn", None),
    ("attention back, SDPA flash", ("kernels", "attention back", CAUSAL), "sdpa-flash-back", None),
    ("attention back, SDPA cuDNN", ("kernels", "attention back", CAUSAL), "sdpa-cudnn-back", None),
    ("gdn T8192, fla", ("kernels", "gdn", "B1 T8192 H16/32 K=V=128"), "fla-gdn-8192", 1.0),
    ("gdn T32768, fla", ("kernels", "gdn", "B1 T32768 H16/32 K=V=128"), "fla-gdn-32768", 1.0),
    ("kda T8192, fla", ("kernels", "kda", "B1 T8192 H32 K=V=128"), "fla-kda-8192", 1.0),
    ("kda T8192 back, fla", ("kernels", "kda back", "B1 T8192 H32 K=V=128"), "fla-kda-8192-back", 1.0),
    ("transformer T1024, eager", ("train", "attention", 1024), "train-1024-eager", 1.0),
    ("transformer T1024, compile", ("train", "attention", 1024), "train-1024-compile", 1.0),
    ("transformer T1024, eager, pure bf16", ("train", "attention", 1024), "train-1024-eager-bf16", None),
    ("transformer T1024, compile, pure bf16", ("train", "attention", 1024), "train-1024-compile-bf16", None),
    ("transformer T4096, eager", ("train", "attention", 4096), "train-4096-eager", None),
    ("transformer T4096, compile", ("train", "attention", 4096), "train-4096-compile", None),
    ("decode, hybrid 24 x 1024, batch 1, eager", ("decode", HYBRID, 1, 100), "decode", 3.0),
]


def read(path: pathlib.Path):
    """The JSON value of a file; None if it is not there or was cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def load(folder: pathlib.Path):
    ours = {}
    documents = {name: read(folder / f"{name}.json") for name in ("kernels", "train", "decode")}
    keys = {
        "kernels": lambda r: (r["name"], r["shape"]),
        "train": lambda r: (r["layers"], r["tokens"]),
        "decode": lambda r: (r["layers"], r["batch"], r["position"]),
    }
    for name, document in documents.items():
        for row in (document or {}).get("rows", []):
            ours.setdefault((name, *keys[name](row)), row)
    peers = {}
    lines = folder / "peers.jsonl"
    for line in lines.read_text().splitlines() if lines.is_file() else []:
        row = json.loads(line)
        peers[row["what"]] = row
    return documents, ours, peers


def show(headings, rows):
    if not rows:
        return
    print("| " + " | ".join(headings) + " |")
    print("|" + " --- |" + " ---: |" * (len(headings) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def against(value, target, low=False) -> str:
    """The target, and whether it is met."""
    if target is None:
        return ""
    met = value <= target if low else value >= target
    return f"{target:g} {'met' if met else 'MISSED'}"


def time(ms: float) -> str:
    return f"{ms:.4g}"


def main(folder: pathlib.Path):
    documents, ours, peers = load(folder)
    document = next((d for d in documents.values() if d), None)
    if document:
        versions = document["versions"]
        torch = next((p["torch"] for p in peers.values()), "not run")
        print(
            f"{document['machine']}, driver for CUDA {versions['driver']}, NVRTC {versions['nvrtc']}, "
            f"weft {versions['weft']}, torch {torch}\n"
        )

    rows = []
    for title, key, what, target in PAIRS:
        if key in ours and what in peers:
            mine, peer = ours[key]["ms"], peers[what]["ms"]
            rows.append([title, time(mine), time(peer), f"{peer / mine:.2f}", against(peer / mine, target)])
    show(["row", "Weft, ms", "peer, ms", "ratio", "target"], rows)

    rows = []
    kernels = documents["kernels"]
    if kernels and "copy" in peers:
        copy, peer = kernels["ceilings"]["copy"], peers["copy"]["bytes_per_second"]
        rows.append(["copy, TB/s, Weft : peer", f"{copy / 1e12:.2f} : {peer / 1e12:.2f}", ""])
    pair = [ours.get(("train", layers, 4096)) for layers in (HYBRID, "attention")]
    if all(pair):
        ratio = pair[1]["ms"] / pair[0]["ms"]
        rows.append(["hybrid's speed over the transformer's, T4096", f"{ratio:.2f}", against(ratio, 1.0)])
    pair = [ours.get(("kernels", rule, "B1 T8192 H32 K=V=128")) for rule in ("gdn2", "kda")]
    if all(pair):
        ratio = pair[0]["ms"] / pair[1]["ms"]
        rows.append(["gdn2's time over kda's, T8192", f"{ratio:.2f}", against(ratio, 1.3, low=True)])
    step = ours.get(("kernels", "gdn2 step", "B256 H32 K=V=128"))
    if step:
        rows.append(["decode step, batch 256, of the copy", f"{step['share']:.2f}", against(step["share"], 0.75)])
    for name in ("train", "decode"):
        found = [r["driver_allocations"] for r in (documents[name] or {}).get("rows", [])]
        if found and None not in found:
            rows.append([f"driver allocations of a step, most, {name}", str(max(found)), against(max(found), 0, low=True)])
    starts = [read(folder / f"start-{which}.json") for which in ("first", "second")]
    if all(starts):
        first, second = (s["seconds"] for s in starts)
        rows.append([f"compiling all {starts[0]['archs'][0]['modules']} kernels, s", f"{first:.1f}", ""])
        rows.append(["finding them compiled, s", f"{second:.2f}", against(second, 1.0, low=True)])
    show(["what", "value", "target"], rows)

    rows = []
    for row in (documents["train"] or {}).get("rows", []):
        rate = f"{row['tokens_per_second'] / 1e3:.1f} k"
        mfu = f"{100 * row['mfu']:.1f}%" if row["mfu"] else ""
        memory = f"{row['peak_bytes'] / 2**30:.1f}"
        shape = f"B{row['batch']} T{row['tokens']}"
        rows.append([f"training, {row['layers']}, {shape}", time(row["ms"]), rate, mfu, memory])
    for row in (documents["decode"] or {}).get("rows", []):
        what = f"decoding, {row['layers']}, batch {row['batch']} at {row['position']}"
        rate, memory = f"{row['tokens_per_second']:.0f}", f"{row['peak_bytes'] / 2**30:.1f}"
        rows.append([what, time(row["ms"]), rate, f"{100 * row['share']:.0f}% of copy", memory])
    show(["model", "ms", "tokens/s", "MFU", "GiB"], rows)

    for name, document in documents.items():
        for row in (document or {}).get("failed", []):
            print(f"not measured, {name}: {row['row']}: {row['error']}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: table.py FOLDER")
    main(pathlib.Path(sys.argv[1]))
