"""Videos generated while training."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.option import Section, option

PREVIEW = "previews of videos in the making"
SCRIPT = "validation by an external script"
EXTRA = "further adapters while validating"
I2V = "validation with input images"


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
        "Sizes of the videos: WxH, comma-separated; a single number is a square.",
        "视频尺寸：宽x高，用逗号分隔；单个数字表示正方形。",
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
    validation_prompt_library: str | None = option(
        None, "Use a built-in set of prompts.", "使用内置提示词集。", guide=True, planned="a built-in set of prompts"
    )
    validation_epoch_interval: int | None = option(
        None, "Epochs between validations, beside those by steps.",
        "两次验证之间的轮数（与按步数的验证并存）。", ge=0, unit="epochs", level="advanced", neutral=(0,),
    )  # fmt: skip
    validate_after_step: int | None = option(
        None, "First step with a validation.", "从第几步开始验证。", ge=0, unit="steps", level="expert", neutral=(0,),
    )  # fmt: skip
    validate_after_epoch: int | None = option(
        None, "First epoch with a validation.", "从第几轮开始验证。", ge=0, unit="epochs", level="expert", neutral=(0,),
    )  # fmt: skip
    num_validation_images: int = option(
        1, "Videos per prompt.", "每条提示词生成的视频数。", ge=1, le=10, level="advanced",
        planned="several videos per prompt",
    )  # fmt: skip
    validation_randomize: bool = option(
        False, "Draw a new seed for each validation.", "每次验证使用新种子。", level="expert",
        planned="random validation seeds",
    )  # fmt: skip
    validation_seed_source: Literal["cpu"] = option(
        "cpu", "Device that draws the starting noise.", "抽取初始噪声的设备。", level="expert",
        planned_values={"gpu": "drawing validation noise on the GPU"},
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
        0.0, "Rescale guided predictions.", "重新缩放引导后的预测。", ge=0, le=1, level="expert",
        planned="rescaled guidance",
    )  # fmt: skip
    validation_torch_compile: bool = option(
        False, "Compile the model for validation.", "为验证编译模型。", level="expert", planned="compiled validation"
    )
    validation_using_datasets: bool = option(
        False, "Take input images from data sets.", "从数据集取输入图像。", level="advanced", planned=I2V
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
        "none", "Where the input image is shown.", "输入图像的显示位置。", level="expert", planned=I2V
    )
    validation_preview: bool = option(
        False, "Send pictures of videos in the making.", "发送生成过程中的预览。", guide=True, planned=PREVIEW
    )
    validation_preview_steps: int = option(
        1, "Denoising steps between previews.", "两次预览之间的去噪步数。", ge=1, unit="steps", guide=True,
        planned=PREVIEW,
    )  # fmt: skip
    validation_method: Literal["simpletuner-local"] = option(
        "simpletuner-local", "Who generates the videos.", "由谁生成视频。", level="expert",
        planned_values={"external-script": SCRIPT},
    )  # fmt: skip
    validation_external_script: str | None = option(
        None, "Command that generates the videos.", "生成视频的命令。", level="expert", planned=SCRIPT
    )
    validation_external_background: bool = option(
        False, "Do not wait for that command.", "不等待该命令。", level="expert", planned=SCRIPT
    )
    validation_adapter_path: str | None = option(
        None, "Further adapter.", "其他适配器。", level="expert", planned=EXTRA
    )
    validation_adapter_name: str | None = option(
        None, "Name of that adapter.", "该适配器的名称。", level="expert", planned=EXTRA
    )
    validation_adapter_strength: float = option(
        1.0, "Strength of that adapter.", "该适配器的强度。", gt=0, level="expert", planned=EXTRA
    )
    validation_adapter_mode: Literal["adapter_only", "comparison", "none"] = option(
        "adapter_only", "What is shown.", "展示的内容。", level="expert", planned=EXTRA
    )
    validation_adapter_config: Any = option(
        None, "List of further adapters.", "其他适配器的列表。", level="expert", planned=EXTRA
    )
    validation_multigpu: Literal["single-gpu", "batch-parallel"] = option(
        "batch-parallel", "How several GPUs share the prompts.", "多 GPU 如何分配提示词。", level="expert",
        planned="several GPUs", neutral=("single-gpu",),
    )  # fmt: skip
    validation_image_format: Literal["png"] = option(
        "png", "File format of one-frame validations.", "单帧验证的文件格式。", level="expert",
        planned_values={value: f"{value} files" for value in ("webp", "jpeg")},
    )  # fmt: skip
    validation_image_quality: int = option(
        90, "Quality of lossy stills.", "有损图像质量。", ge=1, le=100, level="expert", planned="lossy stills"
    )
    enable_watermark: bool = option(
        False, "Mark generated videos.", "为生成的视频加水印。", level="expert", planned="watermarks"
    )

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
    """Read "768x512, 640" as [(768, 512), (640, 640)], before any rounding.

    Raises:
        ValueError: If a part is not a whole number of pixels, or is below 32.
    """
    sizes = []
    for part in text.split(","):
        numbers = [int(number) for number in part.strip().lower().replace("×", "x").split("x")]
        width, height = numbers if len(numbers) == 2 else (*numbers, *numbers)
        if min(width, height) < 32 or max(width, height) > 16384:
            raise ValueError(f"{part.strip()} is outside 32 to 16384 pixels")
        sizes.append((width, height))
    return sizes


def _floor_to_grid(width: int, height: int) -> tuple[int, int]:
    return width // 32 * 32, height // 32 * 32
