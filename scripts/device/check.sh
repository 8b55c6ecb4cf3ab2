#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go: checks, benchmarks, PyTorch beside them, and a table of ratios.
#
#   bash scripts/device/check.sh [PART...]         all parts, or some: see the list below
#
#   OUT=FOLDER      logs and results [target/device]; parts may be run one by one, the table takes what is there
#   WEFT_BIN=FOLDER binaries made by pack.sh; without it they are built here, with cargo
#   PYTHON=FILE     a Python with torch for the peers [python3]; the table needs Python 3 alone
#   WEFT_NVRTC, WEFT_CUBLASLT where those libraries are not found by themselves (docs/kernels.md)
#
# The exit code is 0 only if every part passed. A part that lacks its tool says so and passes.
set -uo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
mkdir -p "${OUT:=target/device}"
out=$(cd "$OUT" && pwd)
python=${PYTHON:-python3}

PARTS="start parity optimizer laws golden decoding train memcheck racecheck kernels models peers table"

# What compute-sanitizer runs, as it makes everything ten to a hundred times slower: binary and filter of its tests.
SMOKE="parity:table_strided parity_products:fused_operations parity_products:indices parity_sizes:special_values \
weft_mixers:gpu weft_train:device_tests"

if [ -z "${WEFT_BIN:-}" ]; then
    command -v cargo >/dev/null || { echo "no cargo: install Rust, or name a folder made by scripts/device/pack.sh in WEFT_BIN" >&2; exit 1; }
    WEFT_BIN=$out/bin
    bash scripts/device/pack.sh "$WEFT_BIN" || exit 1
fi
bin=$(cd "$WEFT_BIN" && pwd) || exit 1
export WEFT_REQUIRE_GPU=1 WEFT_TEST_DEVICE=cuda
# Tests of crates/mixers find their numbers from here.
export CARGO_MANIFEST_DIR=$root/crates/mixers

# Tensors of more than 2^32 elements need room for several.
memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1)
[ "${memory:-0}" -ge 40000 ] && export WEFT_BIG=1

missing() { echo "left out: $1"; return 77; }

# Compiling all kernels into an empty cache, and finding them there.
start() {
    export XDG_CACHE_HOME=$out/cache
    rm -rf "$XDG_CACHE_HOME"
    "$bin/weft" kernels build --json | tee "$out/start-first.json" &&
        "$bin/weft" kernels build --json | tee "$out/start-second.json"
}

# Every primitive, the allocator and the launches against the CPU, into memory filled with NaN.
parity() {
    local failed=0
    for name in weft_tensor parity parity_products parity_sizes parity_training fused_expressions cuda_graph cuda_process custom_kernel; do
        "$bin/$name" || failed=1
    done
    return $failed
}

optimizer() { "$bin/weft_train" device_tests; }
laws() { "$bin/laws" obeys_the_laws; }
golden() { "$bin/weft_mixers"; }
# Steps that were recorded against steps that were not.
decoding() { "$bin/it" decoder; }

# A training run whose last steps ask the driver for no memory.
train() {
    rm -rf "$out/run"
    printf '%s\n' "out = \"$out/run\"" '[model]' 'd_model = 256' 'layers = "gdn2 + attention"' 'depth = 2' \
        '[data]' "text = [\"$root/docs\", \"$root/crates\"]" 'sequence = 256' \
        '[train]' 'steps = 60' 'batch = 8' 'lr = 1e-3' 'bf16 = true' '[eval]' 'every = 30' 'batches = 2' >"$out/smoke.toml"
    "$bin/weft" train "$out/smoke.toml" --device cuda --anew || return 1
    grep '"driver_allocations"' "$out/run/log.jsonl" | tail -20 >"$out/last-steps.jsonl"
    [ "$(grep -c '"driver_allocations":0,' "$out/last-steps.jsonl")" = 20 ] ||
        { echo "the last 20 steps asked the driver for memory:"; cat "$out/last-steps.jsonl"; return 1; }
    echo "the last 20 steps asked the driver for no memory"
}

sanitize() { # TOOL
    command -v compute-sanitizer >/dev/null || { missing "compute-sanitizer is not on the PATH"; return; }
    local failed=0 one
    for one in $SMOKE; do
        echo "$1: $one"
        timeout 400 compute-sanitizer --tool "$1" --error-exitcode 9 "$bin/${one%%:*}" "${one##*:}" --test-threads 1 || failed=1
    done
    return $failed
}
memcheck() { sanitize memcheck; }
racecheck() { sanitize racecheck; }

kernels() { "$bin/weft" bench kernels --device cuda --json >"$out/kernels.json"; }
models() {
    "$bin/weft" bench train --device cuda --json >"$out/train.json"
    local train=$?
    "$bin/weft" bench decode --device cuda --json >"$out/decode.json" && return $train
}
peers() {
    "$python" -c 'import torch' 2>/dev/null || { missing "$python has no torch: name one in PYTHON"; return; }
    "$python" benches/peers/torch_gpu.py >"$out/peers.jsonl"
}
table() {
    "$python" scripts/device/table.py "$out" | tee "$out/table.md"
}

failed=0
for part in ${*:-$PARTS}; do
    case " $PARTS " in
        *" $part "*) ;;
        *) echo "no part '$part': the parts are $PARTS" >&2; exit 2 ;;
    esac
    if [ "$part" = table ]; then
        table || failed=1
        continue
    fi
    begin=$SECONDS
    ("$part") >"$out/$part.log" 2>&1
    code=$?
    case $code in
        0) word=ok ;;
        77) word=$(tail -1 "$out/$part.log") ;;
        *) word="FAILED, see $out/$part.log"; failed=1 ;;
    esac
    printf '%-10s %4d s  %s\n' "$part" $((SECONDS - begin)) "$word"
    # What a failed part said last is what one wants to know.
    [ "$code" = 0 ] || [ "$code" = 77 ] || tail -15 "$out/$part.log" | sed 's/^/    /'
done
exit $failed
