#!/usr/bin/env bash
# Builds what check.sh runs and puts it into a folder: bash scripts/device/pack.sh FOLDER
# The folder and a checkout are all that a machine with a GPU and without Rust needs.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: pack.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
tests="weft_tensor parity parity_products parity_sizes parity_training fused_expressions cuda_graph cuda_process \
custom_kernel weft_mixers laws it weft_train"

export CARGO_TERM_COLOR=never
put() { # FILE NAME
    cp "$1" "$folder/.$2"
    # Without the lines of the sources: the binaries may have to travel.
    if command -v strip >/dev/null; then strip --strip-debug "$folder/.$2"; fi
    mv "$folder/.$2" "$folder/$2"
}
cargo build --release --locked -p weft-cli
put "${CARGO_TARGET_DIR:-target}/release/weft" weft
# "  Executable tests/parity.rs (target/release/deps/parity-0123456789abcdef)"
list=$(cargo test --release --locked --no-run -p weft-tensor -p weft-mixers -p weft-models -p weft-train 2>&1 | tee >(cat >&2))
for name in $tests; do
    file=$(sed -n "s|^ *Executable .* (\(.*/$name-[0-9a-f]*\))\$|\1|p" <<<"$list" | head -1)
    [ -n "$file" ] || { echo "cargo built no test binary $name" >&2; exit 1; }
    put "$file" "$name"
done
du -sh "$folder"
