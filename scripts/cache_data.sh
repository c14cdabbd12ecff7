#!/usr/bin/env bash
# Encode pictures and captions once, shared by the cards of a rank table; train with the same flags afterwards.
#
#   bash scripts/cache_data.sh /path_to/hccl_8p.json 0 8 8 /path_to/dataset/
#   bash scripts/cache_data.sh /path_to/hccl_8p.json 0 8 8 /path_to/dataset/ --cache_path /path_to/cache
#
# The places: rank table, first rank here, the one after the last, ranks in all, folder of pictures. Flags of train.py may
# follow. One log a rank in logs_for_cache/; docs/distributed.md says the rest. DEVICE_TARGET=CPU runs it on the CPU.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/ranks.sh"
start_ranks logs_for_cache --task cache --weight checkpoints/sd_xl_base_1.0_ms.ckpt \
    --cache_latent True --cache_text_embedding True -- "$@"
