#!/usr/bin/env bash
# Weft and its PyTorch peers in one run, row by row: bash benches/run.sh [path to a python with torch]
# Prints one JSON object per line; the peers' say so by their "torch" field.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
cargo bench -p weft-train --bench end_to_end --locked --no-run
for row in transformer hybrid decode decode-bf16; do
    cargo bench -q -p weft-train --bench end_to_end --locked -- "$row"
    "$python" benches/peers/torch_cpu.py --what "$row" --threads 2 --json
done
"$python" benches/peers/torch_cpu.py --what machine --threads 2 --json
cargo bench -q -p weft-train --bench end_to_end --locked -- constant
