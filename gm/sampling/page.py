"""The page of ``demo/sampling.py``: prompt, settings, pictures. Only Streamlit imports this."""

import time
from dataclasses import replace
from pathlib import Path

import streamlit as st
from google.protobuf.internal import api_implementation
from PIL import Image

from gm.config import Config, validate
from gm.config.parsing import COMMAND_LINE, Given, convert
from gm.config.schema import SETTINGS
from gm.diffusion.objective import PREDICTION_TYPES
from gm.diffusion.samplers import SAMPLERS, canonical_name
from gm.diffusion.steps import SPACINGS
from gm.errors import SuiteError
from gm.sampling.output import read_settings
from gm.sampling.settings import UNCONDITIONALS
from gm.sampling.studio import shared_studio, weights_in

NOTHING = "nothing"  # to compare with
WIDGETS = (  # of section sample, in the order of the page
    "negative_prompt", "sampler", "timestep_spacing", "karras_sigmas", "sample_step", "guidance_scale",
    "guidance_rescale", "height", "width", "seed", "num_images", "unconditional",
)  # fmt: skip
NUMBERS = (  # that a picture may have been drawn with; the page shows them where they are not its own
    "orig_height", "orig_width", "target_height", "target_width", "crop_coords_top", "crop_coords_left",
    "aesthetic_score", "negative_aesthetic_score",
)  # fmt: skip
PIXELATED = 256  # smaller pictures are shown enlarged, pixel by pixel


def page(config: Config) -> None:
    """Render the page, which begins with what a configuration says; Streamlit calls this anew at every click."""
    st.set_page_config("Sampling", layout="wide")
    if api_implementation.Type() != "python":  # see gm/environment.py
        st.error("MindSpore cannot be used beside what Streamlit has loaded: start the page by python demo/sampling.py")
        st.stop()
    begin(config)
    with st.sidebar:
        choose_weights(config)
        choose_settings()
        st.file_uploader(
            "Settings of a picture", "png", key="picture", on_change=take_settings, help="A PNG that was drawn here"
        )
        own = {name: getattr(config.sample, name) for name in NUMBERS}
        if taken := {name: value for name, value in st.session_state.numbers.items() if value != own[name]}:
            st.caption("Also of the picture: " + ", ".join(f"{name} {value}" for name, value in taken.items()))
    st.text_area("Prompt", key="prompt", help="One on each line, with options of its own behind it if you like")
    st.text_input("Negative prompt", key="negative_prompt")
    pressed = st.button("Draw", type="primary", disabled="drawing" in st.session_state)
    if message := st.session_state.pop("message", None):
        st.error(message)
    if pressed:
        start_drawing(config)
    if "drawing" in st.session_state:
        wait()
    show()


def begin(config: Config) -> None:
    """Give the widgets what the command line says, once."""
    state = st.session_state
    if "prompt" in state:
        return
    state.prompt, state.weight, state.other = config.sample.prompt, config.model.weight, NOTHING
    state.numbers = {}
    state.prediction_type = config.diffusion.prediction_type
    state.rescale_betas_zero_snr = config.diffusion.rescale_betas_zero_snr
    for name in WIDGETS:
        state[name] = getattr(config.sample, name)
    state.sampler = canonical_name(state.sampler)


def choose_weights(config: Config) -> None:
    found = weights_in(Path(config.model.weight).parent, Path("checkpoints"))
    found = list(dict.fromkeys([config.model.weight, st.session_state.weight, *found]))
    names = [Path(path).name for path in found]

    def shown(path: str) -> str:
        own = Path(path)
        return own.name if names.count(own.name) < 2 else f"{own.parent.name}/{own.name}"

    typed = {"format_func": shown, "accept_new_options": True}
    st.selectbox("Weights", found, key="weight", help="A whole model; its path may be typed in", **typed)
    st.selectbox("Compare with", [NOTHING, *found], key="other", help="At the same prompts and seeds", **typed)
    with st.expander("What they predict"):
        st.selectbox("Prediction", PREDICTION_TYPES, key="prediction_type")
        st.checkbox("Zero terminal SNR", key="rescale_betas_zero_snr")


def choose_settings() -> None:
    left, right = st.columns(2)
    with left:
        st.selectbox("Sampler", list(SAMPLERS), key="sampler")
        st.number_input("Guidance", 0.0, 50.0, step=0.5, key="guidance_scale")
        st.number_input("Height", 8, 4096, step=8, key="height")
        st.number_input("Seed", 0, step=1, key="seed")
    with right:
        st.number_input("Steps", 1, 1000, step=1, key="sample_step")
        st.number_input("Rescale", 0.0, 1.0, step=0.1, key="guidance_rescale", help="Of guidance")
        st.number_input("Width", 8, 4096, step=8, key="width")
        st.number_input("Pictures", 1, 64, step=1, key="num_images", help="Of each prompt")
    with st.expander("Steps and guidance"):
        st.selectbox("Timestep spacing", SPACINGS, key="timestep_spacing")
        st.checkbox("Karras sigmas", key="karras_sigmas")
        st.selectbox("Without a negative prompt", UNCONDITIONALS, key="unconditional")


def take_settings() -> None:
    """Set the widgets to what the picture that was given was drawn with."""
    state = st.session_state
    state.numbers = {}
    if state.picture is None:
        return
    try:
        settings = read_settings(state.picture)
        settings["sampler"] = canonical_name(settings.get("sampler", "euler"))
        paths = {f"sample.{name}": name for name in ("prompt", *WIDGETS, *NUMBERS)}
        paths |= {f"diffusion.{name}": name for name in ("prediction_type", "rescale_betas_zero_snr")}
        taken = {
            name: convert(SETTINGS[path], Given(settings[name], name, COMMAND_LINE))
            for path, name in paths.items()
            if name in settings
        }
    except (SuiteError, ValueError) as error:
        state.message = str(error)
        return
    state.numbers = {name: taken.pop(name) for name in NUMBERS if name in taken}
    state.num_images = 1
    for name, value in taken.items():
        state[name] = value
    weight = settings.get("weight", state.weight)
    if Path(weight).exists():
        state.weight = weight
    else:
        state.message = f"{state.picture.name} was drawn with {weight}, which is not here: its settings are taken alone"


def start_drawing(config: Config) -> None:
    state = st.session_state
    weights = [state.weight] + [state.other] * (state.other not in (NOTHING, state.weight, None))
    prompts = [line.strip() for line in state.prompt.splitlines() if line.strip()]
    chosen = {name: state[name] for name in WIDGETS} | state.numbers
    sample = replace(config.sample, prompt=state.prompt, **chosen)
    diffusion = replace(
        config.diffusion, prediction_type=state.prediction_type, rescale_betas_zero_snr=state.rescale_betas_zero_snr
    )
    configs = [
        replace(config, sample=sample, diffusion=diffusion, model=replace(config.model, weight=weight))
        for weight in weights
    ]
    try:
        for one in configs:
            validate(one, "sample")
        folder = new_folder(Path(config.sample.save_path) / "page")
        folders = [folder / letter for letter in "ab"[: len(weights)]]
        try:
            state.drawing = (weights, *shared_studio().draw(configs, prompts, folders))
        except (SuiteError, ValueError):
            folder.rmdir()
            raise
    except (SuiteError, ValueError, OSError) as error:
        state.message = str(error)
    st.rerun()


def new_folder(place: Path) -> Path:
    """Make the next of the numbered folders; other pages may be at it, too."""
    place.mkdir(parents=True, exist_ok=True)
    number = max((int(path.name) for path in place.iterdir() if path.name.isdigit()), default=0)
    while True:
        number += 1
        try:
            (place / f"{number:04d}").mkdir()
        except FileExistsError:
            continue
        return place / f"{number:04d}"


def wait() -> None:
    """Show how far the drawing is until it is done."""
    weights, future, progress = st.session_state.drawing
    bar = st.progress(0.0, progress.words)
    while not future.done():
        bar.progress(min(progress.share, 1.0), progress.words)
        time.sleep(0.2)
    del st.session_state.drawing
    try:
        st.session_state.drawn = (weights, future.result())
    except (SuiteError, OSError, ValueError, MemoryError, RuntimeError) as error:
        st.session_state.message = str(error) or "out of memory: draw smaller pictures"
    st.rerun()


def show() -> None:
    """The pictures: a gallery, or those of two models beside each other."""
    if "drawn" not in st.session_state:
        return
    weights, drawn = st.session_state.drawn
    st.caption(f"In {drawn[0][0].parent}")
    if len(drawn) == 1:
        columns = st.columns(min(4, len(drawn[0])))
        for index, path in enumerate(drawn[0]):
            with columns[index % len(columns)]:
                show_picture(path)
        return
    for column, weight in zip(st.columns(2), weights):
        column.subheader(Path(weight).name)
    for pair in zip(*drawn):
        for column, path in zip(st.columns(2), pair):
            with column:
                show_picture(path)


def show_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()
        about = f"{picture.text.get('seed')}: {picture.text.get('prompt')}"
    if max(picture.size) < PIXELATED:
        factor = -(-PIXELATED // max(picture.size))
        picture = picture.resize([side * factor for side in picture.size], Image.Resampling.NEAREST)
    st.image(picture, about)
