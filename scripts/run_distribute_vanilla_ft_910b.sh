#!/usr/bin/env bash
# Fine-tune SDXL base on the cards of a rank table; on a second server start it there with that server's ranks.
#
#   bash scripts/run_distribute_vanilla_ft_910b.sh /path_to/hccl_8p.json 0 8 8 /path_to/dataset/
#   bash scripts/run_distribute_vanilla_ft_910b.sh /path_to/hccl_16p.json 8 16 16 /path_to/dataset/     # second server
#
# The places: rank table, first rank here, the one after the last, ranks in all, folder of pictures. Flags of train.py may
# follow. One log a rank in logs_for_distribute/; docs/distributed.md says the rest. DEVICE_TARGET=CPU runs it on the CPU.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/ranks.sh"
start_ranks logs_for_distribute --weight checkpoints/sd_xl_base_1.0_ms.ckpt --save_path_with_time False -- "$@"
