"""Whether a model looks at the picture, by the probes of a stage: numbers first, then words.

The rule was fixed on runs of other seeds than those of `benchmarks/results/probe.md`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlmkit.recipe import Stage
from vlmkit.train.schedule import warmup_steps

# Standard errors that other images cost a model that is said to look, and one that is not doubted. Chance
# alone gives the first once in 5,000 probes of 32 samples, and the second once in 100. A model that looks can
# stay between them: of yes and no, half of the other images have the same answer and cost nothing.
SURE = 4.0
DOUBT = 2.5
# Share of the loss that they must cost: sums of equal numbers in another order cost less.
LEAST = 1e-4
# A model that has only begun need not look yet: earlier probes cannot count against it.
EARLIEST = 100
IN_A_ROW = 2
View = Literal["", "looks", "blind"]


@dataclass(frozen=True)
class Finding:
    """One probe.

    Attributes:
        true: Loss of each sample with its own images.
        shuffled: With those of other samples.
        blank: With grey ones.
    """

    true: Sequence[float]
    shuffled: Sequence[float]
    blank: Sequence[float]

    @property
    def means(self) -> tuple[float, float, float]:
        """Of the three, over samples."""
        return statistics.fmean(self.true), statistics.fmean(self.shuffled), statistics.fmean(self.blank)

    @property
    def finite(self) -> bool:
        """Whether all losses are."""
        return all(map(math.isfinite, (*self.true, *self.shuffled, *self.blank)))

    @property
    def certainty(self) -> float:
        """The paired t statistic: what others' images cost, in standard errors of its mean over samples."""
        costs = [other - own for own, other in zip(self.true, self.shuffled, strict=True)]
        mean = statistics.fmean(costs)
        if abs(mean) <= LEAST * statistics.fmean(self.true):
            return 0.0
        error = statistics.stdev(costs) / math.sqrt(len(costs))
        return mean / error if error else math.copysign(math.inf, mean)

    @property
    def moves(self) -> bool:
        """Whether any image changes the loss of any sample."""
        others = [*zip(self.true, self.shuffled, strict=True), *zip(self.true, self.blank, strict=True)]
        return any(abs(other - own) > LEAST * own for own, other in others)


class Verdict:
    """Says when the model looks at the picture, when it does not, and when that has changed.

    It looks if others' images cost `SURE` standard errors or more in one probe. It does not if they cost less
    than `DOUBT` in `IN_A_ROW` probes in a row after the warmup; that is said again after twice as many, and
    so on. In between nothing is said.

    Args:
        stage: For its name, and what trains.
        steps: Of the stage.
        failed: Probes in a row that have counted against it.
        told: What was said last.
    """

    def __init__(self, stage: Stage, steps: int, failed: int = 0, told: View = "") -> None:
        self.stage = stage
        self.earliest = max(EARLIEST, warmup_steps(stage, steps))
        self.failed = failed
        self.told = told

    @property
    def state(self) -> dict[str, int | str]:
        """What a checkpoint keeps."""
        return {"failed": self.failed, "told": self.told}

    def hear(self, step: int, finding: Finding) -> str:
        """What there is to say after a probe, empty for nothing."""
        if not finding.finite:
            return ""
        if finding.certainty >= DOUBT:
            self.failed = 0
            if finding.certainty < SURE or self.told == "looks":
                return ""
            self.told = "looks"
            return f"{self._at(step)} the model looks at the picture: {_numbers(finding)}"
        if step < self.earliest:
            return ""
        self.failed += 1
        # 2, 4, 8, ...
        if self.failed < IN_A_ROW or self.failed & (self.failed - 1):
            return ""
        words = "no longer looks" if self.told == "looks" else "does not look"
        self.told = "blind"
        return (
            f"{self._at(step)} the model {words} at the picture, by {self.failed} probes in a row: "
            f"{_numbers(finding)}. {self._advice(finding)}"
        )

    def _at(self, step: int) -> str:
        return f"stage {self.stage.name}, step {step}:"

    def _advice(self, finding: Finding) -> str:
        """What to look at first, by what the losses tell."""
        if not finding.moves:
            found = (
                "The loss does not depend on the image at all. Look whether the image's tokens reach the "
                "language model (image token id, splice), and whether the connector or the encoder gives the "
                "same for every image"
            )
        elif finding.certainty <= -SURE:
            found = "Others' images help more than its own: look whether rows and images are paired rightly"
        else:
            found = (
                "Images change the loss, and a sample's own is worth no more than another's. Look whether "
                "rows and images are paired rightly, and what the connector makes of the features"
            )
        part = self.stage.train.get("connector")
        rate = "is frozen in this stage" if part is None else f"trains with the learning rate {part.lr:g}"
        return f"{found}; the connector {rate}. If few answers need the picture, this is as it should be."


def _numbers(finding: Finding) -> str:
    true, shuffled, blank = finding.means
    return (
        f"loss {true:.4g} on {len(finding.true)} samples with their own images, {shuffled:.4g} with those of "
        f"other samples ({finding.certainty:+.1f} standard errors), {blank:.4g} with grey ones"
    )
