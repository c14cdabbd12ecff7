"""Settings of the device, its precision and memory, and how several of them share the work."""

from dataclasses import dataclass

from gm.config.sections.setting import setting


@dataclass
class LaunchConfig:
    device_target: str = setting(
        "auto", "auto takes Ascend where it can be loaded, else the CPU", choices=("auto", "Ascend", "CPU")
    )
    ms_mode: int = setting(0, "0: compiled graph; 1: PyNative, for debugging", choices=(0, 1))
    max_device_memory: str | None = setting(None, 'memory to take of an Ascend device, such as "59GB"', unit="GB")
    compile_cache: str = setting(
        "", "folder that keeps compiled graphs, so that the same training or sampling starts sooner; empty: none"
    )
    threads: int | None = setting(
        None, "CPU cores this process keeps to; default: all it may use, or its share of them", unit="cores", at_least=1
    )
    deterministic: bool = setting(
        True, "take only kernels that give the same bits every time; costs some speed on Ascend"
    )
    precision: str = setting(
        "fp32",
        "arithmetic of the UNet; weights, norms, softmax, loss and the other networks stay float32",
        choices=("fp32", "fp16", "bf16"),
    )
    param_fp16: bool = setting(
        False, "keep the UNet's weights in float16, and float32 ones in the optimizer; --precision fp16 unless set"
    )
    init_loss_scale: float = setting(65536.0, "float16: what the loss is multiplied by at first", at_least=1)
    loss_scale_window: int = setting(
        2000, "float16: steps without overflow after which the loss scale doubles", unit="steps", at_least=1
    )
    is_parallel: bool = setting(False, "several processes are expected, which train together (docs/distributed.md)")
    rank_timeout: int = setting(
        60,
        "several processes: a rank is lost that gives no sign of life for so long, or is so long in a step that takes "
        "five times as long as any before; all stop",
        unit="s",
        at_least=5,
    )
    start_timeout: int = setting(
        600, "several servers: how long the first rank waits for the last to be started", unit="s", at_least=5
    )
    multi_graph: bool = setting(
        False,
        "training from pictures: autoencoder and text encoders as graphs of their own, compiled apart from the step",
    )
    data_sink: bool = setting(
        False, "Ascend: batches wait in a queue on the device; everywhere: the host logs once in --sink_size steps only"
    )
    sink_size: int = setting(
        1000,
        "with --data_sink: steps after which the host waits for the device and logs them",
        unit="steps",
        at_least=1,
    )


@dataclass
class ParallelConfig:
    zero_stage: int = setting(
        0,
        "what the devices of axis fsdp share out between them; 0: nothing; 1: optimizer state and moving average; "
        "2: gradients too; 3: weights too (arXiv 1910.02054)",
        choices=(0, 1, 2, 3),
    )
    ici_data_parallelism: int | None = setting(
        None,
        "devices of a server along axis data, which divides the batch; -1: what the other axes leave, which is the "
        "default unless --zero_stage gives it to fsdp",
        at_least=-1,
    )
    ici_fsdp_parallelism: int | None = setting(
        None,
        "devices of a server along axis fsdp, which divides the batch and what --zero_stage names; -1: what is left, "
        "the default with a --zero_stage",
        at_least=-1,
    )
    ici_tensor_parallelism: int = setting(
        1, "devices of a server along axis tensor, which divides attention and feed-forward layers", at_least=-1
    )
    dcn_data_parallelism: int = setting(
        1, "servers along axis data; all dcn_* 1: servers are not told apart, -1: what is left", at_least=-1
    )
    dcn_fsdp_parallelism: int = setting(1, "servers along axis fsdp; -1: what is left", at_least=-1)
    dcn_tensor_parallelism: int = setting(1, "servers along axis tensor; -1: what is left", at_least=-1)
    dry_run_devices: int | None = setting(
        None, "with --dry_run: predict for this many devices, not for those that were started", at_least=1
    )
    bucket_mb: float = setting(
        128.0, "gradients are joined into pieces of about this size before devices exchange them", unit="MB", above=0
    )
