"""How clips and captions are encoded ahead of training."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

ONE_BY_ONE = "every encoded entry is written at once, so that a crash loses none"


class CachingSection(Section):
    cache_dir: str | None = option(
        None, "Root of the caches; absent means `<output_dir>/cache`.", "缓存根目录；未给出时为 `<output_dir>/cache`。"
    )
    cache_dir_vae: str | None = option(
        None,
        "Root of the encoded clips; absent means `<cache_dir>/vae`. Each data set gets a folder below it.",
        "已编码视频的根目录；未给出时为 `<cache_dir>/vae`。每个数据集在其下有自己的文件夹。",
        guide=True,
    )
    cache_dir_text: str | None = option(
        None,
        "Folder of the encoded captions; absent means `<cache_dir>/text`.",
        "已编码字幕的文件夹；未给出时为 `<cache_dir>/text`。",
    )
    vae_batch_size: int = option(1, "Clips encoded at once.", "一次编码的视频数。", ge=1, guide=True)
    vae_enable_slicing: bool = option(
        False,
        "Encode and decode one clip at a time.",
        "一次只编码、解码一个视频。",
        guide=True,
        accepted_note="videos are decoded one at a time anyway, and vae_batch_size says how many are encoded at once",
    )
    vae_enable_tiling: bool = option(
        False,
        "Encode and decode in spatial tiles to save memory.",
        "按空间分块编码与解码以节省显存。",
    )
    text_encoder_batch_size: int = option(4, "Captions encoded at once.", "一次编码的字幕数。", ge=1)
    max_workers: int = option(
        8, "Threads that probe and decode clips.", "探测与解码视频的线程数。", ge=1, le=256, level="advanced"
    )
    vae_enable_temporal_roll: bool = option(
        False, "Encode a clip in pieces of time.", "按时间分段编码视频。", level="expert",
        planned="encoding in pieces of time",
    )  # fmt: skip
    vae_enable_patch_conv: bool = option(
        False, "Convolve in patches.", "分块卷积。", level="expert", planned="patched convolution"
    )
    vae_cache_ondemand: bool = option(
        False,
        "Encode a clip when training first needs it, and keep it; the autoencoder stays in memory then.",
        "训练首次用到视频时才编码并保存；自编码器会留在内存中。",
        level="advanced",
    )
    vae_cache_disable: bool = option(
        False,
        "Encode each clip whenever training needs it and keep nothing; what is in the cache already is used.",
        "每次用到视频时都重新编码，不保存；缓存中已有的仍会使用。",
        level="advanced",
    )
    vae_cache_preprocess: bool = option(
        True, "Old opposite of `vae_cache_ondemand`: `false` means the same as `vae_cache_ondemand=true`.",
        "`vae_cache_ondemand` 的旧反义选项：`false` 等同于 `vae_cache_ondemand=true`。", level="expert",
    )  # fmt: skip
    vae_cache_dtype: Literal["bf16", "fp32"] = option(
        "bf16",
        "Number format in which encoded clips are kept; changing it encodes them again.",
        "已编码视频的存储数值格式；更改后会重新编码。",
        level="advanced",
    )
    cache_format: Literal["files", "shards"] = option(
        "files",
        "How new cache entries are kept: a file each, or packed into few large files, which suits very many small "
        "entries. Both are always read.",
        "新缓存条目的存放方式：每条一个文件，或合并到少数大文件中（适合大量小条目）。两种始终都可读取。",
        level="advanced",
    )
    vae_cache_scan_behaviour: Literal["recreate"] = option(
        "recreate", "What happens to a cached clip that is damaged or has another shape: it is encoded again.",
        "损坏或形状不符的缓存如何处理：重新编码。", level="expert",
        planned_values={"sync": "trusting cached clips of another shape"},
    )  # fmt: skip
    keep_vae_loaded: bool = option(
        False, "Keep the autoencoder in memory between encoding clips and decoding validation videos.",
        "在编码视频与解码验证视频之间将自编码器留在内存中。", level="advanced",
    )  # fmt: skip
    compress_disk_cache: bool = option(
        False, "Compress new cache entries with zstd. Entries are read either way, so changing it encodes nothing.",
        "用 zstd 压缩新的缓存条目。两种条目都可读取，更改此项不会重新编码。", guide=True,
    )  # fmt: skip
    text_cache_ondemand: bool = option(
        False,
        "Encode a caption when training first needs it, and keep it; the text encoder stays in memory then.",
        "训练首次用到字幕时才编码并保存；文本编码器会留在内存中。",
        level="advanced",
    )
    text_cache_disable: bool = option(
        False,
        "Encode each caption whenever it is needed and keep nothing; what is in the cache already is used.",
        "每次用到字幕时都重新编码，不保存；缓存中已有的仍会使用。",
        level="advanced",
    )
    text_embed_full_cache: bool = option(
        False, "Keep encoded captions in memory once they have been read.", "已编码字幕读取后留在内存中。",
        level="expert",
    )  # fmt: skip
    cache_memory_limit: str = option(
        "2GB",
        "Encoded clips and captions stay in memory once they have been read, if all of them together take at most this "
        "much and an eighth of the machine's memory; 0 reads them from the disk each time.",
        "已编码视频与字幕的总大小不超过此值、也不超过本机内存八分之一时，读取后留在内存；0 表示每次从磁盘读取。",
        level="advanced",
    )
    read_batch_size: int = option(
        25, "Files read ahead.", "预读的文件数。", ge=1, level="expert",
        accepted_note="files are read ahead by a fixed small number of batches",
    )  # fmt: skip
    write_batch_size: int = option(
        128,
        "Entries written at once.",
        "一次写入的条目数。",
        ge=1,
        guide=True,
        level="expert",
        accepted_note=ONE_BY_ONE,
    )
    image_processing_batch_size: int = option(
        32, "Files decoded at once.", "一次解码的文件数。", ge=1, level="expert",
        accepted_note="`max_workers` decides how many files are decoded at once",
    )  # fmt: skip
    aspect_bucket_worker_count: int = option(
        12, "Threads that read headers.", "读取文件头的线程数。", ge=1, level="expert",
        accepted_note="`max_workers` decides how many headers are read at once",
    )  # fmt: skip
    enable_multiprocessing: bool = option(
        False, "Read headers with processes.", "用多进程读取文件头。", level="expert",
        accepted_note="headers of many local files are read by processes anyway, those of few by threads",
    )  # fmt: skip
    torch_num_threads: int | None = option(
        None, "Threads of PyTorch on the CPU.", "PyTorch 在 CPU 上的线程数。", ge=1, level="expert",
        planned="choosing PyTorch's thread count by option (set OMP_NUM_THREADS)",
    )  # fmt: skip
    preserve_data_backend_cache: bool = option(
        False, "Skip the listing of files at the start.", "启动时跳过文件列表。", level="advanced",
        accepted_note="headers already read are remembered anyway and files are listed in each run",
    )  # fmt: skip
    skip_file_discovery: str | None = option(
        None, "Scans to skip at the start: aspect, vae, text, metadata.",
        "启动时要跳过的扫描：aspect、vae、text、metadata。",
        level="expert", planned="skipping scans at the start",
    )  # fmt: skip
    override_dataset_config: bool = option(
        False, "Accept a data set whose settings changed.", "接受设置已改变的数据集。", level="advanced",
        accepted_note="a changed data set is accepted anyway: what its settings shape is encoded again",
    )  # fmt: skip
    metadata_update_interval: int = option(
        3600, "Seconds between saves of header facts.", "保存文件头信息的间隔秒数。", ge=60, unit="seconds",
        level="expert", accepted_note="header facts are saved as they are read",
    )  # fmt: skip
