#!/usr/bin/env bash
# Weft on the CPU and its PyTorch peers in one run, row by row: bash benches/run.sh [path to a python with torch]
# Prints one JSON object per line; the peers' say so by their "torch" field. Every row is a process of its own, so that
# its peak of resident memory is its own.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
hybrid="3*gdn2 + attention"
weft() { cargo run -q --release --locked -- bench "$@" --device cpu --seconds 20 --json; }
peer() { "$python" benches/peers/torch_cpu.py --what "$1" --threads 2 --json; }

weft train --layers attention
peer transformer
weft train --layers "$hybrid"
peer hybrid
weft decode --layers "$hybrid" --batch 1 --position 100
peer decode
weft decode --layers "$hybrid" --batch 1 --position 100 --weights bf16
peer decode-bf16
peer machine
for position in 100 10000; do
    weft decode --layers gdn2 --batch 1 --position "$position"
done
