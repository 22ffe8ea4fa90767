"""A loss or gradient that is not finite: the samples are named, and the run stops or leaves the step out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

from torch import Tensor, nn

from vlmkit.data.batch import Batch
from vlmkit.errors import VlmkitError
from vlmkit.recipe import Stage
from vlmkit.train.blame import Blame, find_blame
from vlmkit.train.checkpoints import stored_buffers
from vlmkit.train.distribute import local_share, of_every_process
from vlmkit.train.metrics import MetricsFile, read_metrics
from vlmkit.train.stage_run import StageRun

# Beside metrics.jsonl.
NON_FINITE = "non_finite.jsonl"
# As many steps in a row are left out; one more ends the run.
MOST_IN_A_ROW = 10
# Tensors that an error names.
NAMED = 3


class Guard:
    """Looks at the loss and the gradient's norm of each step before the optimiser does.

    Both are of all processes, so that all decide alike.

    Args:
        stage: `on_non_finite` says what happens.
        run: Where samples are listed, and who is told.
        start: Steps that are done.
        in_a_row: Steps that were left out just before them, from a checkpoint.
    """

    def __init__(self, stage: Stage, run: StageRun, start: int, in_a_row: int = 0) -> None:
        self.stage = stage
        self.run = run
        self.step = start
        self.in_a_row = in_a_row
        self.file = MetricsFile(run.run_dir / NON_FINITE, run.accelerator.is_main_process)
        self.file.rewind(stage.name, start)
        self._kept: list[tuple[Tensor, Tensor]] = []

    def before(self, wrapped: nn.Module) -> None:
        """Call before each step: what a forward pass moves (statistics of batches) is kept.

        For `stop`, too: a broken batch's statistics would be taken for broken weights.
        """
        self._kept = [(buffer, buffer.clone()) for buffer in stored_buffers(wrapped).values()]

    def passes(self, loss: float, norm: float, wrapped: Any, batches: Sequence[Batch]) -> bool:
        """Whether the optimiser may step; every process calls it once a step.

        Args:
            loss: Of all processes.
            norm: Of the gradient, of all processes.
            wrapped: The stage's module as accelerate has it.
            batches: The micro-batches of this process.

        Raises:
            VlmkitError: One of both is not finite, and `on_non_finite` is `stop` or it was so too often.
        """
        self.step += 1
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        self._undo()
        blame = find_blame(wrapped, batches, self.run.accelerator)
        self._list(blame)
        found = f"loss {loss} and gradient norm {norm} in step {self.step} of stage {self.stage.name}"
        if self.stage.on_non_finite == "stop" or self.in_a_row > MOST_IN_A_ROW:
            raise VlmkitError(self._error(f"{found}, with {blame.words}", wrapped))
        self.run.reporter.note(f"{found}: the step is left out; {blame.words}")
        return False

    def leave_out(self) -> None:
        """In place of `passes`, for a step of which no process has a sample."""
        self.step += 1
        self._undo()

    def _undo(self) -> None:
        for buffer, before in self._kept:
            buffer.copy_(before)

    def tell(self) -> None:
        """Say at a stage's end how many steps were left out."""
        if not self.file.active or not self.file.path.exists():
            return
        rows = [row for row in read_metrics(self.file.path) if row["stage"] == self.stage.name]
        samples = Counter(row["id"] for row in rows)
        if rows:
            self.run.reporter.note(
                f"stage {self.stage.name}: {len({row['step'] for row in rows})} steps were left out, their "
                f"loss or gradient was not finite; most often with sample {samples.most_common(1)[0][0]}; "
                f"see {self.file.path}"
            )

    def _list(self, blame: Blame) -> None:
        for name in blame.ids:
            row = {"stage": self.stage.name, "step": self.step, "id": name, "kind": blame.kind}
            self.file.write(row)

    def _error(self, found: str, wrapped: nn.Module) -> str:
        """The error in words; broken weights are said first: no sample is to blame then."""
        broken = of_every_process(non_finite_tensors(wrapped), self.run.accelerator)
        names = list(dict.fromkeys(chain.from_iterable(broken)))
        often = f"; {self.in_a_row} in a row are too many" if self.in_a_row > MOST_IN_A_ROW else ""
        if names:
            return (
                f"{found}{often}; weights are not finite either ({', '.join(names)}): go back to an earlier "
                "checkpoint, or to other weights"
            )
        advice = "look at these samples, or lower the learning rate"
        if self.stage.on_non_finite == "stop":
            again = f"stages.{self.stage.name}.on_non_finite=skip --resume"
            advice += f"; {again} goes on and leaves such steps out"
        return f"{found}{often}; {advice}"


def non_finite_tensors(module: nn.Module) -> list[str]:
    """The first names of parameters and buffers that are not all finite; of shares, this process's."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    own = ((name, local_share(tensor)) for name, tensor in tensors)
    broken = (name for name, tensor in own if tensor.is_floating_point() and not tensor.isfinite().all())
    return list(islice(broken, NAMED))
