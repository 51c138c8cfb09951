"""What a drafted run comes to, in a few lines: buckets, length, memory, time, disk. `simpletuner plan` tells it all."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.surfaces.wizard import Language, Words
from simpletuner.events.wording import told_duration, told_size
from simpletuner.recipes.forecast import Forecast

HEADING = Words("What it comes to", "训练计划")
BUCKET = Words(
    "{0}: samples {1}, tokens of each {2}, batches per epoch {3}",
    "{0}：{1} 个样本，每个 {2} token，每轮 {3} 批",
)
LENGTH = Words("{0} steps ({1} epochs), {2} checkpoints, {3} previews", "{0} 步（{1} 轮），{2} 个检查点，{3} 次预览")
CARD = Words("{0}: about {1}, {2} of memory ({3})", "{0}：约 {1}，内存 {2}（{3}）")
VERDICTS = {"fits": Words("fits", "放得下"), "tight": Words("tight", "勉强"), "too large": Words("too large", "放不下")}
DISK = Words("disk: {0}", "磁盘：{0}")


def describe_forecast(forecast: Forecast, language: Language) -> Iterator[str]:
    """The lines, the first a heading."""
    yield HEADING.told(language)
    for line in forecast.data.buckets if forecast.data else ():
        yield "  " + BUCKET.told(language).format(line.bucket, line.windows, line.tokens, line.batches)
    length = forecast.length
    if length.steps:
        epochs = f"{length.epochs:.1f}" if length.epochs else "–"
        yield "  " + LENGTH.told(language).format(length.steps, epochs, length.checkpoints, length.validations)
    for one in forecast.cards:
        seconds, needed = one.times.total, told_size(one.memory.peak_bytes)
        duration = "–" if seconds is None else told_duration(seconds)
        verdict = VERDICTS[one.memory.verdict].told(language)
        yield "  " + CARD.told(language).format(one.card.label, duration, needed, verdict)
    yield "  " + DISK.told(language).format(told_size(forecast.disk.total_bytes))
