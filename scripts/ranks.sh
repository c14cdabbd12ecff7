# What the scripts for rank tables have in common; sourced, with $root set.

# start_ranks LOGS FLAGS... -- RANK_TABLE RANK_START RANK_END RANK_SIZE DATASET [FLAGS...]
start_ranks() {
    local logs=$1 python=${PYTHON:-}
    shift
    if [ -z "$python" ]; then
        python=python
        [ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python
    fi
    command -v "$python" >/dev/null || { echo "error: no $python here: run scripts/setup.sh, or set PYTHON" >&2; exit 1; }
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m gm.parallel.spawn "$logs" \
        "$root/train.py" --config "$root/configs/training/sd_xl_base_finetune_910b.yaml" \
        --device_target "${DEVICE_TARGET:-auto}" --max_device_memory 59GB --is_parallel True "$@"
}
