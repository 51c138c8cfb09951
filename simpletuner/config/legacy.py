"""Names from older versions and other sources, each with what it means now. Data only."""

from __future__ import annotations

from collections.abc import Mapping

# Variables of an env file (and, for the launch ones, of the process) -> option.
ENV_NAMES: Mapping[str, str] = {
    "RESUME_CHECKPOINT": "resume_from_checkpoint",
    "DATALOADER_CONFIG": "data_backend_config",
    "TRAINING_SEED": "seed",
    "MINIMUM_RESOLUTION": "minimum_image_size",
    "PUSH_CHECKPOINTS": "push_checkpoints_to_hub",
    "MAX_NUM_STEPS": "max_train_steps",
    "NUM_EPOCHS": "num_train_epochs",
    "CHECKPOINTING_STEPS": "checkpoint_step_interval",
    "CHECKPOINTING_LIMIT": "checkpoints_total_limit",
    "HUB_MODEL_NAME": "hub_model_id",
    "MODEL_NAME": "pretrained_model_name_or_path",
    "USE_GRADIENT_CHECKPOINTING": "gradient_checkpointing",
    "VALIDATION_STEPS": "validation_step_interval",
    "LR_SCHEDULE": "lr_scheduler",
    "TRAINING_NUM_PROCESSES": "num_processes",
    "TRAINING_NUM_MACHINES": "num_machines",
    "TRAINING_DYNAMO_BACKEND": "dynamo_backend",
    "ACCELERATE_CONFIG_PATH": "accelerate_config",
    "ACCELERATE_EXTRA_ARGS": "accelerate_extra_args",
}

# Read from the process environment too, because launchers set them.
LAUNCH_NAMES = (
    "TRAINING_NUM_PROCESSES", "TRAINING_NUM_MACHINES", "TRAINING_DYNAMO_BACKEND", "MIXED_PRECISION",
    "ACCELERATE_CONFIG_PATH", "ACCELERATE_EXTRA_ARGS",
)  # fmt: skip

# Variables that concern the launcher, the libraries or this program's own running, never an option.
OTHER_NAMES = frozenset({
    "ENV", "CONFIG_BACKEND", "CONFIG_TYPE", "CONFIG_PATH", "TRAINER_EXTRA_ARGS", "VENV_PATH", "DISABLE_UPDATES",
    "DISABLE_LD_OVERRIDE", "TQDM_NCOLS", "TQDM_LEAVE", "TOKENIZERS_PARALLELISM", "PYTHON", "PATH",
})  # fmt: skip
OTHER_PREFIXES = ("HF_", "CUDA_", "NCCL_", "TORCH_", "PYTORCH_", "OMP_", "MKL_", "WANDB_", "HIP_", "ROCR_")

OWN_VARIABLES = frozenset({
    "SIMPLETUNER_ENV", "SIMPLETUNER_ENVIRONMENT", "SIMPLETUNER_CONFIG_BACKEND", "SIMPLETUNER_LOG_LEVEL",
    "SIMPLETUNER_JOB_ID",
    "SIMPLETUNER_SSL_NO_VERIFY",
})  # fmt: skip

REMOVED_OPTIMIZERS: Mapping[str, str] = {
    "adam": "Did you mean 'torch-adamw'?",
    "adamw": "Did you mean 'torch-adamw'?",
    "adafactor": "optimi-stableadamw is its successor; PyTorch's own is torch-adafactor",
    "dadaptation": "adamw_schedulefree is its successor; prodigy finds its step size itself",
    "adamw8bit": "optimi-adamw is its successor; with 8-bit moments there are bnb-adamw8bit and ao-adamw8bit",
}
