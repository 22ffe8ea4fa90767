"""The directory of `vlmkit train --share`: what runs leave there for each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from accelerate import Accelerator

from vlmkit.data.collate import TextRules
from vlmkit.data.sample import Sample, readable
from vlmkit.encoders.base import VisionEncoder
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.objectives import objective_weights
from vlmkit.recipe import Stage
from vlmkit.share import keys
from vlmkit.share.features import FeatureFile, StoredFeatures, image_bytes
from vlmkit.share.lock import Tell, one_at_a_time
from vlmkit.share.stages import StageWork, keep, stage_key, take
from vlmkit.share.tokens import SharedRows
from vlmkit.train.steps import StageData
from vlmkit.vlm import VLM

GIGABYTE = 1e9


class Shared:
    """Where runs share work; any number of them at once.

    Args:
        path: A directory; created where absent.
        limit: Most gigabytes of the features of one encoder.
        accelerator: Of the run.
        tell: Told what was taken over, and what is not shared and why.

    Raises:
        UsageError: The run has several processes.
    """

    def __init__(self, path: Path, limit: float, accelerator: Accelerator, tell: Tell) -> None:
        if accelerator.num_processes > 1:
            raise UsageError(
                f"this run has {accelerator.num_processes} processes and --share is for one; leave it out"
            )
        self.path = path
        self.accelerator = accelerator
        self.limit = limit * GIGABYTE
        self.tell = tell
        self._rows: dict[str, SharedRows] = {}

    def rows(self, rules: TextRules, prompt: str) -> SharedRows:
        """Where conversations are kept as tokens by these rules; stages with equal ones have the same."""
        key = keys.tokens_key(rules, prompt)
        return self._rows.setdefault(key, SharedRows(self.path / "tokens" / f"{key}.sqlite"))

    def train(self, work: StageWork, train: Callable[[], None]) -> str | None:
        """Train a stage, or take it over from a run that has; returns the key of what was taken over.

        A run's last stage is not kept: only the same run again could take it over.
        """
        try:
            if work.number + 1 == len(work.recipe.stages):
                train()
                return None
            return self._once(work, train)
        finally:
            for rows in self._rows.values():
                rows.flush()

    def _once(self, work: StageWork, train: Callable[[], None]) -> str | None:
        name, key = work.stage.name, stage_key(work)
        entry = self.path / "stages" / key
        with one_at_a_time(entry.with_suffix(".lock"), f"stage {name} (key {key[:12]})", self.tell):
            if entry.is_dir():
                take(entry, work)
                self.tell(f"stage {name}: taken from {self.path} (key {key[:12]})")
                return key
            train()
            try:
                keep(entry, work)
            except VlmkitError as error:
                # The run itself is whole.
                self.tell(f"stage {name} is not shared: {error}")
        return None

    def features(self, model: VLM, stage: Stage, data: StageData) -> StoredFeatures | None:
        """Stored features for a stage in which no encoder trains; None where they cannot be used.

        Args:
            model: With the stage applied.
            stage: The stage.
            data: Its samples.
        """
        if "encoder" in stage.train or "contrastive" in objective_weights(stage.objective):
            return None
        if stage.augment is not None:
            self.tell(f"stage {stage.name}: features are not shared: augment makes other pictures each epoch")
            return None
        encoders = [encoder for encoder in model.encoders if isinstance(encoder, VisionEncoder)]
        machine = keys.machine(model.device, self.accelerator.mixed_precision)
        files = []
        for encoder in encoders:
            key = keys.digest({"machine": machine, "encoder": keys.encoder_facts(encoder)})
            files.append(FeatureFile(self.path / "features" / f"{key}.sqlite", self.limit, self.tell))
        reason = self._too_large(encoders, files, stage, data)
        if reason is not None:
            self.tell(f"stage {stage.name}: features are not shared: {reason}")
            return None
        return StoredFeatures(encoders, files)

    def _too_large(
        self, encoders: list[VisionEncoder], files: list[FeatureFile], stage: Stage, data: StageData
    ) -> str | None:
        """Why the features of all images would have no room; judged by the first images that open."""
        opened = next(_image_sizes(data.samples), None)
        if opened is None:
            return "no sample has an image that opens"
        sizes = data.collate.fit(opened)
        times = len(data.samples) * (2 if 0 < stage.hflip < 1 else 1)
        needed = [times * sum(image_bytes(encoder, size) for size in sizes) for encoder in encoders]
        if max(needed) > self.limit:
            return f"{_gb(max(needed))} needed, --share-limit is {_gb(self.limit)}"
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free
        missing = sum(max(0, size - file.bytes_on_disk()) for size, file in zip(needed, files, strict=True))
        return f"{_gb(missing)} needed, {_gb(free)} free in {self.path}" if missing > free else None


def _image_sizes(samples: Sequence[Sample]) -> Iterator[list[tuple[int, int]]]:
    """Sizes of each sample's images, of samples with images that open."""
    for sample in readable(samples):
        try:
            if sample is not None and sample.images:
                yield [image.size for image in sample.open_images()]
        except VlmkitError:
            # What it means for the stage is said where the stage meets it.
            continue


def _gb(size: float) -> str:
    return f"{size / GIGABYTE:.3g} GB"


__all__ = ["Shared", "StageWork"]
