"""The training run: from a configuration to a folder of weights, metrics and state."""

from pathlib import Path

from gm.config import Config
from gm.data import datasets
from gm.data.batches import Batches, encodes_in_step
from gm.data.encoders import NetworkEncoders
from gm.data.tokens import Tokenizers
from gm.files import write_text
from gm.launch import Device
from gm.parallel.mesh import Mesh
from gm.parallel.peers import Alone
from gm.parallel.world import World
from gm.training import eval_loss
from gm.training.assemble import assemble, load_unet
from gm.training.report import predict, report
from gm.training.run import Run
from gm.training.run_folder import RunFolder, logged
from gm.training.state import read_progress
from gm.training.timing import timed
from gm.training.validation import MakeDraw


def train(config: Config, make_draw: MakeDraw | None = None, device: Device | None = None) -> None:
    """Train the UNet as ``config`` says, or only report what that would be with ``dry_run``.

    SIGINT and SIGTERM let the running step end, save, and return normally; ``--resume latest`` goes on from there.

    Args:
        make_draw: gives what draws pictures on the way, and scores them.
        device: what ``gm.launch.start`` returned; of several processes, each calls this.

    Raises:
        SuiteError: anything the user can mend; the last saved state is intact.
    """
    if config.dry_run and config.parallel.dry_run_devices:
        predict(config)
        return
    peers = device.peers if device else Alone()
    world = World(Mesh.of(config.parallel, peers.size, peers.rank, len(set(peers.hosts))), peers)
    folder = open_folder(config, world)
    cursor = read_progress(folder).cursor if folder.resumed else (0, 0)
    with logged() as write_to:
        with timed("weights"):
            architecture, unet = load_unet(config)
            encoders = NetworkEncoders(config)
            parts = assemble(config, architecture, unet, encoders if encodes_in_step(config) else None, world)
        with timed("data"):
            tokenizers = Tokenizers.of(config.model)
            bad = folder.path / datasets.REPORT if world.first and not config.dry_run else None
            given = {"encoders": encoders, "tokenizers": tokenizers, "report": bad}
            batches = Batches.of(config, cursor, *world.batch, **given)
        with batches:
            report(config, architecture, parts, batches, world)
            if config.dry_run:
                return
            held_out, draw = [], None
            if config.validation.eval_data_path:
                with timed("held-out data"):
                    # What the cache lacks is encoded now, by networks that are not kept while training reads the cache.
                    cached = config.cache.latent and config.cache.text_embedding
                    separate = NetworkEncoders(config) if cached else encoders
                    held_out = world.in_turn("held-out", lambda: eval_loss.held_out(config, separate, tokenizers))
            if config.validation.draws and make_draw is not None:
                with timed("networks that draw"):
                    draw = make_draw(config, unet)
            if world.first:
                folder.path.mkdir(parents=True, exist_ok=True)
                write_to(folder.path / "log.txt")
                write_text(folder.path / "config.yaml", config.to_yaml())
            Run(config, folder, architecture, parts, batches, held_out, draw, world).go()


def open_folder(config: Config, world: World) -> RunFolder:
    """The folder that the first process opens; a name made of the time is another one in every process."""
    folder = RunFolder.open(config.train)
    path, resumed = world.of_first("folder", [str(folder.path), str(folder.resumed or "")])
    return RunFolder(Path(path), Path(resumed) if resumed else None)
