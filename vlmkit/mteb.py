"""Any encoder of vlmkit in mteb's benchmarks (MTEB, MIEB, ViDoRe and tasks of one's own).

    mteb.evaluate(MtebEncoder(load_encoder("runs/quickstart")), mteb.get_tasks(tasks=[...]))

Written against the `EncoderProtocol` of mteb 2.

Shapes: N rows, E width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlmkit.errors import MissingExtraError, UsageError
from vlmkit_retrieval.encoders import embeds_text
from vlmkit_retrieval.images import upright_rgb
from vlmkit_retrieval.types import Embedder, Vectors

if TYPE_CHECKING:
    from mteb.models import ModelMeta


class MtebEncoder:
    """An `Embedder` as an encoder of mteb.

    Rows of texts and rows of images become unit vectors in one space. A row with both becomes the direction
    of the sum of its two vectors, as with mteb's own wrapper of CLIP. mteb's prompts are not used.

    Args:
        embedder: The encoder; `load_encoder` gives one.
        name: Under which mteb stores results, `organization/model`; None for `vlmkit/` and the encoder's
            own name.

    Attributes:
        mteb_model_meta: What mteb records. The revision is the encoder's fingerprint, so that stored results
            of other weights are never taken for those of this encoder.

    Raises:
        MissingExtraError: mteb is not installed.
        UsageError: The name has another form.
    """

    mteb_model_meta: ModelMeta

    def __init__(self, embedder: Embedder, name: str | None = None) -> None:
        name = f"vlmkit/{embedder.name}" if name is None else name
        if name.count("/") != 1 or not all(name.split("/")):
            raise UsageError(f"{name!r} is no name for mteb; give organization/model, e.g. me/quickstart")
        self._embedder = embedder
        self.mteb_model_meta = _meta(embedder, name)

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any, **options: Any
    ) -> NDArray[np.float32]:
        """Unit vectors of shape (N, E) of all rows of all batches, in order.

        Args:
            inputs: Batches: lists under `text`, `image` or both.
            task_metadata: The task's, named in errors.
            options: Others that mteb's protocol has (split, subset, kind of prompt, batch size); no one of
                them changes a vector.

        Raises:
            UsageError: A batch has neither texts nor images (audio, video), or a row has no image.
        """
        rows = [self._batch(batch, task_metadata.name) for batch in inputs]
        return np.concatenate(rows) if rows else np.zeros((0, self._embedder.embed_dim), np.float32)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of every row of the one with every row of the other."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of the rows of the same number."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _batch(self, batch: Mapping[str, Any], task: str) -> Vectors:
        parts = []
        if "text" in batch:
            parts.append(np.asarray(self._embedder.embed_text(list(batch["text"]))))
        if "image" in batch:
            parts.append(self._images(batch["image"], task))
        if not parts:
            raise UsageError(
                f"mteb's task {task} has neither texts nor images (its rows have: {', '.join(batch)}); this "
                "encoder embeds nothing else"
            )
        return parts[0] if len(parts) == 1 else _unit(np.sum(parts, axis=0))

    def _images(self, images: Sequence[Any], task: str) -> Vectors:
        if any(image is None for image in images):
            raise UsageError(
                f"mteb's task {task} has rows without an image among rows with one; leave it out"
            )
        return np.asarray(self._embedder.embed_images([upright_rgb(image) for image in images]))


def _unit(rows_NE: NDArray[np.float32]) -> Vectors:
    """Rows at length 1; two opposite vectors leave a row of zeros, which is near nothing."""
    lengths_N1 = np.linalg.norm(rows_NE, axis=1, keepdims=True)
    unit_NE: Vectors = rows_NE / np.maximum(lengths_N1, np.finfo(np.float32).tiny)
    return unit_NE


def _meta(embedder: Embedder, name: str) -> ModelMeta:
    try:
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mteb":
            raise
        raise MissingExtraError("mteb", "mteb") from error
    return ModelMeta.create_empty(
        {
            "name": name,
            "revision": embedder.fingerprint,
            "embed_dim": embedder.embed_dim,
            "similarity_fn_name": ScoringFunction.COSINE,
            "modalities": ["text", "image"] if embeds_text(embedder) else ["image"],
            "framework": ["PyTorch"],
            "use_instructions": False,
        }
    )
