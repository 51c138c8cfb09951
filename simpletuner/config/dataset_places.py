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
        "The table: a file of this machine, or a path inside the data set's own place.",
        "表文件：本机文件，或数据集存储中的路径。",
    )
    filename_column: str = option("filename", "Column of the file names.", "文件名所在的列。")
    identifier_includes_extension: bool = option(
        False, "Whether the names in that column carry their ending.", "该列中的文件名是否带扩展名。"
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
    """Flat keys of an entry about its place; each belongs to one `type`."""

    instance_data_dir: str = option(
        "", "Folder that is searched, sub-folders included.", "要搜索的文件夹，包括子文件夹。", guide=True
    )
    parquet: ParquetColumns = option(
        ParquetColumns(), "Columns of a parquet table.", "parquet 表的列。", level="advanced"
    )
    huggingface: HubColumns = option(HubColumns(), "Columns of a Hub data set.", "Hub 数据集的列。", level="advanced")
    # Object store ---------------------------------------------------------------------------------
    aws_bucket_name: str | None = option(None, f"Bucket {S3_ONLY}.", "`type: aws` 的存储桶。", level="advanced")
    aws_data_prefix: str = option("", f"Folder inside the bucket {S3_ONLY}.", "存储桶内的文件夹。", level="advanced")
    aws_endpoint_url: str | None = option(
        None, "Address of an S3-compatible service; absent means Amazon's own.",
        "S3 兼容服务的地址；未给出时为 Amazon。", level="advanced",
    )  # fmt: skip
    aws_region_name: str | None = option(None, f"Region {S3_ONLY}.", "区域。", level="expert")
    aws_access_key_id: str | None = option(
        None, "Access key; absent means that the client library finds one.", "访问密钥；未给出时由客户端库查找。",
        level="expert", secret=True,
    )  # fmt: skip
    aws_secret_access_key: str | None = option(
        None, "Secret of the access key.", "访问密钥的密文。", level="expert", secret=True
    )
    aws_session_token: str | None = option(None, "Session token.", "会话令牌。", level="expert", secret=True)
    aws_max_pool_connections: int = option(
        128, "Connections kept open.", "保持的连接数。", ge=1, level="expert"
    )  # fmt: skip
    # Lists ----------------------------------------------------------------------------------------
    csv_file: str | None = option(
        None, "List of clips for `type: csv`: a .csv, .tsv or .parquet file with a column of paths or URLs.",
        "`type: csv` 的列表文件：.csv、.tsv 或 .parquet，含路径或网址列。", level="advanced",
    )  # fmt: skip
    csv_url_column: str = option("url", "Column of the paths or URLs.", "路径或网址所在的列。", level="advanced")
    csv_caption_column: str | list[str] = option(
        "caption", "Column of the captions; a list of columns gives several captions.",
        "字幕所在的列；列表给出多条字幕。", level="advanced",
    )  # fmt: skip
    csv_cache_dir: str | None = option(
        None, "Folder of downloaded files; absent means below `cache_dir_vae`.",
        "下载文件的文件夹；未给出时在 `cache_dir_vae` 之下。", level="advanced",
    )  # fmt: skip
    # Hub ------------------------------------------------------------------------------------------
    dataset_name: str | None = option(
        None, "Data set on the Hub for `type: huggingface`, as owner/name; or a local folder of one.",
        "`type: huggingface` 的 Hub 数据集 owner/name；或其本地文件夹。", level="advanced",
    )  # fmt: skip
    dataset_config: str | None = option(
        None, "Configuration of the Hub data set.", "Hub 数据集的配置。", level="expert"
    )
    split: str = option("train", "Split of the Hub data set.", "Hub 数据集的划分。", level="advanced")
    revision: str | None = option(None, "Revision of the Hub data set.", "Hub 数据集的版本。", level="expert")
    video_column: str = option("video", "Column of the clips.", "视频所在的列。", level="advanced")
    image_column: str = option("image", "Column of the images.", "图像所在的列。", level="advanced")
    cache_dir: str | None = option(None, "Folder of downloads from the Hub.", "Hub 下载的文件夹。", level="expert")
    streaming: bool = option(
        False,
        "Read the Hub data set without downloading it whole.",
        "不完整下载，流式读取 Hub 数据集。",
        level="advanced",
    )
    num_proc: int = option(
        16, "Processes that prepare a Hub data set.", "准备 Hub 数据集的进程数。", ge=1, level="expert",
        accepted_note="`max_workers` decides how many files are read at once",
    )  # fmt: skip


# Keys that only one `type` reads; written for another type they are told as having no effect.
KEYS_OF_TYPE: dict[str, tuple[str, ...]] = {
    "local": ("instance_data_dir",),
    "aws": tuple(name for name in PlaceKeys.model_fields if name.startswith("aws_")),
    "csv": tuple(name for name in PlaceKeys.model_fields if name.startswith("csv_")),
    "huggingface": (
        "dataset_name", "dataset_config", "split", "revision", "video_column", "image_column", "cache_dir", "streaming",
        "num_proc", "huggingface",
    ),
}  # fmt: skip

PlaceType = Literal["local", "aws", "csv", "huggingface"]
