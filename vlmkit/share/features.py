"""What frozen encoders see, computed once an image.

Shapes: B rows, P numbers of a row's pixels, K most images of a row, T patches, V width, I views, E width of
the retrieval space.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vlmkit.data.batch import pixel_batches
from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import CHANNELS, PixelBatch
from vlmkit.encoders.scales import image_features
from vlmkit.errors import VlmkitError
from vlmkit.share.blobs import Blobs
from vlmkit.share.lock import Tell, one_at_a_time
from vlmkit_connectors import VisionFeatures


@dataclass
class FeatureFile:
    """Features of one encoder by the bytes of an image's pixels.

    A mirrored image, another layout or another level of it has other pixels, so it has features of its own.

    Args:
        path: One file for each encoder, device and precision; see `Shared.features`.
        limit: Most bytes on disk; after that features are computed and not kept.
        tell: Told when the limit is reached.
    """

    path: Path
    limit: float
    tell: Tell

    def __post_init__(self) -> None:
        self._blobs = Blobs(self.path)
        self._full = False

    def features(self, encoder: VisionEncoder, images: Sequence[PixelBatch]) -> list[VisionFeatures]:
        """The features of each image, stored or computed."""
        keys = [_key(image) for image in images]
        wanted = dict(zip(keys, images, strict=True))
        known = self._blobs.get_many(wanted)
        if known.keys() != wanted.keys():
            # Runs of one seed come by at the same images at the same time; the second one finds them stored.
            with one_at_a_time(self.path.with_suffix(".lock"), str(self.path), every=0.01):
                known |= self._blobs.get_many(wanted.keys() - known.keys())
                new = {k: encode_alone(encoder, wanted[k]) for k in wanted if k not in known}
                self._keep(new)
            known |= new
        device = encoder.device
        made = {key: _decoded(content, device, self.path) for key, content in known.items()}
        return [made[key] for key in keys]

    def bytes_on_disk(self) -> int:
        """Size of the file."""
        return self._blobs.bytes_on_disk()

    def _keep(self, new: dict[bytes, bytes]) -> None:
        if not self._full and self._blobs.bytes_on_disk() + sum(map(len, new.values())) > self.limit:
            self._full = True
            self.tell(f"{self.path} is full ({self.limit / 1e9:.2g} GB): further features are not kept")
        if not self._full:
            self._blobs.put_many(new)


class StoredFeatures:
    """Stands for `VLM.encode_images` where no encoder trains.

    Each image is encoded alone: its features are a function of its pixels and of nothing else, so it does not
    matter which run computed them, in which batch or order. They differ in the last bits from those of a
    batch. What does depend on it is the time, which is counted here for the step to leave out.

    Args:
        encoders: Frozen.
        files: One an encoder.

    Attributes:
        seconds: Spent here so far: looking up, waiting for another run, encoding.
    """

    def __init__(self, encoders: Sequence[VisionEncoder], files: Sequence[FeatureFile]) -> None:
        assert not any(p.requires_grad for encoder in encoders for p in encoder.parameters())
        self.encoders = encoders
        self.files = files
        self.seconds = 0.0

    def __call__(self, pixel_values: Tensor, image_sizes: Tensor) -> list[VisionFeatures]:
        """See `VLM.encode_images`.

        Args:
            pixel_values: (B, P).
            image_sizes: (B, K, 3).
        """
        if pixel_values.is_cuda:
            # What is queued there belongs to the step.
            torch.cuda.synchronize(pixel_values.device)
        began = time.perf_counter()
        batches = pixel_batches(pixel_values, image_sizes, [encoder.spec for encoder in self.encoders])
        found = [
            _together(file.features(encoder, split_images(batch)))
            for encoder, file, batch in zip(self.encoders, self.files, batches, strict=True)
        ]
        self.seconds += time.perf_counter() - began
        return found


def split_images(batch: PixelBatch) -> list[PixelBatch]:
    """Each image of a batch as a batch of its own; no copies of pixels."""
    sizes = CHANNELS * batch.sizes_I2.prod(dim=1)
    images, start = [], 0
    for image in range(int(batch.image_of_view_I[-1]) + 1):
        own = batch.image_of_view_I == image
        stop = start + int(sizes[own].sum())
        views = torch.zeros(int(own.sum()), dtype=torch.int64)
        pixels_N = batch.pixels_N[start:stop]
        images.append(PixelBatch(pixels_N, batch.sizes_I2[own], batch.grids_I2[own], views))
        start = stop
    return images


@torch.no_grad()
def encode_alone(encoder: VisionEncoder, image: PixelBatch) -> bytes:
    """Features of one image as `VLM.encode_images` makes them, as safetensors."""
    assert not encoder.training
    seen = image_features(encoder, image)
    tensors = {"patches_TV": seen.patches_TV, "grids_I2": seen.grids_I2}
    if seen.pooled_BE is not None:
        tensors["pooled_BE"] = seen.pooled_BE
    return save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})


def _key(image: PixelBatch) -> bytes:
    shape = torch.cat([image.sizes_I2, image.grids_I2], dim=1).numpy().tobytes()
    pixels = image.pixels_N.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(shape + pixels.tobytes()).digest()


def _decoded(content: bytes, device: torch.device, path: Path) -> VisionFeatures:
    try:
        stored = {name: tensor.to(device) for name, tensor in load(content).items()}
        patches_TV, grids_I2 = stored["patches_TV"], stored["grids_I2"].cpu()
    except (SafetensorError, KeyError) as error:
        raise VlmkitError(f"{path} is damaged ({error}); delete it, it is only a cache") from error
    owners = torch.zeros(len(grids_I2), dtype=torch.int64)
    return VisionFeatures(patches_TV, grids_I2, owners, stored.get("pooled_BE"))


def _together(images: Sequence[VisionFeatures]) -> VisionFeatures:
    """One `VisionFeatures` of several images."""
    pooled = [own.pooled_BE for own in images if own.pooled_BE is not None]
    return VisionFeatures(
        torch.cat([own.patches_TV for own in images]),
        torch.cat([own.grids_I2 for own in images]),
        torch.cat([own.image_of_view_I + i for i, own in enumerate(images)]),
        torch.cat(pooled) if pooled else None,
    )


def image_bytes(encoder: VisionEncoder, size: tuple[int, int, int]) -> int:
    """Bytes of the stored features of an image of that width, height and level, in float32."""
    patches = sum(view.rows * view.cols for view in encoder.spec.features(size[:2], size[2]))
    return 4 * (patches * encoder.spec.feature_width + encoder.embed_dim)
