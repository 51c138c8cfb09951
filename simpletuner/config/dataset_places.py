"""Keys of a data set entry that say where its files lie and where facts about them are written.

One class per block of the file; `dataset.py` joins the flat keys with the rest of the entry.
"""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

S3_ONLY = "for `type: aws`"


class ParquetColumns(Section):
    """The `parquet` block: a table of captions and sizes beside the files."""

    path: str | None = option(
        None,
        "The table (.parquet, .csv, .tsv, .jsonl): a file of this machine, or a path inside the data set's own place.",
        "表文件（.parquet、.csv、.tsv 或 .jsonl）：本机文件，或数据集存储中的路径。",
    )
    filename_column: str = option("filename", "Column of the file names.", "文件名所在的列。")
    identifier_includes_extension: bool = option(
        False, "Whether the names in that column must match with their ending.", "该列中的文件名是否须连同扩展名匹配。"
    )
    caption_column: str | list[str] = option(
        "caption", "Column of the captions; a list of columns gives several captions.",
        "字幕所在的列；列表给出多条字幕。",
    )  # fmt: skip
    fallback_caption_column: str | None = option(
        None, "Column used where the caption is empty.", "字幕为空时使用的列。"
    )
    width_column: str | None = option(None, "Column of the widths in pixels.", "宽度（像素）所在的列。")
    height_column: str | None = option(None, "Column of the heights in pixels.", "高度（像素）所在的列。")
    num_frames_column: str | None = option(None, "Column of the frame counts.", "帧数所在的列。")
    fps_column: str | None = option(None, "Column of the frame rates.", "帧率所在的列。")
    aspect_ratio_column: str | None = option(
        None, "Column of the aspects.", "宽高比所在的列。", level="expert",
        accepted_note="aspects follow from width and height",
    )  # fmt: skip
    bbox_column: str | None = option(
        None, "Column of face boxes.", "人脸框所在的列。", level="expert", planned="cropping around faces"
    )


class HubColumns(Section):
    """The `huggingface` block: columns of a Hub data set."""

    caption_column: str | list[str] = option(
        "caption", "Column of the captions; a list of columns gives several captions.",
        "字幕所在的列；列表给出多条字幕。",
    )  # fmt: skip
    fallback_caption_column: str | None = option(
        None, "Column used where the caption is empty.", "字幕为空时使用的列。"
    )
    description_column: str | None = option(
        None, "Another column used where the caption is empty.", "字幕为空时使用的另一列。", level="expert"
    )
    width_column: str | None = option(None, "Column of the widths in pixels.", "宽度（像素）所在的列。")
    height_column: str | None = option(None, "Column of the heights in pixels.", "高度（像素）所在的列。")
    num_frames_column: str | None = option(None, "Column of the frame counts.", "帧数所在的列。")
    fps_column: str | None = option(None, "Column of the frame rates.", "帧率所在的列。")


class PlaceKeys(Section):
    """Flat keys of an entry about its place; each belongs to one `type`, some to two (see `KEYS_OF_TYPE`)."""

    instance_data_dir: str = option(
        "", "Folder that is searched, sub-folders included; with `type: csv`, where relative paths start.",
        "要搜索的文件夹，包括子文件夹；`type: csv` 时为相对路径的起点。", guide=True,
    )  # fmt: skip
    parquet: ParquetColumns = option(
        ParquetColumns(), "Columns of a table of captions and sizes.", "字幕与尺寸表的列。", level="advanced"
    )
    huggingface: HubColumns = option(HubColumns(), "Columns of a Hub data set.", "Hub 数据集的列。", level="advanced")
    # Object store ---------------------------------------------------------------------------------
    aws_bucket_name: str | None = option(None, f"Bucket {S3_ONLY}.", "`type: aws` 的存储桶。", level="advanced")
    aws_data_prefix: str = option("", f"Folder inside the bucket {S3_ONLY}.", "存储桶内的文件夹。", level="advanced")
    aws_endpoint_url: str | None = option(
        None, "Address of an S3-compatible service; absent means Amazon's own.",
        "S3 兼容服务的地址；未给出时为 Amazon。", level="advanced",
    )  # fmt: skip
    aws_region_name: str | None = option(
        None, "Region of the object store; absent means that the client library finds it.",
        "对象存储的区域；未给出时由客户端库查找。", level="expert",
    )  # fmt: skip
    aws_access_key_id: str | None = option(
        None, "Access key; absent means that the client library finds one (environment, profile, role), or none.",
        "访问密钥；未给出时由客户端库查找（环境变量、配置文件、角色），或不使用。",
        level="expert", secret=True,
    )  # fmt: skip
    aws_secret_access_key: str | None = option(
        None, "Secret of the access key.", "访问密钥的密文。", level="expert", secret=True
    )
    aws_session_token: str | None = option(
        None, "Session token of a temporary access key.", "临时访问密钥的会话令牌。", level="expert", secret=True
    )
    aws_max_pool_connections: int = option(
        128, "Most connections to the object store at once.", "同时到对象存储的最大连接数。", ge=1, le=4096,
        level="expert", unit="connections",
    )  # fmt: skip
    # Lists ----------------------------------------------------------------------------------------
    csv_file: str | None = option(
        None, "List of clips for `type: csv`: a .csv, .tsv, .jsonl or .parquet file with a column of paths or URLs "
        "(http, https, s3).",
        "`type: csv` 的列表文件：.csv、.tsv、.jsonl 或 .parquet，含路径或网址（http、https、s3）列。", level="advanced",
    )  # fmt: skip
    csv_url_column: str = option(
        "url", "Column of the paths or URLs; relative paths start at `instance_data_dir`, else beside the list.",
        "路径或网址所在的列；相对路径从 `instance_data_dir` 开始，未给出时从列表所在文件夹开始。", level="advanced",
    )  # fmt: skip
    csv_caption_column: str | list[str] = option(
        "caption", "Column of the captions; a list of columns gives several captions.",
        "字幕所在的列；列表给出多条字幕。", level="advanced",
    )  # fmt: skip
    csv_width_column: str = option(
        "width",
        "Column of the widths in pixels, where the list has it.",
        "宽度（像素）所在的列，如有。",
        level="expert",
    )
    csv_height_column: str = option(
        "height", "Column of the heights in pixels, where the list has it.", "高度（像素）所在的列，如有。",
        level="expert",
    )  # fmt: skip
    csv_num_frames_column: str = option(
        "num_frames", "Column of the frame counts, where the list has it.", "帧数所在的列，如有。", level="expert"
    )
    csv_fps_column: str = option(
        "fps", "Column of the frame rates, where the list has it.", "帧率所在的列，如有。", level="expert"
    )
    csv_cache_dir: str | None = option(
        None, "Folder of downloaded files; absent means `downloads` below `cache_dir_vae`.",
        "下载文件的文件夹；未给出时为 `cache_dir_vae` 下的 `downloads`。", level="advanced",
    )  # fmt: skip
    # Hub ------------------------------------------------------------------------------------------
    dataset_name: str | None = option(
        None, "Data set on the Hub for `type: huggingface`, as owner/name; or a local folder of one.",
        "`type: huggingface` 的 Hub 数据集 owner/name；或其本地文件夹。", level="advanced",
    )  # fmt: skip
    dataset_config: str | None = option(
        None, "Configuration of a Hub data set of rows.", "按行存储的 Hub 数据集的配置。", level="expert"
    )
    split: str = option("train", "Split of a Hub data set of rows.", "按行存储的 Hub 数据集的划分。", level="advanced")
    revision: str | None = option(
        None, "Branch, tag or commit of the Hub data set; absent means its main branch.",
        "Hub 数据集的分支、标签或提交；未给出时为主分支。", level="expert",
    )  # fmt: skip
    video_column: str = option(
        "video", "Column of the clips in a Hub data set of rows.", "按行存储的 Hub 数据集中视频所在的列。",
        level="advanced",
    )  # fmt: skip
    image_column: str = option(
        "image", "Column of the images in a Hub data set of rows.", "按行存储的 Hub 数据集中图像所在的列。",
        level="advanced",
    )  # fmt: skip
    cache_dir: str | None = option(
        None, "Folder of downloads from the Hub; absent means the Hub library's own.",
        "Hub 下载的文件夹；未给出时使用 Hub 库自己的文件夹。", level="expert",
    )  # fmt: skip
    streaming: bool = option(
        False,
        "Read only the parts of Hub files that are needed and keep nothing; otherwise each file is downloaded when it "
        "is first opened.",
        "只读取 Hub 文件中需要的部分且不保存；否则每个文件在首次打开时下载。",
        level="advanced",
    )
    num_proc: int = option(
        16, "Processes that prepare a Hub data set.", "准备 Hub 数据集的进程数。", ge=1, level="expert",
        accepted_note="`max_workers` decides how many files are read at once",
    )  # fmt: skip


# Where an object store is and who asks; read by buckets, and by lists with s3:// addresses.
CONNECTION_KEYS = (
    "aws_endpoint_url", "aws_region_name", "aws_access_key_id", "aws_secret_access_key", "aws_session_token",
    "aws_max_pool_connections",
)  # fmt: skip

# Keys that only some `type` reads; written for another type they are told as having no effect.
KEYS_OF_TYPE: dict[str, tuple[str, ...]] = {
    "local": ("instance_data_dir",),
    "aws": ("aws_bucket_name", "aws_data_prefix", *CONNECTION_KEYS),
    "csv": (
        *(name for name in PlaceKeys.model_fields if name.startswith("csv_")), "instance_data_dir", *CONNECTION_KEYS,
    ),
    "huggingface": (
        "dataset_name", "dataset_config", "split", "revision", "video_column", "image_column", "cache_dir", "streaming",
        "num_proc", "huggingface",
    ),
}  # fmt: skip

PlaceType = Literal["local", "aws", "csv", "huggingface"]
