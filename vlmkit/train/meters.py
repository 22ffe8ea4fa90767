"""What a step tells beside its losses: per source and per part, how fast, how much memory.

Shapes: B rows, L tokens, S supervised tokens, I samples, K sources of a mixture, P processes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vlmkit.data.batch import Batch
from vlmkit.data.formats.mixture import Mixture
from vlmkit.objectives import IGNORE
from vlmkit.train.devices import sum_dtype
from vlmkit.train.distribute import computes_in, whole
from vlmkit.train.flops import StageFlops, has_experts, states_attention
from vlmkit.train.module import StageModule
from vlmkit.train.peaks import peak_flops
from vlmkit.train.steps import StageData
from vlmkit.train.zero import ZeroOptimizer


class StepMeter:
    """Measures the steps of a stage, of all processes together; every process has one and asks it.

    Args:
        module: With the stage applied, before it is cut into shares.
        data: Its samples name their sources.
        accelerator: The processes.
    """

    def __init__(self, module: StageModule, data: StageData, accelerator: Accelerator) -> None:
        self.module = module
        self.accelerator = accelerator
        shares = data.samples.shares if isinstance(data.samples, Mixture) else ()
        self.sources = [share.name for share in shares] if "next_token" in module.weights else []
        self.peak = peak_flops(accelerator.device, computes_in(accelerator))
        config = module.vlm.config.text_config
        known = self.peak is not None and states_attention(config) and not has_experts(config)
        self.flops = StageFlops(module) if known else None
        self._clear()

    def each(self, steps: Iterator[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch]]]:
        """The same steps; each one's clock starts when its data are there."""
        while True:
            asked = time.perf_counter()
            item = next(steps, None)
            if item is None:
                return
            self._clear()
            self.waited = self.began - asked
            yield item

    def _clear(self) -> None:
        self.began, self.waited, self.stored = time.perf_counter(), 0.0, self.module.stored_seconds
        self.tokens = self.images = self.places = 0
        self.operations = 0.0
        self.loss_K = torch.zeros(len(self.sources), device=self.accelerator.device)
        self.weight_K = torch.zeros(len(self.sources), dtype=torch.float64)
        self.norms: dict[str, float] = {}

    def forward(self, batch: Batch) -> None:
        """A micro-batch has gone through the model; one that stands in for no sample is no work.

        Args:
            batch: As it was loaded, on the CPU.
        """
        if not batch.sample_ids:
            return
        if batch.branches_BL is not None:
            self.tokens += int((batch.branches_BL >= 0).sum())
            self.places += batch.branches_BL.numel()
        if batch.image_sizes is not None:
            self.images += int((batch.image_sizes[..., 0] > 0).sum())
        if self.flops is not None:
            self.operations += self.flops(batch)
        if self.sources:
            self._by_source(batch)

    def _by_source(self, batch: Batch) -> None:
        """Add the losses that the head has kept to those of their samples' sources."""
        assert batch.labels_BL is not None and batch.weights_BL is not None
        chosen_BL = batch.labels_BL[:, 1:] != IGNORE
        source_I = torch.tensor([self.sources.index(name) for name in batch.sources])
        source_S = source_I[batch.owners_BL[:, 1:][chosen_BL]]
        self.weight_K.index_add_(0, source_S, batch.weights_BL[:, 1:][chosen_BL].double())
        losses_S = self.module.head.losses_S
        self.loss_K.index_add_(0, source_S.to(losses_S.device), losses_S)

    def gradients(self, optimizer: Any) -> None:
        """The step's gradients are there, and not clipped yet."""
        self.norms = part_norms(optimizer)

    def values(self) -> dict[str, Any]:
        """What `metrics.jsonl` gets of the step that is done; all processes must ask for it."""
        own = [self.tokens, self.images, self.places, self.operations, peak_bytes(self.accelerator.device)]
        sums_K = torch.cat([self.loss_K.cpu().double(), self.weight_K])
        told = torch.cat([torch.tensor(own, dtype=torch.float64), sums_K])
        told = told.to(self.accelerator.device, sum_dtype(self.accelerator.device))
        told_P = self.accelerator.gather(told[None])
        tokens, images, places, operations, _, *sources = told_P.sum(0).tolist()
        values: dict[str, Any] = {"tokens": int(tokens), "images": int(images)}
        if places:
            values["padding"] = 1 - tokens / places
        if self.sources:
            weights = zip(self.sources, sources, sources[len(self.sources) :])
            values["source_loss"] = {name: loss / weight for name, loss, weight in weights if weight}
        values["grad_norms"] = self.norms
        memory = int(told_P[:, 4].max())
        return values | self._rates(tokens, images, operations) | {"peak_bytes": memory or None}

    def _rates(self, tokens: float, images: float, operations: float) -> dict[str, Any]:
        """Times of this process; where runs share features, `seconds` are without them."""
        took = time.perf_counter() - self.began
        values: dict[str, Any] = {"data_seconds": self.waited}
        if self.stored is not None and self.module.stored_seconds is not None:
            values["features_seconds"] = self.module.stored_seconds - self.stored
        values["seconds"] = took - values.get("features_seconds", 0.0)
        all_seconds = self.waited + took
        values |= {"tokens_per_second": tokens / all_seconds, "images_per_second": images / all_seconds}
        if self.flops is None or self.peak is None:
            return values | {"mfu": None}
        return values | {"mfu": operations / (self.peak * all_seconds * self.accelerator.num_processes)}


def part_norms(optimizer: Any) -> dict[str, float]:
    """Norm of the gradient of each part that trains, by the names of the optimiser's groups.

    Args:
        optimizer: With groups of `StageModule.param_groups`; their gradients may be shares, in which case all
            processes must ask.
    """
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.part_norms()
    gradients: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        own = (p.grad for p in group["params"] if p.grad is not None)
        gradients.setdefault(group["name"], []).extend(own)
    total = torch.nn.utils.get_total_norm
    return {part: float(whole(total(own))) for part, own in gradients.items()}


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: of tensors on a CUDA device, else of the process; 0 where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Before `ru_maxrss`, which Linux carries over from the process that started this one.
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
