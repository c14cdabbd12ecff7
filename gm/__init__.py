"""Fine-tune Stable Diffusion XL with MindSpore, on Ascend NPUs and on CPUs."""

from gm.environment import prepare_environment

__version__ = "0.1.0"

# Every entry into the package passes here, so MindSpore always finds these settings when it is first imported.
prepare_environment()
