"""The configuration: three sources in order, every name that is promised, every mistake told in one line."""

import re
from pathlib import Path

import pytest

from gm.config import Config, load
from gm.config.aliases import ALIASES, VALUE_ALIASES
from gm.config.parsing import flags
from gm.config.schema import SETTINGS, VALIDATION_FLAGS
from gm.config.validation import get, memory_in_gigabytes, validate
from gm.diffusion import objective, schedule, steps, timesteps
from gm.errors import UsageError
from gm.models import architecture
from gm.training import lr

ROOT = Path(__file__).resolve().parents[1]
DATA = ["--data_path", "pictures"]  # every task needs it


def read(*arguments: str) -> Config:
    return load([*DATA, *arguments])


def message(*arguments: str, door: str = "train") -> str:
    with pytest.raises(UsageError) as caught:
        load(list(arguments), door=door)
    text = str(caught.value)
    assert "\n" not in text
    return text


def another_value(path: str) -> str:
    """Some allowed value of a setting that is not its default, as text."""
    setting = SETTINGS[path]
    choices = setting.properties.get("choices")
    if choices:
        return str(next((choice for choice in choices if choice != setting.default), choices[0]))
    if setting.entries:
        return "[{path: another}]"
    if setting.type is bool:
        return str(not setting.default)
    if setting.type is str:
        return "59GB" if path == "launch.max_device_memory" else "another"
    if setting.type is int:
        return str((setting.default or 0) + setting.properties.get("multiple_of", 1))
    return repr((setting.default or 1.0) / 2)


@pytest.fixture
def yaml(tmp_path):
    """Write a YAML file and return its path."""

    def write(text: str, name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# --- three sources ---


def test_command_line_beats_file_beats_defaults(yaml):
    file = yaml("optim: {learning_rate: 3.0e-4, beta1: 0.5}\n")
    config = read("--config", file, "--beta1", "0.7")
    assert (config.optim.learning_rate, config.optim.beta1, config.optim.epsilon) == (3e-4, 0.7, 1e-8)


def test_order_on_the_command_line_does_not_matter_between_files_and_flags(yaml):
    file = yaml("optim: {beta1: 0.5}\n")
    assert read("--beta1", "0.7", "--config", file) == read("--config", file, "--beta1", "0.7")


def test_the_later_of_two_flags_and_of_two_files_wins(yaml):
    first, second = yaml("train: {seed: 1, run_name: a}\n", "a.yaml"), yaml("train: {seed: 2}\n", "b.yaml")
    config = read("--config", first, "--config", second, "--beta1", "0.1", "--lr", "1e-3", "--beta1", "0.2")
    assert (config.train.seed, config.train.run_name, config.optim.beta1) == (2, "a", 0.2)


def test_a_doors_defaults_lie_below_the_files(yaml):
    file = yaml("sample: {sample_step: 7}\n")
    defaults = {"sample.sample_step": 20, "sample.guidance_scale": 3.0}
    config = load(["--config", file, "--prompt", "x"], defaults, door="sample")
    assert (config.sample.sample_step, config.sample.guidance_scale) == (7, 3.0)


def test_one_load_leaves_no_trace_in_the_next():
    read("--beta1", "0.5")
    assert read().optim.beta1 == 0.9


# --- names ---


@pytest.mark.parametrize("path", SETTINGS)
def test_every_setting_reads_the_same_as_key_flag_equals_and_file(path, yaml, monkeypatch):
    monkeypatch.setattr("gm.config.validate", lambda config, door: None)  # one value alone may well be impossible
    text, setting = another_value(path), SETTINGS[path]
    door = "sample" if setting.section == "sample" else "train"
    section, _, leaf = path.rpartition(".")
    file = yaml(f"{section}:\n  {leaf}: {text}\n" if section else f"{leaf}: {text}\n")
    forms = [[f"{path}={text}"], [f"--{setting.flag}", text], [f"--{setting.flag}={text}"], ["--config", file]]
    configs = [load(form, door=door) for form in forms]
    assert all(config == configs[0] for config in configs)
    value = get(configs[0], path)
    if not setting.entries:
        assert str(value) == text
        assert type(value) is setting.type


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_sets_its_setting(alias, monkeypatch):
    monkeypatch.setattr("gm.config.validate", lambda config, door: None)
    path = ALIASES[alias]
    door = "sample" if path.startswith("sample.") and alias not in VALIDATION_FLAGS else "train"
    text = another_value(path)
    given = [f"{alias}={text}"] if "." in alias else [f"--{alias}", text]
    assert load(given, door=door) == load([f"{path}={text}"], door=door)


def test_an_aliased_flag_is_also_a_key_of_its_section():
    assert read("optim.lr=0.5") == read("--learning_rate", "0.5")


def test_gradient_checkpointing_may_stand_alone_and_may_be_a_boolean(tmp_path):
    assert read("--gradient_checkpointing", "--data_path", "D").train.recompute == "all"
    file = tmp_path / "mindone.yaml"
    file.write_text("train: {use_recompute: true}\n")
    assert read("--config", str(file)).train.recompute == "all"


@pytest.mark.parametrize(("path", "word"), VALUE_ALIASES)
def test_every_other_word_for_a_value(path, word):
    assert get(read(f"{path}={word}"), path) == VALUE_ALIASES[path, word]


def test_the_choices_are_those_of_the_mathematics():
    def choices(path):
        return set(SETTINGS[path].properties["choices"])

    assert choices("diffusion.prediction_type") == set(objective.PREDICTION_TYPES)
    assert choices("diffusion.beta_schedule") == set(schedule.BETA_SCHEDULES)
    assert choices("diffusion.timestep_bias_strategy") == set(timesteps.STRATEGIES)
    assert choices("diffusion.loss_weighting") == set(objective.WEIGHTINGS)
    assert choices("diffusion.huber_schedule") == set(objective.HUBER_SCHEDULES)
    assert choices("sample.timestep_spacing") == set(steps.SPACINGS)
    assert choices("optim.lr_scheduler") == set(lr.SCHEDULES)


def test_the_architectures_are_those_that_training_builds():
    assert set(SETTINGS["model.architecture"].properties["choices"]) == set(architecture.UNTRAINED)


@pytest.mark.parametrize("door", ["train", "sample"])
def test_no_flag_of_a_door_means_two_things(door):
    sections = {"train": "sample", "sample": "train"}
    names = [s.flag for s in SETTINGS.values() if s.section not in (sections[door], "data", "cache")]
    assert len(names) == len(set(names))
    assert not set(names) & set(ALIASES)


def test_seed_and_save_path_belong_to_the_door():
    training = read("--seed", "7", "--save_path", "a")
    sampling = load(["--prompt", "x", "--seed", "7", "--save_path", "a"], door="sample")
    assert (training.train.seed, training.train.save_path, training.sample.seed) == (7, "a", 42)
    assert (sampling.sample.seed, sampling.sample.save_path, sampling.train.seed) == (7, "a", 42)


SEED_COMMANDS = [
    "--timestep_bias_multiplier 2 --timestep_bias_strategy range --timestep_bias_begin 200 --timestep_bias_end 500"
    " --timestep_bias_portion 0.25 --data_path D",
    "--snr_gamma 5.0 --data_path D",
    "--config configs/training/sd_xl_base_finetune_910b.yaml --weight checkpoints/sd_xl_base_1.0_ms.ckpt --data_path D",
    "--task cache --config configs/training/sd_xl_base_finetune_910b.yaml --weight checkpoints/sd_xl_base_1.0_ms.ckpt"
    " --data_path D --save_path_with_time False --cache_latent True --cache_text_embedding True --cache_path ./c",
    "--per_batch_size 2 --learning_rate 1e-4 --seed 3 --save_path p --run_name r --resume latest --max_train_steps 5"
    " --data_path D --max_device_memory 59GB --task txt2img --param_fp16 False --is_parallel False",
]


@pytest.mark.parametrize("command", SEED_COMMANDS)
def test_the_commands_of_the_documentation_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    load(command.split())


def test_what_the_documented_commands_mean(monkeypatch):
    monkeypatch.chdir(ROOT)
    biased, weighted, _, cached, _ = (load(command.split()) for command in SEED_COMMANDS)
    assert biased.diffusion.timestep_bias_strategy == "range"
    assert (biased.diffusion.timestep_bias_begin, biased.diffusion.timestep_bias_end) == (200, 500)
    assert weighted.diffusion.snr_gamma == 5.0
    assert (cached.task, cached.cache.path, cached.train.save_path_with_time) == ("cache", "./c", False)
    assert cached.cache.latent
    assert cached.cache.text_embedding


def test_empty_weight_means_random_weights_whatever_the_file_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = read("--config", "configs/training/sd_xl_base_finetune_multi_graph_910b.yaml", "--weight", "")
    assert (config.model.weight, config.model.architecture) == ("", "sdxl-base")


# --- values ---


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("TRUE", True), ("1", True), ("false", False), ("False", False), ("0", False)],
)
def test_booleans(text, value, yaml):
    assert read("--random_flip", text).data.random_flip is value
    assert read("--config", yaml(f"data: {{random_flip: {text}}}\n")).data.random_flip is value


@pytest.mark.parametrize("rest", [[], ["--seed", "1"], ["train.seed=1"], ["optim.lr=0.1"]])
def test_a_boolean_flag_alone_is_true(rest):
    assert read("--clip_grad", *rest).optim.clip_grad is True


def test_none_unsets_an_optional_setting(yaml):
    file = yaml("diffusion: {snr_gamma: 5.0}\n")
    assert read("--config", file).diffusion.snr_gamma == 5.0
    assert read("--config", file, "--snr_gamma", "none").diffusion.snr_gamma is None
    assert read("--config", yaml("diffusion: {snr_gamma: null}\n")).diffusion.snr_gamma is None


def test_text_is_taken_as_it_stands():
    prompt = "a ${not} = {an} interpolation, 'quoted' \\ --flag"
    assert load([f"--prompt={prompt}"], door="sample").sample.prompt == prompt
    assert load(["--prompt", "-5 degrees"], door="sample").sample.prompt == "-5 degrees"


def test_files_may_refer_to_their_own_values_and_to_the_environment(yaml, monkeypatch):
    monkeypatch.setenv("DATASETS", "/data")
    file = yaml("data: {path: '${oc.env:DATASETS}/birds'}\ntrain: {save_path: '${data.path}/runs'}\n")
    config = load(["--config", file])
    assert (config.data.path, config.train.save_path) == ("/data/birds", "/data/birds/runs")
    assert read("--config", file).train.save_path == "pictures/runs"


# --- files that inherit ---


def test_a_file_beats_its_bases_and_later_bases_beat_earlier_ones(yaml):
    yaml("optim: {beta1: 0.1, beta2: 0.1, weight_decay: 0.1}\ndata: {per_batch_size: 3}\n", "deep/a.yaml")
    yaml("optim: {beta2: 0.2, weight_decay: 0.2}\n", "b.yaml")
    config = read("--config", yaml("_base_: [deep/a.yaml, b.yaml]\noptim: {weight_decay: 0.3}\n"))
    assert (config.optim.beta1, config.optim.beta2, config.optim.weight_decay) == (0.1, 0.2, 0.3)
    assert config.data.per_batch_size == 3


def test_a_base_is_relative_to_the_file_that_names_it(yaml, tmp_path, monkeypatch):
    yaml("train: {seed: 9}\n", "models/base.yaml")
    yaml("_base_: ../models/base.yaml\n", "recipes/middle.yaml")
    file = yaml("_base_: recipes/middle.yaml\n")
    monkeypatch.chdir("/")
    assert read("--config", file).train.seed == 9


def test_a_file_that_inherits_from_itself_is_told(yaml):
    yaml("_base_: b.yaml\n", "a.yaml")
    assert "inherits from itself" in message(*DATA, "--config", yaml("_base_: a.yaml\n", "b.yaml"))


def test_two_bases_may_share_a_base(yaml):
    yaml("train: {seed: 9}\n", "root.yaml")
    yaml("_base_: root.yaml\noptim: {beta1: 0.1}\n", "a.yaml")
    yaml("_base_: root.yaml\noptim: {beta2: 0.2}\n", "b.yaml")
    config = read("--config", yaml("_base_: [a.yaml, b.yaml]\n"))
    assert (config.train.seed, config.optim.beta1, config.optim.beta2) == (9, 0.1, 0.2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {per_batchsize: 3}\n", "unknown key data.per_batchsize in .*: did you mean data.per_batch_size?"),
        ("dta: {per_batch_size: 3}\n", "unknown key dta in .*: did you mean data?"),
        ("per_batch_size: 3\n", "unknown key per_batch_size in .*"),
        (
            "data: {per_batch_size: three}\n",
            "data.per_batch_size in .* takes a whole number of at least 1, not 'three'",
        ),
        ("data: {per_batch_size: [3]}\n", "data.per_batch_size in .* takes a whole number of at least 1, not \\[3\\]"),
        ("data: {path: {a: b}}\n", "data.path in .* takes a text"),
        ("data: pictures\n", "data in .* is a section"),
        ("data: {path: a\n", "is not readable as YAML"),
        ("data: {path: a, path: b}\n", "is not readable as YAML"),
        ("- a\n- b\n", "must hold sections"),
        ("data: {path: '${nowhere}'}\n", "data.path in .*nowhere"),
        ("_base_: nowhere.yaml\n", "no such file: .*nowhere.yaml .*recipe.yaml"),
        ("_base_: {a: b}\n", "_base_ in .*recipe.yaml"),
    ],
)
def test_every_mistake_in_a_file_names_the_key_and_the_file(text, expected, yaml):
    told = message("--config", yaml(text))
    assert re.search(expected, told), told
    assert "recipe.yaml" in told


def test_a_misspelt_recipe_is_told_with_its_neighbour(yaml):
    recipe = yaml("")
    assert message("--config", recipe.replace("recipe.yaml", "recipes.yaml")).endswith(
        f"(--config): did you mean {recipe}?"
    )


def test_an_empty_file_and_an_empty_section_change_nothing(yaml):
    assert read("--config", yaml("")) == read("--config", yaml("data:\n")) == read()


# --- mistakes on the command line ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--snr_gama 5", "unknown flag --snr_gama: did you mean --snr_gamma?"),
        ("--confg x", "unknown flag --confg: did you mean --config?"),
        ("--totally_different 1", "unknown flag --totally_different (--help lists all)"),
        ("diffusion.snr_gama=5", "unknown key diffusion.snr_gama: did you mean diffusion.snr_gamma?"),
        ("--diffusion.snr_gama 5", "unknown key --diffusion.snr_gama: did you mean diffusion.snr_gamma?"),
        ("--sampler euler", "--sampler is not a flag here: write sample.sampler=value"),
        ("pictures", "'pictures' belongs to no flag"),
        ("-lr 1", "flags have two dashes: write --lr"),
        ("--print_config=yes", "--print_config takes no value: leave 'yes' out"),
        ("--data_path", "--data_path needs a value"),
        ("--data_path --seed 3", "--data_path needs a value"),
        ("--config", "--config needs a value: the path of a YAML file"),
        ("--config nowhere.yaml", "no such file: nowhere.yaml"),
        ("--per_batch_size three", "--per_batch_size takes a whole number of at least 1, not 'three'"),
        ("--per_batch_size 2.5", "--per_batch_size takes a whole number of at least 1, not '2.5'"),
        ("--per_batch_size 0", "--per_batch_size takes a whole number of at least 1, not '0'"),
        ("--max_train_steps 0", "--max_train_steps takes a whole number of at least 1, not '0'"),
        ("--lr fast", "--lr takes a number of at least 0, not 'fast'"),
        ("--lr nan", "--lr takes a number of at least 0, not 'nan'"),
        ("--lr inf", "--lr takes a number of at least 0, not 'inf'"),
        ("optim.learning_rate=-1", "optim.learning_rate takes a number of at least 0, not '-1'"),
        (
            "--resolution 100",
            "--resolution takes a whole number of at least 32 and that is a multiple of 32, not '100'",
        ),
        ("--clip_grad maybe", "--clip_grad takes true or false, not 'maybe'"),
        ("--clip_grad 2", "--clip_grad takes true or false, not '2'"),
        ("--seed none", "--seed takes a whole number of at least 0, not 'none'"),
        ("--ms_mode 2", "--ms_mode takes one of 0, 1, not '2'"),
        ("--task trian", "--task takes one of train, cache, check, img2img, not 'trian': did you mean train?"),
        ("--prediction_type v", "--prediction_type takes one of epsilon, v_prediction, sample, not 'v'"),
        ("--timestep_bias_multiplier 0", "--timestep_bias_multiplier takes a number above 0, not '0'"),
        ("--timestep_bias_multiplier -2", "--timestep_bias_multiplier takes a number above 0, not '-2'"),
        ("--snr_gamma 0", "--snr_gamma takes a number above 0 or none, not '0'"),
    ],
)
def test_every_mistake_on_the_command_line_is_told(arguments, expected):
    assert message(*DATA, *arguments.split()).startswith(expected)


@pytest.mark.parametrize("path", [path for path, setting in SETTINGS.items() if setting.type is not str])
def test_no_setting_takes_a_value_of_the_wrong_type(path):
    told = message(f"{path}=wrong", door="sample" if path.startswith("sample.") else "train")
    assert path in told
    assert "'wrong'" in told


# --- settings that must agree ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--rescale_betas_zero_snr True", ["epsilon", "--prediction_type v_prediction"]),
        ("--beta_start 0.5 --beta_end 0.1", ["--beta_start", "--beta_end"]),
        ("--timestep_bias_strategy range --timestep_bias_begin 500 --timestep_bias_end 500", ["begin 500", "end 500"]),
        ("--timestep_bias_strategy range --timestep_bias_begin 10 --timestep_bias_end 1001", ["end 1001", "1000"]),
        ("--cache_latent True", ["--cache_latent", "--cache_text_embedding"]),
        ("--cache_text_embedding True", ["--cache_latent", "--cache_text_embedding"]),
        ("--task cache --cache_latent True", ["--cache_latent", "--cache_text_embedding"]),
        ("--task cache --cache_latent False --cache_text_embedding False", ["nothing to write"]),
        ("--task cache --dry_run", ["--dry_run"]),
        ("--max_device_memory 59", ["--max_device_memory", "59GB"]),
        ("--max_device_memory 0GB", ["--max_device_memory"]),
    ],
)
def test_contradictions_are_refused(arguments, named):
    told = message(*DATA, *arguments.split())
    assert all(name in told for name in named), told


@pytest.mark.parametrize(
    "arguments",
    [
        "--rescale_betas_zero_snr True --prediction_type v_prediction",
        "--timestep_bias_begin 500 --timestep_bias_end 500",  # not used without strategy range
        "--timestep_bias_strategy range --timestep_bias_begin 0 --timestep_bias_end 1000",
        "--cache_latent --cache_text_embedding",
        "--task check --cache_latent True",
    ],
)
def test_what_agrees_is_accepted(arguments):
    read(*arguments.split())


@pytest.mark.parametrize("task", ["train", "cache", "check"])
def test_every_task_needs_data(task):
    assert "--data_path" in message("--task", task)


def test_sampling_needs_a_prompt_and_no_data():
    assert "--prompt" in message(door="sample")
    assert load(["--prompt", "a cat"], door="sample").data.path == ""


def test_task_cache_turns_both_parts_on_and_says_so(capsys):
    config = read("--task", "cache")
    assert config.cache.latent
    assert config.cache.text_embedding
    assert "latents and text embeddings" in capsys.readouterr().err


def test_no_setting_is_ignored():
    """Each is read somewhere in the program."""
    files = [*(ROOT / "gm").rglob("*.py"), *(ROOT / "demo").glob("*.py"), ROOT / "train.py"]
    code = "".join(file.read_text() for file in files if file.parent.name != "config")
    unread = [path for path in SETTINGS if not re.search(rf"\.{path.rpartition('.')[2]}\b", code)]
    assert not unread


@pytest.mark.parametrize(("text", "gigabytes"), [("59GB", 59), ("59 gb", 59), ("7.5GB", 7.5)])
def test_device_memory(text, gigabytes):
    assert memory_in_gigabytes(text) == gigabytes


# --- what is shown and written ---


def test_yaml_of_a_configuration_reads_back_to_an_equal_one(yaml):
    config = read("--snr_gamma", "5", "--clip_grad", "--run_name", "true", "--save_path", "a ${b} c")
    assert load(["--config", yaml(config.to_yaml())]) == config


def test_print_config_shows_every_value_and_where_it_came_from(yaml, capsys):
    file = yaml("optim: {beta1: 0.5}\n")
    with pytest.raises(SystemExit) as left:
        load(["--config", file, "--print_config", "--seed", "7"])
    shown = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    shown = {path.strip(): " ".join(rest.split()) for path, rest in shown.items()}
    assert left.value.code == 0
    assert set(shown) == set(SETTINGS)
    assert shown["optim.beta1"] == f"0.5 # {file}"
    assert shown["train.seed"] == "7 # command line"
    assert shown["optim.weight_decay"] == "0.01 # default"


@pytest.mark.parametrize("door", ["train", "sample"])
def test_help_explains_every_flag_of_the_door(door, capsys):
    with pytest.raises(SystemExit) as left:
        load(["--help"], door=door, usage="What this door does.")
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert shown.startswith("What this door does.")
    assert max(map(len, shown.splitlines())) <= 120
    for flag, path in flags(door).items():
        if flag not in ALIASES:
            assert f"--{flag} " in shown
            assert SETTINGS[path].properties["help"].split()[0] in shown


def test_every_setting_has_help_and_an_allowed_default():
    for path, setting in SETTINGS.items():
        assert setting.properties["help"], path
        default = get(Config(), path)
        if default not in (None, "", ()):
            assert get(load(["--prompt=x", f"{path}={default}"], door="sample"), path) == default, path


def test_the_documentation_lists_todays_settings(load_door):
    tool = load_door("tools/docs/configuration.py")
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.updated(page) == page, "run python tools/docs/configuration.py"
    assert all(f"`{path}`" in page for path in SETTINGS)


def test_validate_needs_no_command_line():
    config = Config()
    config.data.path = "pictures"
    validate(config)
