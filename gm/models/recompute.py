"""Which states of the forward pass are kept for the gradient, and which are computed again (``--recompute``).

Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): of a recomputed block only its input is kept.
"""

from mindspore import nn

from gm.models.layers import Sharing
from gm.models.text_encoders import CLIPLayer, OpenCLIPLayer
from gm.models.unet import ResidualBlock, TransformerBlock

TRANSFORMERS = (TransformerBlock, CLIPLayer, OpenCLIPLayer)
BLOCKS = {"none": (), "transformer": TRANSFORMERS, "all": (*TRANSFORMERS, ResidualBlock)}


def recompute(network: nn.Cell, what: str) -> int:
    """Recompute each block of the kind ``what`` ("none", "transformer" or "all") in ``network``; returns how many.

    Call it before the network is compiled.
    """
    blocks = [cell for _, cell in network.cells_and_names() if isinstance(cell, BLOCKS[what])]
    for block in blocks:
        if isinstance(block, Sharing):
            block.by_itself()  # what is shared would be computed again in other networks too
        block.recompute()
    return len(blocks)
