"""Settings of drawing pictures."""

from dataclasses import dataclass

from gm.config.sections.setting import setting


@dataclass
class SampleConfig:
    prompt: str = setting("", "what to draw; or the path of a text file with one prompt a line")
    negative_prompt: str = setting("", "what to steer away from")
    weighted_prompts: bool = setting(
        False, "read (word:1.3), (word) and [word] in prompts as weights, as the Stable Diffusion web UI does"
    )
    sampler: str = setting(
        "euler",
        "euler, euler_ancestral, heun, ddim, ddpm, dpmpp_2m, dpmpp_2s_ancestral, unipc, lms or lcm; or MindONE's class "
        "of one, such as EulerEDMSampler",
    )
    timestep_spacing: str = setting(
        "leading", "how the steps are spread over the schedule", choices=("leading", "trailing", "linspace")
    )
    karras_sigmas: bool = setting(False, "space the noise levels by Karras et al. 2022 (arXiv 2206.00364), eq. 5")
    sample_step: int = setting(40, "steps of the sampler", unit="steps", at_least=1)
    guidance_scale: float = setting(5.0, "classifier-free guidance; 1 and less is off", at_least=0)
    guidance_rescale: float = setting(
        0.0, "guidance rescale (arXiv 2305.08891, 3.4)", unit="0 to 1", at_least=0, at_most=1
    )
    unconditional: str = setting(
        "auto",
        "what guidance steers away from without a negative prompt: zero text states (as SDXL base was trained), the "
        "empty prompt (SD 1.x, SD 2.x, SDXL refiner), or the empty prompt with zero size numbers (as --caption_dropout "
        "trains); auto follows the model",
        choices=("auto", "zeros", "empty", "dropout"),
    )
    seed: int = setting(42, "of a prompt's first picture; its i-th has seed + i", at_least=0)
    batch_size: int = setting(1, "pictures drawn at once; the seed, not the batch, makes a picture", at_least=1)
    num_images: int = setting(1, "pictures of each prompt", unit="pictures", at_least=1)
    height: int = setting(1024, "height of the pictures", unit="pixels", at_least=8, multiple_of=8)
    width: int = setting(1024, "width of the pictures", unit="pixels", at_least=8, multiple_of=8)
    orig_height: int | None = setting(
        None, "size the model is told the original had; default: --height", unit="pixels", at_least=1
    )
    orig_width: int | None = setting(None, "default: --width", unit="pixels", at_least=1)
    target_height: int | None = setting(
        None, "size the model is told to aim at; default: --height", unit="pixels", at_least=1
    )
    target_width: int | None = setting(None, "default: --width", unit="pixels", at_least=1)
    crop_coords_top: int = setting(0, "rows the model is told were cut off at the top", unit="pixels", at_least=0)
    crop_coords_left: int = setting(0, "columns the model is told were cut off at the left", unit="pixels", at_least=0)
    aesthetic_score: float = setting(6.0, "SDXL refiner: the score it is told the picture has", at_least=0)
    negative_aesthetic_score: float = setting(2.5, "the same of what to steer away from", at_least=0)
    vae_tiling: str = setting(
        "auto",
        "let the autoencoder see a picture in overlapping tiles, which takes less memory; auto: above 2 megapixels",
        choices=("auto", "on", "off"),
    )
    vae_tile_size: int = setting(1024, "side of a tile", unit="pixels", at_least=32, multiple_of=32)
    img: str = setting("", "task img2img: the picture to start from")
    strength: float = setting(
        0.75, "task img2img: share of the steps that is taken; 1 redraws the picture", above=0, at_most=1
    )
    stage2_weight: str = setting(
        "", "a second expert or refiner, which goes on where --weight stops: a whole model, or a trained UNet alone"
    )
    stage2_prediction_type: str | None = setting(
        None,
        "what the UNet of --stage2_weight predicts; default: --prediction_type",
        choices=("epsilon", "v_prediction", "sample"),
    )
    stage2_rescale_betas_zero_snr: bool | None = setting(
        None, "whether --stage2_weight was trained with it; default: --rescale_betas_zero_snr"
    )
    denoising_end: float | None = setting(
        None,
        "share of the schedule after which --stage2_weight takes over, or without one drawing stops; the trained "
        "boundary: 1 - refiner_training_strength, 0.8 for the SDXL refiner",
        unit="0 to 1",
        above=0,
        below=1,
    )
    denoising_start: float | None = setting(
        None,
        "share of the schedule that the latents of --init_latent_path have behind them; no noise is added",
        unit="0 to 1",
        above=0,
        below=1,
    )
    init_latent_path: str = setting(
        "",
        "initial unit noise (N, 4, height/8, width/8) as .npy, in place of the seeds'; with --denoising_start latents "
        "that are partly drawn",
    )
    save_latent: str = setting(
        "", "file for the final latents (N, 4, height/8, width/8), before the autoencoder, as .npy"
    )
    save_path: str = setting("outputs/demo/", "folder of the pictures")
