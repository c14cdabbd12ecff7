"""Train a tiny CLIP on the tiny world, so that a CLIP score of its pictures means something.

    python -m demo.tiny.train_clip runs/tiny_clip    # a folder as the hub has CLIP models; about a minute on one core

Of a batch of pictures of different things, each is to be nearest to its own caption, and each caption to its own
picture (Radford et al. 2021, arXiv 2103.00020, figure 3).
"""

import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from safetensors.numpy import save
from tqdm import tqdm

from demo.tiny import world
from gm.config.flags import Parser, positive
from gm.data.tokens import Tokenizers
from gm.errors import run_door
from gm.evaluation.clip_score import prepare
from gm.files import replacing, write_json
from gm.models.architecture import CLIPArchitecture, TextEncoderArchitecture, VisionEncoderArchitecture
from gm.models.build import build_clip
from gm.models.clip import CLIP
from gm.training.adamw import AdamW
from gm.training.lr import learning_rate

TOKENIZER = Path(__file__).parent / "tokenizer"
ARCHITECTURE = CLIPArchitecture(
    TextEncoderArchitecture(vocab_size=627, width=64, layers=2, mlp_dim=128, projection_dim=32),
    VisionEncoderArchitecture(width=64, layers=3, mlp_dim=128, heads=2, patch_size=8, picture_size=64),
)
SEED, BATCH, PICTURES = 0, 48, 10  # pictures of each caption


class ContrastiveLoss(nn.Cell):
    """Cross entropy of the right caption among all, and of the right picture: (B, 77) ids, (B, 3, H, W) -> scalar."""

    def __init__(self, clip: CLIP):
        super().__init__(auto_prefix=False)
        self.clip = clip

    def construct(self, ids: Tensor, pictures: Tensor) -> Tensor:
        texts, shown = self.clip.embed_texts(ids), self.clip.embed_pictures(pictures)
        logits = ops.matmul(shown, texts.T) * ops.exp(self.clip.logit_scale)
        right = (texts * shown).sum(-1) * ops.exp(self.clip.logit_scale)
        return (0.5 * (ops.logsumexp(logits, 0) + ops.logsumexp(logits, 1)) - right).mean()


class Step(nn.Cell):
    """One AdamW update; returns the loss."""

    def __init__(self, clip: CLIP):
        super().__init__(auto_prefix=False)
        self.optimizer = AdamW(clip.trainable_params(), beta2=0.98)
        self.gradients = ops.value_and_grad(ContrastiveLoss(clip), None, self.optimizer.trained)

    def construct(self, ids: Tensor, pictures: Tensor, lr: Tensor) -> Tensor:
        loss, grads = self.gradients(ids, pictures)
        return ops.depend(loss, self.optimizer(grads, lr))


def draw(seed: int) -> tuple[list[str], np.ndarray]:
    """Every caption of the world (N), and ``PICTURES`` of each as CLIP reads them (N, PICTURES, 3, H, W)."""
    rng = np.random.default_rng(seed)
    every = world.combinations(list(world.COLOURS), world.SHAPES)
    side = ARCHITECTURE.vision.picture_size
    shown = [
        [prepare(world.example(*one, rng).picture, side) for _ in range(PICTURES)] for one in tqdm(every, "drawing")
    ]
    return [world.caption(colour, shape, ground) for shape, colour, ground in every], np.array(shown)


def write(folder: Path, clip: CLIP) -> None:
    """The files that a CLIP of the hub has."""
    with replacing(folder / "model.safetensors") as file:
        file.write(save({p.name: p.asnumpy() for p in clip.get_parameters()}, {"format": "pt"}))
    heads = {"text": ARCHITECTURE.text.heads, "vision": ARCHITECTURE.vision.heads}
    told = {f"{tower}_config": {"num_attention_heads": count} for tower, count in heads.items()}
    write_json(folder / "config.json", {"architectures": ["CLIPModel"], "model_type": "clip", **told})
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(TOKENIZER / name, folder / name)


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/tiny_clip"))
    parser.add_argument("--steps", type=positive, default=250)
    options = parser.parse(arguments)
    ms.set_context(mode=ms.GRAPH_MODE)
    captions, pictures = draw(SEED)
    (ids,) = Tokenizers.load(TOKENIZER, encoders=(ARCHITECTURE.text,)).encode(captions)
    clip = build_clip(ARCHITECTURE, seed=SEED)
    step = Step(clip)
    step.set_train()
    rng = np.random.default_rng(SEED)
    average, started = 0.0, time.monotonic()
    bar = tqdm(range(options.steps), unit="step")
    for index in bar:
        chosen = rng.permutation(len(captions))[:BATCH]
        batch = pictures[chosen, rng.integers(0, PICTURES, BATCH)]
        lr = learning_rate("cosine", index, 2e-3, warmup_steps=20, total_steps=options.steps)
        loss = float(step(Tensor(ids[chosen]), Tensor(batch), Tensor(lr, ms.float32)).asnumpy())
        average = loss if index == 0 else 0.95 * average + 0.05 * loss
        bar.set_postfix(loss=f"{average:.3f}")
    write(options.folder, clip)
    print(f"CLIP: loss {average:.3f} after {time.monotonic() - started:.0f} s, saved to {options.folder}")


if __name__ == "__main__":
    run_door(main)
