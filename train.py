"""Train Stable Diffusion XL, or encode its training data once so that training is quick.

Fine-tune on a folder of pictures and captions (docs/configuration.md lists every flag):

    python train.py --config configs/training/sd_xl_base_finetune_910b.yaml \\
        --weight checkpoints/sd_xl_base_1.0_ms.ckpt --data_path /path/to/your/dataset

Encode the pictures and captions first, then train from the cache (the same flags with --task cache, then without):

    python train.py --task cache --config configs/training/sd_xl_base_finetune_910b.yaml \\
        --weight checkpoints/sd_xl_base_1.0_ms.ckpt --data_path /path/to/your/dataset \\
        --save_path_with_time False --cache_latent True --cache_text_embedding True --cache_path ./cache_data

See what training would make of a folder, without training:

    python train.py --task check --data_path /path/to/your/dataset

The same in miniature, on any laptop:

    python train.py --config configs/training/tiny_sdxl.yaml --data_path /path/to/your/dataset

Exit codes: 0 done, 2 wrong usage, 1 any other failure; every error is one line.
"""

import logging

from gm.config import load
from gm.environment import take_allocator
from gm.errors import run_door


def main(arguments: list[str]) -> int | None:
    """Parse the command line, make the device ready and hand over to the task."""
    config = load(arguments, usage=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Imported here, because MindSpore takes seconds to load: only for a command line that can work.
    if config.task == "check":
        from gm.data import check

        return check.check(config)

    from gm import launch

    with launch.start(config.launch, together=True) as device:
        from gm.models import attention  # imports MindSpore, which start() prepares
        from gm.parallel import agreement

        agreement.check(config, device.peers)
        attention.choose(config.model.attention, device.target, config.launch.precision)
        if config.data.with_prior_preservation:
            from gm.sampling import class_images

            class_images.draw_lacking(config, device.peers)
        if config.task == "cache":
            from gm.data import cache

            return cache.build(config, rank=device.rank)

        from gm.evaluation.preview import ScoredPreview
        from gm.training import loop

        return loop.train(config, ScoredPreview, device)


if __name__ == "__main__":
    take_allocator()
    run_door(main)
