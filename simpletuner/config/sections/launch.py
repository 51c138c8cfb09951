"""How the run is started: processes, compilation, sharding."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.option import Section, option

SEVERAL = "training with several processes"
DEEPSPEED = "DeepSpeed"
SHARDED = "sharded training (FSDP)"


class LaunchSection(Section):
    num_processes: int = option(1, "Processes on this machine, one per GPU.",
                                "本机进程数，每个 GPU 一个。", ge=1, guide=True,
                                planned=SEVERAL)  # fmt: skip
    num_machines: int = option(1, "Machines that train together.", "共同训练的机器数。", ge=1, level="advanced",
                               planned=SEVERAL)  # fmt: skip
    machine_rank: int = option(0, "Number of this machine.", "本机编号。", ge=0, level="expert", planned=SEVERAL)
    main_process_ip: str = option("127.0.0.1", "Address of the first machine.", "首台机器的地址。", level="expert",
                                  planned=SEVERAL)  # fmt: skip
    main_process_port: int = option(29500, "Port of the first machine.",
                                    "首台机器的端口。", ge=1, le=65535, level="expert",
                                    planned=SEVERAL)  # fmt: skip
    same_network: bool = option(True, "Whether all machines share a network.",
                                "所有机器是否在同一网络。", level="expert",
                                planned=SEVERAL)  # fmt: skip
    accelerate_config: str | None = option(None, "Accelerate's own configuration file.", "Accelerate 自己的配置文件。",
                                           level="expert", planned=SEVERAL)  # fmt: skip
    accelerate_extra_args: str | None = option(None, "Further arguments for Accelerate.",
                                               "传给 Accelerate 的其他参数。",
                                               level="expert", planned=SEVERAL)  # fmt: skip
    accelerate_visible_devices: Any = option(None, "GPUs to use.", "要使用的 GPU。", level="expert",
                                             planned="choosing GPUs by option (set CUDA_VISIBLE_DEVICES)")  # fmt: skip
    deepspeed_config: Any = option(
        None, "DeepSpeed's settings.", "DeepSpeed 的设置。", level="expert", planned=DEEPSPEED
    )
    fsdp_enable: bool = option(False, "Shard weights over processes.", "将权重分片到各进程。", level="advanced",
                               planned=SHARDED)  # fmt: skip
    fsdp_version: int = option(2, "Version of FSDP.", "FSDP 的版本。", ge=1, le=2, level="expert", planned=SHARDED)
    fsdp_state_dict_type: str = option("SHARDED_STATE_DICT", "How sharded state is saved.", "分片状态的保存方式。",
                                       level="expert", planned=SHARDED)  # fmt: skip
    fsdp_auto_wrap_policy: str | None = option(None, "How layers are grouped.", "层的分组方式。", level="expert",
                                               planned=SHARDED)  # fmt: skip
    fsdp_transformer_layer_cls_to_wrap: str | None = option(None, "Layer class that is a group.", "作为一组的层类。",
                                                            level="expert", planned=SHARDED)  # fmt: skip
    fsdp_reshard_after_forward: bool = option(True, "Free gathered weights after use.", "用后释放聚合的权重。",
                                              level="expert", planned=SHARDED)  # fmt: skip
    fsdp_cpu_offload: bool = option(False, "Keep shards in RAM.", "将分片放在内存中。", level="expert", planned=SHARDED)
    fsdp_cpu_ram_efficient_loading: bool = option(False, "Load weights once per machine.", "每台机器只加载一次权重。",
                                                  level="expert", planned=SHARDED)  # fmt: skip
    fsdp_limit_all_gathers: bool = option(True, "Limit gathers in flight.", "限制并发聚合。", level="expert",
                                          planned=SHARDED)  # fmt: skip
    fsdp_activation_checkpointing: bool = option(False, "Checkpoint activations per shard.", "按分片做激活检查点。",
                                                 level="expert", planned=SHARDED)  # fmt: skip
    context_parallel_size: int = option(1, "Processes that share one clip.",
                                        "共享一个视频的进程数。", ge=1, level="expert",
                                        planned="sharing a clip between processes")  # fmt: skip
    context_parallel_comm_strategy: Literal["allgather", "alltoall"] = option(
        "allgather", "How they exchange.", "其通信方式。", level="expert", planned="sharing a clip between processes"
    )
    find_unused_parameters: bool = option(False, "Look for weights without gradient.", "查找没有梯度的权重。",
                                          level="expert", planned=SEVERAL)  # fmt: skip
    local_rank: int = option(-1, "Number of this process.", "本进程编号。", level="expert",
                             accepted_note="the launcher tells each process its number")  # fmt: skip
