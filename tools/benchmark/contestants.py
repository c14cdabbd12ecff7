"""One training step as each suite would take it, for ``training_step.py``: same network, shapes, batch and optimizer.

A contestant is a function ``(model: Model) -> (version, parameters, step)``: what it runs on, how many numbers it
trains, and a function that takes one whole step - forward, backward, clipping to a global norm of 1, AdamW with no
decay on norms and biases, float32 - and returns the loss as a float.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gm.models.architecture import TINY_SDXL, UNetArchitecture

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM, LATENT_SCALE = 1e-5, 1e-2, 1.0, 0.13025
Contest = tuple[str, int, Callable[[], float]]


@dataclass(frozen=True)
class Model:
    """A UNet and what it is fed: latents (batch, 4, side, side) and 77 tokens."""

    unet: UNetArchitecture
    side: int
    batch: int

    def arrays(self) -> dict[str, np.ndarray]:
        """A batch of noise under the names of ``gm.training.loss.BATCH_FIELDS``; the loss is the plain squared one."""
        rng = np.random.default_rng(0)
        shapes = {
            "moments": (8, self.side, self.side),
            "posterior_noise": (4, self.side, self.side),
            "noise": (4, self.side, self.side),
            "input_noise": (4, self.side, self.side),
            "context": (77, self.unet.context_dim),
            "pooled": (self.unet.vector_dim - 6 * 256,),
            "time_ids": (6,),
        }
        arrays = {name: rng.normal(size=(self.batch, *shape)) for name, shape in shapes.items()}
        scalars = ("timesteps", "alpha", "sigma", "target_noise", "target_latents", "weight")
        arrays |= {name: rng.uniform(0.1, 1.0, self.batch) for name in scalars}
        arrays["timesteps"] = np.floor(arrays["timesteps"] * 999)
        arrays["inverse_huber_c"] = np.zeros(self.batch)
        arrays["time_ids"] = np.floor(rng.uniform(0, 1024, (self.batch, 6)))
        return {name: array.astype(np.float32) for name, array in arrays.items()}


MODELS = {
    "tiny": Model(TINY_SDXL.unet, side=8, batch=16),  # the quickstart's
    # Every block of SDXL's UNet, 70 transformer blocks among them, at a fifth of the width.
    "slim": Model(
        replace(UNetArchitecture(), channels=(64, 128, 256), context_dim=512, vector_dim=256 + 6 * 256),
        side=32,
        batch=1,
    ),
}


def suite(model: Model) -> Contest:
    """This suite's compiled step."""
    import mindspore as ms

    from gm.models.build import build_unet
    from gm.training.adamw import AdamW
    from gm.training.loss import DiffusionLoss
    from gm.training.step import TrainStep, tensors

    ms.set_context(mode=ms.GRAPH_MODE)
    unet = build_unet(model.unet, seed=0)
    trained = list(unet.trainable_params())
    optimizer = AdamW(trained, weight_decay=WEIGHT_DECAY)
    step = TrainStep(DiffusionLoss(unet, LATENT_SCALE), optimizer, max_grad_norm=MAX_GRAD_NORM)
    step.set_train()
    batch, lr = tensors(model.arrays()), ms.Tensor(LEARNING_RATE, ms.float32)
    count = sum(parameter.size for parameter in trained)
    return f"MindSpore {ms.__version__}", count, lambda: float(step(lr, *batch)[0].asnumpy())


def diffusers(model: Model) -> Contest:
    """torch eager with diffusers' UNet and the fused AdamW."""
    import diffusers
    import torch

    from gm.weights.diffusers_config import unet_config

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel.from_config(unet_config(model.unet)).train()
    parameters = list(unet.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    batch = {name: torch.from_numpy(array) for name, array in model.arrays().items()}
    per_sample = {name: value.reshape(-1, 1, 1, 1) for name, value in batch.items() if value.ndim == 1}

    def step() -> float:
        mean, logvar = batch["moments"].chunk(2, dim=1)
        latents = (mean + (0.5 * logvar.clamp(-30, 20)).exp() * batch["posterior_noise"]) * LATENT_SCALE
        noisy = per_sample["alpha"] * latents + per_sample["sigma"] * batch["input_noise"]
        target = per_sample["target_noise"] * batch["noise"] + per_sample["target_latents"] * latents
        added = {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]}
        prediction = unet(noisy, batch["timesteps"], batch["context"], added_cond_kwargs=added).sample
        loss = (((prediction - target) ** 2).mean(dim=(1, 2, 3)) * batch["weight"]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        return loss.item()

    return f"torch {torch.__version__} ({torch.get_num_threads()} threads)", sum(p.numel() for p in parameters), step


def mindone(model: Model) -> Contest:
    """mindone's port of diffusers in graph mode, with its trainers' optimizer (AdamW without bias correction)."""
    import mindone
    import mindspore as ms
    from mindone.diffusers import UNet2DConditionModel
    from mindspore import nn, ops

    from gm.weights.diffusers_config import unet_config

    class Loss(nn.Cell):
        def __init__(self, unet):
            super().__init__(auto_prefix=False)
            self.unet = unet

        def construct(self, noisy, target, timesteps, context, pooled, time_ids):
            added = {"text_embeds": pooled, "time_ids": time_ids}
            prediction = self.unet(noisy, timesteps, context, added_cond_kwargs=added, return_dict=False)[0]
            error = prediction - target
            return ops.mean(error * error)

    class Step(nn.Cell):
        def __init__(self, loss, optimizer):
            super().__init__(auto_prefix=False)
            self.optimizer = optimizer
            self.loss_and_gradients = ops.value_and_grad(loss, None, optimizer.parameters)

        def construct(self, *batch):
            loss, gradients = self.loss_and_gradients(*batch)
            return ops.depend(loss, self.optimizer(ops.clip_by_global_norm(gradients, MAX_GRAD_NORM)))

    ms.set_context(mode=ms.GRAPH_MODE)
    unet = UNet2DConditionModel.from_config(unet_config(model.unet)).set_train()
    trained = list(unet.trainable_params())
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    step = Step(Loss(unet), nn.AdamWeightDecay(groups, learning_rate=LEARNING_RATE))
    arrays = model.arrays()
    names = ("noise", "posterior_noise", "timesteps", "context", "pooled", "time_ids")
    batch = [ms.Tensor(arrays[name]) for name in names]
    count = sum(parameter.size for parameter in trained)
    version = f"mindone {mindone.__version__}, MindSpore {ms.__version__}"
    return version, count, lambda: float(step(*batch).asnumpy())


# Each with the packages it needs.
CONTESTANTS = {
    "suite": (suite, ("mindspore",)),
    "diffusers": (diffusers, ("torch", "diffusers")),
    "mindone.diffusers": (mindone, ("mindspore", "mindone")),
}
