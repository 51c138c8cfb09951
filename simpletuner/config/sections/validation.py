"""Videos generated while training."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.option import Section, option

CLIPS_SHOWN = 4  # by validation_using_datasets; each costs a video per size and validation
LOSSLESS = "stills are compared over the steps, and only a lossless file shows what the model made"


class ValidationSection(Section):
    validation_disable: bool = option(False, "Generate no videos at all.", "完全不生成验证视频。")
    validation_prompt: str | None = option(
        None,
        "Main prompt; LTX-Video wants long, detailed ones.",
        "主提示词；LTX-Video 需要又长又详细的提示词。",
        guide=True,
    )
    user_prompt_library: str | None = option(
        None, "JSON file of nickname -> prompt.", "昵称 -> 提示词 的 JSON 文件。", guide=True
    )
    validation_negative_prompt: str = option(
        "blurry, cropped, ugly",
        "What the videos should not show.",
        "视频中不应出现的内容。",
        guide=True,
        may_be_empty=True,
    )
    validation_step_interval: int = option(
        100,
        "Steps between validations; 0 means only at the end.",
        "两次验证之间的步数；0 表示只在结束时。",
        ge=0,
        unit="steps",
        aliases=("validation_steps",),
        guide=True,
    )
    validation_on_startup: bool = option(False, "Also validate before the first step.", "第一步之前也进行验证。")
    disable_benchmark: bool = option(
        False, "Skip the videos of the untouched base model.", "不生成未训练基础模型的视频。", guide=True
    )
    validation_resolution: str = option(
        "512x512",
        "Sizes of the videos: WxH, comma-separated; a single number is a square, below 32 one of so many megapixels.",
        "视频尺寸：宽x高，用逗号分隔；单个数字表示正方形，小于 32 时表示百万像素数。",
        unit="px",
        guide=True,
    )
    validation_num_video_frames: int = option(
        25, "Frames of a validation video, rounded down to 8k+1.", "验证视频的帧数，向下取 8k+1。", ge=1, unit="frames"
    )
    validation_num_inference_steps: int = option(25, "Denoising steps.", "去噪步数。", ge=1, unit="steps", guide=True)
    validation_guidance: float = option(
        5.0, "Classifier-free guidance; 1 switches it off.", "无分类器引导强度；1 表示关闭。", ge=1, guide=True
    )
    validation_seed: int = option(42, "Seed of the validation noise.", "验证噪声的种子。", ge=0, guide=True)
    validation_prompt_library: Literal["none", "general", "motion", "people"] = option(
        "none",
        "Add a built-in set of prompts; true means general.",
        "添加内置提示词集；true 表示 general。",
        guide=True,
        value_aliases={"true": "general", "false": "none"},
    )
    validation_epoch_interval: int | None = option(
        None, "Epochs between validations, beside validation_step_interval.",
        "两次验证之间的轮数，与 validation_step_interval 并行生效。", ge=0, unit="epochs", level="advanced",
    )  # fmt: skip
    validate_after_step: int | None = option(
        None, "No validation before this step, except at startup and at the end.",
        "在此步之前不验证（启动时与结束时除外）。", ge=0, unit="steps", level="expert",
    )  # fmt: skip
    validate_after_epoch: int | None = option(
        None, "No validation before this epoch (from 1), except at startup and at the end.",
        "在此轮（从 1 起）之前不验证（启动时与结束时除外）。", ge=0, unit="epochs", level="expert",
    )  # fmt: skip
    num_validation_images: int = option(
        1, "Videos per prompt and size, each from a seed of its own.", "每条提示词与尺寸的视频数，各用不同种子。",
        ge=1, le=10, level="advanced",
    )  # fmt: skip
    validation_randomize: bool = option(
        False, "Another seed for each validation; videos of different steps then start from different noise.",
        "每次验证使用新种子；不同步的视频将从不同噪声开始。", level="expert",
    )  # fmt: skip
    validation_seed_source: Literal["cpu", "gpu"] = option(
        "cpu", "Whose generator draws the starting noise; that of a GPU gives other videos on another kind of GPU.",
        "由谁的随机数生成器抽取初始噪声；GPU 的结果随型号而异。", level="expert",
    )  # fmt: skip
    validation_noise_scheduler: str | None = option(
        None, "Sampler of the videos.", "生成视频的采样器。", level="expert",
        refused="LTX-Video keeps its own flow-matching sampler",
    )  # fmt: skip
    validation_disable_unconditional: bool = option(
        False, "Skip the video of the empty prompt.", "不生成空提示词的视频。", level="expert",
        accepted_note="no video of the empty prompt is made anyway",
    )  # fmt: skip
    validation_guidance_rescale: float = option(
        0.0, "Share by which guided predictions get the spread of the prompted ones; 0.7 tames glaring colours.",
        "引导后的预测按此比例恢复提示词预测的分布；0.7 可抑制过曝。", ge=0, le=1, level="expert",
    )  # fmt: skip
    validation_torch_compile: bool = option(
        False, "Compile the model for validation.", "为验证编译模型。", level="expert", planned="compiled validation"
    )
    validation_using_datasets: bool = option(
        False,
        "Also make videos that begin with first frames of up to 4 clips, with their captions: of the evaluation sets, "
        "else of the trained ones.",
        "同时生成以片段首帧开头的视频（最多 4 个，使用其描述）：取自评估集，没有则取自训练集。",
        level="advanced",
    )
    validation_input: str | None = option(
        None,
        "JSON file with a list of pictures (or clips) and prompts, {path, prompt, shortname}: each becomes a video "
        "that begins with that picture, or with the clip's first frame.",
        "JSON 文件，列出图片（或视频）与提示词 {path, prompt, shortname}：每条生成一个以该图片（或视频首帧）"
        "开头的视频。",
        level="advanced",
    )
    validation_stitch_input_location: Literal["none", "left", "right"] = option(
        "none", "Show the picture that a video begins with beside it.", "在视频旁显示其起始图像。", level="expert"
    )
    validation_preview: bool = option(
        False,
        "Show small moving pictures of videos in the making: in the run folder, and to webhooks.",
        "显示生成过程中的小型动态预览：写入运行目录，并发送给 webhook。",
        guide=True,
    )
    validation_preview_steps: int = option(
        1, "Denoising steps between previews.", "两次预览之间的去噪步数。", ge=1, unit="steps", guide=True
    )
    validation_preview_decoder: str = option(
        "auto",
        "What paints previews: linear (a map fitted once on the run's own clips), autoencoder (slow), or the path of "
        "a TAE-type decoder (.safetensors); auto takes the checkpoint's own decoder if it has one, else linear.",
        "预览的解码方式：linear（用本次片段拟合一次的线性映射）、autoencoder（较慢）或 TAE 类解码器文件"
        "（.safetensors）；auto 优先使用检查点自带的解码器，否则为 linear。",
        level="advanced",
    )
    validation_method: Literal["simpletuner-local", "external-script"] = option(
        "simpletuner-local",
        "Who makes the videos: this program, or a command of your own (`validation_external_script`).",
        "由谁生成视频：本程序，或您自己的命令（`validation_external_script`）。",
        level="advanced",
    )
    validation_external_script: str | None = option(
        None,
        "Command that runs in place of the program's own videos, with the placeholders of post_checkpoint_script; the "
        "checkpoint of that step is on the disk before it starts. No shell reads it.",
        "代替本程序生成视频的命令，占位符与 post_checkpoint_script 相同；启动前该步的检查点已写入磁盘。不经过 shell。",
        level="advanced",
    )
    validation_external_background: bool = option(
        False, "Train on while that command runs.", "该命令运行时继续训练。", level="advanced"
    )
    validation_adapter_path: str | None = option(
        None,
        "LoRA file that is put on beside the trained weights while validating, and only then.",
        "仅在验证时与训练权重叠加的 LoRA 文件。",
        level="advanced",
    )
    validation_adapter_name: str | None = option(
        None,
        "What its videos are called: `<nickname>_with_<name>`; the file's own name when absent.",
        "其视频的名称：`<昵称>_with_<名称>`；未给出时用文件名。",
        level="advanced",
    )
    validation_adapter_strength: float = option(
        1.0, "Strength of that adapter, not 0.", "该适配器的强度，不为 0。", level="advanced"
    )
    validation_adapter_mode: Literal["adapter_only", "comparison", "none"] = option(
        "adapter_only",
        "What is shown where such adapters are named: videos with them (`adapter_only`), with and without them "
        "(`comparison`), or none with them (`none`).",
        "指定此类适配器时展示什么：仅叠加后的视频（`adapter_only`）、叠加与不叠加的对比（`comparison`），"
        "或完全不叠加（`none`）。",
        level="advanced",
    )
    validation_adapter_config: Any = option(
        None,
        "Several such adapters in place of `validation_adapter_path`, each shown in videos of its own: a list of "
        '{"path": FILE, "strength": 1.0, "name": NAME}, or a JSON file with it.',
        "代替 `validation_adapter_path` 的多个此类适配器，各自生成视频："
        '{"path": 文件, "strength": 1.0, "name": 名称} 的列表，或包含该列表的 JSON 文件。',
        level="advanced",
    )
    validation_multigpu: Literal["single-gpu", "batch-parallel"] = option(
        "batch-parallel", "How several GPUs share the prompts.", "多 GPU 如何分配提示词。", level="expert",
        planned="several GPUs", neutral=("single-gpu",),
    )  # fmt: skip
    validation_image_format: Literal["png"] = option(
        "png", "File format of one-frame validations.", "单帧验证的文件格式。", level="expert",
        refused_values={"webp": LOSSLESS, "jpeg": LOSSLESS},
    )  # fmt: skip
    validation_image_quality: int = option(
        90, "Quality of lossy stills.", "有损图像质量。", ge=1, le=100, level="expert", refused=LOSSLESS
    )
    enable_watermark: bool = option(
        False, "Mark generated videos.", "为生成的视频加水印。", level="expert",
        refused="there is no watermark for it; each file says how it was made",
    )  # fmt: skip

    @property
    def makes_videos(self) -> bool:
        """Whether this program makes videos while it trains, given a prompt."""
        return not self.validation_disable and self.validation_method == "simpletuner-local"

    @property
    def resolutions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each wanted size in pixels, rounded down to multiples of 32.

        Raises:
            ValueError: If `validation_resolution` cannot be read; `config.rules` tells it as a problem.
        """
        return tuple(_floor_to_grid(*size) for size in parse_sizes(self.validation_resolution))

    @property
    def num_frames(self) -> int:
        """Frames of a validation video: the wanted count rounded down to 8k + 1."""
        return (self.validation_num_video_frames - 1) // 8 * 8 + 1


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Read "768x512, 640, 0.5" as [(768, 512), (640, 640), (707, 707)], before any rounding.

    Raises:
        ValueError: If a part is no size, or is outside 32 to 16384 pixels.
    """
    sizes = []
    for part in text.split(","):
        words = part.strip().lower().replace("×", "x").split("x")
        if len(words) == 1 and 0 < (megapixels := float(words[0])) < 32:
            words = [str(round((megapixels * 1e6) ** 0.5))]
        numbers = [int(word) for word in words]
        width, height = numbers if len(numbers) == 2 else (*numbers, *numbers)
        if min(width, height) < 32 or max(width, height) > 16384:
            raise ValueError(f"{part.strip()} is outside 32 to 16384 pixels")
        sizes.append((width, height))
    return sizes


def _floor_to_grid(width: int, height: int) -> tuple[int, int]:
    return width // 32 * 32, height // 32 * 32
