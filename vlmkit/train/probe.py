"""Does the model look at the picture: every N steps the loss with true, shuffled and blank images."""

from __future__ import annotations

import time
from typing import Any

import torch

from vlmkit.objectives import objective_weights
from vlmkit.recipe import Stage
from vlmkit.train.devices import same_randomness
from vlmkit.train.distribute import of_every_process, reshard
from vlmkit.train.probe_samples import VERSIONS, ProbeRows, choose_rows
from vlmkit.train.stage_run import StageRun
from vlmkit.train.steps import StageData
from vlmkit.train.verdict import Finding, Verdict

# Looked for at most and at least, and found at least.
MOST_SAMPLES = 32
WANTED_SAMPLES = 16
FEWEST_SAMPLES = 8
# Of a stage's time: the three passes of a probe, without gradient, take about as long as one pass with it.
SHARE = 0.02


class Probe:
    """Compares losses on the same samples through a stage; draws nothing from the global random generator.

    Args:
        stage: Says how often. Without `next_token` there is no probe.
        data: Of the stage.
        steps: Of the stage.
        run: The processes, each of which takes its part of the samples; and who is told.
        state: `Probe.state` of a checkpoint.
    """

    def __init__(
        self,
        stage: Stage,
        data: StageData,
        steps: int,
        run: StageRun,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.stage = stage
        self.accelerator = run.accelerator
        self.reporter = run.reporter
        self.verdict = Verdict(stage, steps, **(state or {}))
        began = time.perf_counter()
        self.rows = self._rows(data, steps)
        # Told with the first probe.
        self.choosing = time.perf_counter() - began

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return self.verdict.state

    def after(self, step: int, wrapped: Any) -> dict[str, float]:
        """Probe if it is time: `probe/true`, `probe/shuffled`, `probe/blank` and `probe_seconds`, or nothing.

        Args:
            step: Steps that are done.
            wrapped: The stage's module as accelerate has it; every process calls this.
        """
        if self.rows is None or self.stage.probe_every is None or step % self.stage.probe_every:
            return {}
        began = time.perf_counter()
        finding = Finding(*zip(*self._losses(self.rows, wrapped), strict=True))
        words = self.verdict.hear(step, finding)
        if words:
            self.reporter.note(words)
        found = {f"probe/{name}": mean for name, mean in zip(VERSIONS, finding.means, strict=True)}
        seconds, self.choosing = self.choosing + time.perf_counter() - began, 0.0
        return {**found, "probe_seconds": seconds}

    def _rows(self, data: StageData, steps: int) -> ProbeRows | None:
        """The samples of the probe; None where there is no probe, or nothing to compare."""
        every = self.stage.probe_every
        if every is None or every > steps or "next_token" not in objective_weights(self.stage.objective):
            return None
        wanted = min(MOST_SAMPLES, max(WANTED_SAMPLES, int(SHARE * every * self.stage.batch_size)))
        rows = choose_rows(data, wanted)
        share = rows.share(self.accelerator.process_index, self.accelerator.num_processes)
        if len(share.samples) * self.accelerator.num_processes >= FEWEST_SAMPLES:
            return share
        self.reporter.note(
            f"stage {self.stage.name}: whether the model looks at the picture is not probed: "
            f"{FEWEST_SAMPLES} samples with images, and two images that differ, are needed"
        )
        return None

    @torch.no_grad()
    def _losses(self, rows: ProbeRows, wrapped: Any) -> list[tuple[float, ...]]:
        """Losses of each sample of all processes, in the order of `VERSIONS`."""
        wrapped.eval()
        # A stranger's connector may draw numbers in evaluation, too.
        with same_randomness(self.accelerator.device):
            columns = [self._of_version(version, rows, wrapped) for version in VERSIONS]
        wrapped.train()
        reshard(wrapped)
        everywhere = of_every_process(list(zip(*columns, strict=True)), self.accelerator)
        return [losses for part in everywhere for losses in part]

    def _of_version(self, version: str, rows: ProbeRows, wrapped: Any) -> list[float]:
        size = self.stage.micro_batch_size or -(-self.stage.batch_size // self.accelerator.num_processes)
        losses: list[float] = []
        for start in range(0, len(rows.samples), size):
            ready = rows.prepared(version, start, start + size)
            batch = rows.collate.batch(ready).to(self.accelerator.device)
            with self.accelerator.autocast():
                found = wrapped(batch, by_row=True)["next_token"]
            counts = [len(item.rows) for item in ready]
            sums, weights = (torch.split(numbers_B.cpu(), counts) for numbers_B in found)
            losses += [float(s.sum() / w.sum()) for s, w in zip(sums, weights, strict=True)]
        return losses
