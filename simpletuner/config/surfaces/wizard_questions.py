"""The wizard's questions, in the order in which a person thinks: what there is, what is wanted, memory, length.

Data: each row is one question with its explanation, its proposal and the condition under which it is asked.
A question about a feature appears by itself once the option table no longer refuses that feature.
"""

from __future__ import annotations

from simpletuner.config.surfaces import proposals
from simpletuner.config.surfaces.prompt_templates import main_prompt
from simpletuner.config.surfaces.wizard import Choice, Known, Question, Words
from simpletuner.config.surfaces.wizard_estimates import (
    EIGHT_BITS,
    batch,
    draws,
    frames,
    has_long_clips,
    looking_interval,
    moving,
    needs_captions,
    option_default,
    proposed_batch,
    proposed_captions,
    proposed_edge,
    proposed_frames,
    proposed_name,
    proposed_preview_size,
    proposed_rate,
    proposed_storage,
    steps,
    tokens,
    trains_lora,
    wants_previews,
)

TEXT_ENCODER_GB = 11  # below it T5-XXL in bf16 is tight
LYCORIS = ("lora_type", "lycoris")


# Computed lines ----------------------------------------------------------------------------------


def _hint_frames(known: Known) -> Words:
    assert known.material is not None
    clips, count = known.material.clips, frames(known)
    enough = sum(clip.num_frames >= count for clip in clips)
    rate = sorted(clip.frame_rate for clip in clips)[len(clips) // 2]
    return Words(
        f"{enough} of {len(clips)} clips have at least {count} frames: {count / rate:.1f} s at {rate:.4g} fps.",
        f"{len(clips)} 个视频中有 {enough} 个至少有 {count} 帧：{rate:.4g} fps 下为 {count / rate:.1f} 秒。",
    )


def _hint_length(known: Known) -> Words:
    passes = proposals.passes_of(steps(known), draws(known), batch(known))
    return Words(
        f"{draws(known)} samples, {batch(known)} per step: {steps(known)} steps see each about {passes:.0f} times.",
        f"{draws(known)} 个样本，每步 {batch(known)} 个：{steps(known)} 步中每个样本约被看到 {passes:.0f} 次。",
    )


def _hint_memory(known: Known) -> Words:
    machine = known.machine
    several = f"{machine.count} × " if machine.count > 1 else ""
    return Words(
        f"Found: {several}{machine.name}, {machine.memory_gb:.0f} GB.",
        f"检测到：{several}{machine.name}，{machine.memory_gb:.0f} GB。",
    )


def _hint_tokens(known: Known) -> Words:
    count, limit = round(tokens(known)), known.token_limit
    if limit == 1:
        return Words("The model alone does not fit into this memory.", "仅模型本身就超出此显存。")
    room = Words(f"; about {limit} fit into a step", f"；一步约可容纳 {limit} 个") if limit else Words("", "")
    return Words(f"{count} latent tokens per clip{room.en}.", f"每个视频 {count} 个潜变量 token{room.zh}。")


# The questions -----------------------------------------------------------------------------------

HAVE = Words("What you have", "现有素材")
WANT = Words("What you want", "训练目标")
MEMORY = Words("How much memory", "显存")
LENGTH = Words("How long", "训练时长")
SEEING = Words("What you want to see on the way", "训练中的预览")
PLACES = Words("Names and folders", "名称与文件夹")
MORE = Words("Anything else", "其他")

QUESTIONS: tuple[Question, ...] = (
    Question(
        "clips", "folder",
        Words("Which folder holds your clips?", "视频在哪个文件夹？"),
        Words("Clips (and pictures) with their captions, sub-folders included; nothing in it is ever changed.",
              "视频（与图片）及其字幕，包含子文件夹；其中的文件不会被改动。"),
        group=HAVE,
    ),
    Question(
        "pictures", "yes or no",
        Words("Train the pictures in it too?", "其中的图片也参与训练吗？"),
        Words("Pictures teach looks, clips teach motion; they form a data set of their own.",
              "图片教外观，视频教动作；图片会成为单独的数据集。"),
        default=lambda known: True,
        asked=lambda known: moving(known) and known.material is not None and bool(known.material.pictures),
    ),
    Question(
        "captions", "choice",
        Words("Some files have no caption beside them. Where do captions come from?",
              "部分文件旁边没有字幕。字幕从哪里来？"),
        Words("A caption says what is seen; LTX-Video wants it long and detailed.",
              "字幕描述画面内容；LTX-Video 需要又长又详细的描述。"),
        default=proposed_captions,
        asked=needs_captions,
        option="dataset.caption_strategy",
        choices=(
            Choice("textfile", Words("the .txt file beside each; files without one are left out",
                                     "旁边的 .txt 文件；没有的文件不参与训练")),
            Choice("filename", Words("the file's name, underscores read as spaces", "文件名，下划线视为空格")),
            Choice("instanceprompt", Words("one and the same text for all of them", "所有文件使用同一段文字")),
        ),
    ),
    Question(
        "instance_prompt", "text",
        Words("The one caption for all files?", "所有文件共用的字幕？"),
        Words("Name the subject and describe what all of them show.", "写出主体，并描述所有文件的共同内容。"),
        asked=lambda known: known.answers.get("captions") == "instanceprompt",
    ),
    Question(
        "model", "choice",
        Words("Which model do you want to teach?", "要训练哪个模型？"),
        Words("The large one knows more and needs about five times the memory and time.",
              "大模型能力更强，显存与时间约为五倍。"),
        default=lambda known: "2b",
        choices=(
            Choice("2b", Words("LTX-Video 0.9.5, 2 billion weights: the usual start",
                               "LTX-Video 0.9.5，20 亿参数：通常的起点")),
            Choice("13b", Words("LTX-Video 0.9.7, 13 billion weights: 30 GB and more",
                                "LTX-Video 0.9.7，130 亿参数：需 30 GB 以上")),
            Choice("13b-distilled", Words("LTX-Video 0.9.8, 13 billion weights, distilled: quick to generate with",
                                          "LTX-Video 0.9.8，130 亿参数，蒸馏版：生成很快")),
            Choice("path", Words("another one: a folder here or a repository on the Hub",
                                 "其他：本地文件夹或 Hub 仓库")),
        ),
        group=WANT,
    ),
    Question(
        "model_path", "text",
        Words("Its folder, or owner/name on the Hub?", "模型的文件夹，或 Hub 上的 owner/name？"),
        Words("A complete checkpoint in the Diffusers layout; its release is recognised.",
              "Diffusers 格式的完整检查点；版本会自动识别。"),
        asked=lambda known: known.answers.get("model") == "path",
        option="pretrained_model_name_or_path",
    ),
    Question(
        "training", "choice",
        Words("What shall be trained?", "训练什么？"),
        Words("An adapter is small, quick and can be switched off; all weights need far more memory.",
              "适配器小、快、可开关；全部权重需要多得多的显存。"),
        default=lambda known: "lora",
        choices=(
            Choice("lora", Words("a LoRA: a small file on top of the model", "LoRA：叠加在模型上的小文件")),
            Choice("lycoris", Words("a LyCORIS adapter (LoKr and others)", "LyCORIS 适配器（LoKr 等）"), needs=LYCORIS),
            Choice("full", Words("all weights of the model", "模型的全部权重"), needs=("model_type", "full")),
        ),
    ),
    Question(
        "subject", "choice",
        Words("What shall it learn?", "要学习什么？"),
        Words("Decides the proposed size of the adapter and the prompts of the previews.",
              "决定适配器的建议大小与预览提示词。"),
        default=lambda known: "style",
        choices=(
            Choice("style", Words("a style: how things look", "风格：画面的样子")),
            Choice("character", Words("a character or an object", "人物或物体")),
            Choice("motion", Words("a motion or an effect: how things move", "动作或特效：如何运动")),
            Choice("other", Words("something else", "其他")),
        ),
    ),
    Question(
        "trigger", "text",
        Words("Which words shall call it up? (may stay empty)", "用什么词触发它？（可留空）"),
        Words("A phrase that stands in your captions, such as `mira the fox` or `in inkwash style`.",
              "字幕中出现的短语，例如 `mira the fox` 或 `in inkwash style`。"),
        default=lambda known: known.answers.get("instance_prompt", ""),
    ),
    Question(
        "mode", "choice",
        Words("Videos from a text alone, or also from a first picture?", "只由文本生成视频，还是也由首帧图片生成？"),
        Words("Image-to-video is learnt beside text-to-video, not in its place.",
              "图生视频与文生视频一起学习，并不取代它。"),
        default=lambda known: "t2v",
        asked=moving,
        choices=(
            Choice("t2v", Words("from a text", "由文本")),
            Choice("i2v", Words("also from a picture that is the first frame", "也由作为首帧的图片"),
                   needs=("ltx_train_mode", "i2v")),
        ),
        option="ltx_train_mode",
    ),
    Question(
        "rank", "number",
        Words("Rank of the LoRA?", "LoRA 的秩（rank）？"),
        Words("4 is a small file that learns little, 16 suits a character, 64 a motion; more overfits sooner.",
              "4 文件小、学得少；16 适合人物，64 适合动作；更大更早过拟合。"),
        default=lambda known: proposals.rank_for(known.answers.get("subject", "")),
        asked=trains_lora,
        option="lora_rank",
    ),
    Question(
        "lycoris_algorithm", "choice",
        Words("Which LyCORIS algorithm?", "使用哪种 LyCORIS 算法？"),
        Words("LoKr gives much for few weights; LoHa above dimension 32 is unstable.",
              "LoKr 以少量参数获得较强效果；LoHa 维度超过 32 时不稳定。"),
        default=lambda known: "lokr",
        asked=lambda known: known.answers.get("training") == "lycoris",
        choices=tuple(
            Choice(name, words, needs=LYCORIS)
            for name, words in (
                ("lokr", Words("Kronecker product of small matrices", "小矩阵的 Kronecker 积")),
                ("loha", Words("Hadamard product of two LoRAs", "两个 LoRA 的 Hadamard 积")),
                ("lora", Words("LyCORIS' own LoRA", "LyCORIS 自带的 LoRA")),
            )
        ),
    ),
    Question(
        "average", "yes or no",
        Words("Keep a running average of the weights (EMA)?", "保留权重的滑动平均（EMA）吗？"),
        Words("Smoother results for long runs, at the memory of one more copy.", "长时间训练更平滑，多占一份内存。"),
        default=lambda known: False,
        needs="use_ema",
        option="use_ema",
    ),
    Question(
        "memory", "number",
        Words("Memory of the card to plan for, in GB?", "按多少 GB 显存规划？"),
        Words("Frames, size and batch are proposed so that a step fits.", "帧数、尺寸与批大小将按此建议。"),
        default=lambda known: round(known.machine.memory_gb, 1),
        hint=_hint_memory,
        group=MEMORY,
    ),
    Question(
        "quantize", "choice",
        Words("Store the frozen model in fewer bits?", "以更少的位数存放冻结的模型吗？"),
        Words("Saves memory and loses a little accuracy; not needed where the model fits.",
              "节省显存，略损精度；放得下时不需要。"),
        default=proposed_storage,
        asked=lambda known: known.answers.get("training") != "full",
        choices=(
            Choice("no_change", Words("no: bf16", "否：bf16")),
            *(
                Choice(name, words, needs=("base_model_precision", name), machines=machines)
                for name, machines, words in (
                    (EIGHT_BITS, (), Words("int8 (quanto): half the memory, on any card",
                                           "int8（quanto）：显存减半，任何显卡")),
                    ("fp8-torchao", ("cuda",), Words("fp8: needs a card of the 40 series or newer",
                                                     "fp8：需要 40 系或更新的显卡")),
                    ("nf4-bnb", ("cuda",), Words("nf4: a quarter of the memory, less stable",
                                                 "nf4：四分之一显存，稳定性较差")),
                )
            ),
        ),
        option="base_model_precision",
    ),
    Question(
        "quantize_text", "yes or no",
        Words("Store the text encoder in 8 bits?", "以 8 位存放文本编码器吗？"),
        Words("In bf16 it takes 9.5 GB while captions are encoded, the most of the whole run on a small card.",
              "bf16 下编码字幕时占 9.5 GB，在小显存卡上是全程的最高值。"),
        default=lambda known: float(known.answers.get("memory") or 0) < TEXT_ENCODER_GB and known.machine.kind != "cpu",
        asked=lambda known: known.is_built("text_encoder_1_precision", EIGHT_BITS) and known.machine.kind != "cpu",
    ),
    Question(
        "num_frames", "number",
        Words("Frames to train of each clip?", "每个视频训练多少帧？"),
        Words("Counts of the form 8k+1; shorter clips are left out, and memory grows with it.",
              "8k+1 的形式；更短的视频不参与训练，显存随之增长。"),
        default=proposed_frames,
        asked=moving,
        hint=_hint_frames,
        option="video.num_frames",
    ),
    Question(
        "resolution", "number",
        Words("Size to train at, as the edge of a square of equal area in pixels?",
              "训练尺寸（等面积正方形的边长，像素）？"),
        Words("Clips keep their shape; 480 is usual, and memory grows with its square.",
              "视频保持自身形状；480 为常用值，显存按平方增长。"),
        default=proposed_edge,
        hint=_hint_tokens,
        option="resolution",
    ),
    Question(
        "long_clips", "choice",
        Words("Most clips are much longer than that. Which part of them is trained?",
              "多数视频比这长得多。训练其中哪一部分？"),
        Words("Windows use all of the material; a single part is quicker to prepare.",
              "切片能用上全部素材；只取一段准备更快。"),
        default=lambda known: "split",
        asked=has_long_clips,
        choices=(
            Choice("split", Words("all of it, cut into windows that follow each other", "全部：切成连续的片段")),
            Choice("first", Words("the beginning", "开头")),
            Choice("middle", Words("the middle", "中间")),
            Choice("random", Words("a random part, the same in every run", "随机一段，每次运行相同")),
        ),
    ),
    Question(
        "batch_size", "number",
        Words("Clips per step?", "每步多少个视频？"),
        Words("More is steadier and takes more memory; 1 always runs.", "越多越稳定，占用显存越多；1 总是可行。"),
        default=proposed_batch,
        option="train_batch_size",
    ),
    Question(
        "length", "choice",
        Words("What ends the run?", "以什么结束训练？"),
        Words("Steps are the usual measure; epochs are whole passes over all clips.",
              "通常用步数；轮数是对全部视频的完整遍历。"),
        default=lambda known: "steps",
        choices=(
            Choice("steps", Words("a number of steps", "步数")),
            Choice("epochs", Words("a number of epochs", "轮数")),
        ),
        group=LENGTH,
    ),
    Question(
        "steps", "number",
        Words("How many steps?", "多少步？"),
        Words("Too few teach nothing, too many copy the clips; previews show which.",
              "太少学不会，太多会照搬素材；预览能看出来。"),
        default=lambda known: proposals.steps_for(draws(known), batch(known)),
        asked=lambda known: known.answers.get("length", "steps") == "steps",
        hint=_hint_length,
        option="max_train_steps",
    ),
    Question(
        "epochs", "number",
        Words("How many epochs?", "多少轮？"),
        Words("Each clip is seen once per epoch, and once more for every repeat.",
              "每轮每个视频看一次，每次重复再多一次。"),
        default=lambda known: proposals.epochs_for(draws(known), batch(known)),
        asked=lambda known: known.answers.get("length") == "epochs",
        hint=_hint_length,
        option="num_train_epochs",
    ),
    Question(
        "optimizer", "choice",
        Words("Which optimizer?", "使用哪种优化器？"),
        Words("The first one is right for nearly everything; `simpletuner options optimizer` lists all.",
              "第一种几乎适合所有情况；`simpletuner options optimizer` 列出全部。"),
        default=lambda known: "adamw_bf16",
        choices=(
            Choice("adamw_bf16", Words("AdamW in bfloat16 that loses no small step: little memory",
                                       "bfloat16 的 AdamW，不丢失微小更新：省显存")),
            Choice("torch-adamw", Words("AdamW in float32, PyTorch's own: exact, twice the memory",
                                        "float32 的 AdamW（PyTorch 自带）：精确，内存加倍"),
                   needs=("optimizer", "torch-adamw")),
            Choice("bnb-adamw8bit", Words("AdamW with 8-bit moments: least memory, for full training",
                                          "8 位动量的 AdamW：最省显存，适合全量训练"),
                   needs=("optimizer", "bnb-adamw8bit"), machines=("cuda",)),
            Choice("prodigy", Words("Prodigy: finds the learning rate by itself", "Prodigy：自动寻找学习率"),
                   needs=("optimizer", "prodigy")),
        ),
        option="optimizer",
    ),
    Question(
        "learning_rate", "number",
        Words("Learning rate?", "学习率？"),
        Words("Follows from rank and optimizer; halve it when previews break, double it when nothing changes.",
              "由秩与优化器决定；预览崩坏时减半，毫无变化时加倍。"),
        default=proposed_rate,
        option="learning_rate",
    ),
    Question(
        "checkpoint_interval", "number",
        Words("Steps between checkpoints?", "每隔多少步保存一次检查点？"),
        Words("What a crash can cost at most; the last five are kept.", "决定崩溃时最多损失多少；保留最近五个。"),
        default=lambda known: proposals.checkpoint_interval(steps(known)),
        option="checkpoint_step_interval",
    ),
    Question(
        "previews", "yes or no",
        Words("Generate preview videos while training?", "训练中生成预览视频吗？"),
        Words("They show whether it learns, before and after; each takes about a minute on a fast card.",
              "能看出是否学会（前后对比）；在快卡上每个约一分钟。"),
        default=lambda known: True,
        group=SEEING,
    ),
    Question(
        "prompt", "text",
        Words("Main prompt of the previews?", "预览的主提示词？"),
        Words("Long and detailed, with your trigger words in it.", "又长又详细，并包含触发词。"),
        default=main_prompt,
        asked=wants_previews,
        option="validation_prompt",
    ),
    Question(
        "prompt_library", "yes or no",
        Words("Add a library of varied prompts?", "再加一组多样的提示词吗？"),
        Words("Scenes around your subject, your own captions and one unrelated scene; nothing is downloaded.",
              "围绕主体的场景、您自己的字幕和一个无关场景；不下载任何东西。"),
        default=lambda known: True,
        asked=wants_previews,
    ),
    Question(
        "preview_interval", "number",
        Words("Steps between previews?", "每隔多少步预览一次？"),
        Words("Each preview pauses training; five in a run show the way.",
              "每次预览都会暂停训练；全程五次足以看出走向。"),
        default=looking_interval,
        asked=wants_previews,
        option="validation_step_interval",
    ),
    Question(
        "preview_size", "text",
        Words("Size of the previews?", "预览尺寸？"),
        Words("Width x height; several sizes with commas. The size you train shows best what was learned.",
              "宽x高；多个尺寸用逗号分隔。与训练相近的尺寸最能说明学到了什么。"),
        default=proposed_preview_size,
        asked=wants_previews,
        option="validation_resolution",
    ),
    Question(
        "preview_frames", "number",
        Words("Frames of the previews?", "预览的帧数？"),
        Words("The length you train shows best what was learned.", "与训练相同的长度最能说明学到了什么。"),
        default=lambda known: frames(known) if moving(known) else option_default("validation_num_video_frames")(known),
        asked=wants_previews,
        option="validation_num_video_frames",
    ),
    Question(
        "held_out", "text",
        Words("Folder of clips set apart, to measure what is learnt? (may stay empty)",
              "用于评估、不参与训练的视频文件夹？（可留空）"),
        Words("Never trained: the loss on them falls while the run learns and rises once it copies; four clips are "
              "enough.", "从不参与训练：学习时其损失下降，开始照搬时上升；四个视频即可。"),
        default=lambda known: "",
    ),
    Question(
        "name", "text",
        Words("Name of the run?", "本次运行的名称？"),
        Words("Stands in reports and in the adapter's file.", "出现在报告与适配器文件中。"),
        default=proposed_name,
        option="tracker_run_name",
        group=PLACES,
    ),
    Question(
        "output", "text",
        Words("Folder for what the run makes?", "结果保存到哪个文件夹？"),
        Words("Checkpoints, adapter, videos, report; the same folder continues a run.",
              "检查点、适配器、视频、报告；同一文件夹可继续训练。"),
        default=lambda known: f"output/{known.answers.get('name') or proposed_name(known)}",
        option="output_dir",
    ),
    Question(
        "tracker", "choice",
        Words("Report to a tracker?", "使用追踪器吗？"),
        Words("The run folder holds metrics and a report in any case.", "运行文件夹中总会有指标与报告。"),
        default=lambda known: "none",
        choices=(
            Choice("none", Words("no: local files only", "否：只用本地文件")),
            Choice("wandb", Words("Weights & Biases (log in first: wandb login)",
                                  "Weights & Biases（先登录：wandb login）"),
                   needs=("report_to", "wandb")),
            Choice("tensorboard", Words("TensorBoard", "TensorBoard"), needs=("report_to", "tensorboard")),
        ),
        option="report_to",
    ),
    Question(
        "webhook", "text",
        Words("Address of a webhook that is told what happens? (may stay empty)",
              "接收事件的 webhook 地址？（可留空）"),
        Words("A Discord channel or your own service; written to webhook.json.",
              "Discord 频道或自己的服务；写入 webhook.json。"),
        default=lambda known: "",
        needs="webhook_config",
    ),
    Question(
        "upload", "yes or no",
        Words("Upload the result to the Hub?", "将结果上传到 Hub 吗？"),
        Words("Needs a login (hf auth login); the repository is private.", "需要登录（hf auth login）；仓库为私有。"),
        default=lambda known: False,
        needs="push_to_hub",
        option="push_to_hub",
    ),
    Question(
        "options", "options",
        Words("Any other option by its name? (empty to finish)", "还要按名称设置其他选项吗？（留空结束）"),
        Words("Every option of the table can be set; its explanation is shown.", "可设置表中的任何选项，并显示说明。"),
        default=lambda known: {},
        group=MORE,
    ),
)  # fmt: skip

BY_KEY = {question.key: question for question in QUESTIONS}
