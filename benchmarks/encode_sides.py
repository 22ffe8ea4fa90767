"""What `encode.py` compares on folders of JPEG files: each side takes paths and gives unit-length vectors."""

import importlib.util
from functools import partial

import numpy as np
import torch
from encode_models import unit
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer

from vlmkit.encoders.stream import embed_files

BATCH, WORKERS, DRAFT = 4, 2, 3
# Sides that a module of that name makes possible.
OPTIONAL = ("torchvision", "sentence_transformers", "timm")


def folder_sides(models, paths, folder):
    """Name to a function that builds the side: one without arguments that gives the vectors; ours first."""
    torchvision, sentence_transformers, timm = (bool(importlib.util.find_spec(name)) for name in OPTIONAL)
    sides = {
        "vlmkit embed_files": lambda: partial(ours, models, paths, 0),
        f"vlmkit embed_files, draft={DRAFT}": lambda: partial(ours, models, paths, DRAFT),
    }
    for kind in ("PIL", "torchvision") if torchvision else ("PIL",):
        plain = partial(models.processor, kind == "PIL")
        sides[f"transformers, {kind} processor"] = lambda p=plain: partial(theirs, models, paths, p())
        sides[f"transformers, {kind} processor, DataLoader"] = lambda p=plain: partial(
            loaded, models.vectors, data_loader(Files(paths, Processed(p())))
        )
    if sentence_transformers and models.published.family == "clip":
        kind = "torchvision" if torchvision else "PIL"
        sides[f"sentence-transformers, {kind} processor"] = lambda: partial(
            sentence, sentence_model(models, folder), paths
        )
    if timm and torchvision:
        sides["timm, torchvision transforms, DataLoader"] = lambda: timm_side(models, paths)
    return sides


def ours(models, paths, draft):
    """Threads read ahead; the encoder embeds."""
    read = embed_files(models.ours, paths, BATCH, WORKERS, draft)
    return np.concatenate([batch.vectors_BE for batch in read])


def theirs(models, paths, processor):
    """As in the model cards: open, process, encode."""
    found = []
    for start in range(0, len(paths), BATCH):
        images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
        found.append(models.vectors(processor(images, return_tensors="pt")["pixel_values"]))
    return np.concatenate(found)


class Files(torch.utils.data.Dataset):
    """Paths and what makes pixels of an image."""

    def __init__(self, paths, pixels):
        self.paths, self.pixels = paths, pixels

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.pixels(Image.open(self.paths[i]).convert("RGB"))


class Processed:
    """An image processor of transformers for one image."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, image):
        """(3, H, W)."""
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


def data_loader(files):
    """The strongest way with transformers: two processes of one thread that stay alive and read ahead."""
    return DataLoader(files, BATCH, num_workers=WORKERS, persistent_workers=True, prefetch_factor=2)


def loaded(vectors, batches):
    """Pixels from worker processes, encoded here."""
    return np.concatenate([vectors(pixels_BCHW) for pixels_BCHW in batches])


def timm_side(models, paths):
    """`create_transform` with the same numbers, in worker processes."""
    import timm.data

    model, spec = models.timm(), models.ours.spec
    transform = timm.data.create_transform(
        (3, spec.image_size, spec.image_size), mean=spec.mean, std=spec.std, interpolation=spec.resample,
        crop_pct=1.0, crop_mode="center",
    )  # fmt: skip
    return partial(
        loaded, lambda pixels: unit(model(pixels.to(models.device))), data_loader(Files(paths, transform))
    )


def sentence_model(models, folder):
    """A CLIP checkpoint with our vision weights and a small text half, as sentence-transformers reads it."""
    from sentence_transformers import SentenceTransformer

    folder = folder / "sentence"
    vision = models.published.vision_config
    tokens = {name: i for i, name in enumerate(["<|startoftext|>", "<|endoftext|>", "a", "a</w>"])}
    words = CLIPTokenizer(vocab=tokens, merges=[], model_max_length=20)
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))
    model.load_state_dict(models.theirs.state_dict(), strict=False)
    model.save_pretrained(folder)
    CLIPProcessor(models.processor(not importlib.util.find_spec("torchvision")), words).save_pretrained(
        folder
    )
    assert len(AutoTokenizer.from_pretrained(folder)) == len(words)
    return SentenceTransformer(str(folder), device=models.device)


def sentence(model, paths):
    """`encode` with pictures."""
    images = [Image.open(path) for path in paths]
    return model.encode(images, batch_size=BATCH, normalize_embeddings=True)


def photographs(folder, size, count):
    """JPEG files with the spectrum of photographs (amplitude 1/f), quality 90; four of a size, repeated."""
    paths = []
    for i in range(count):
        path = folder / f"{size[0]}x{size[1]}-{i:03d}.jpg"
        if i < 4:
            _picture(size, i).save(path, quality=90)
        elif not path.exists():
            path.write_bytes(paths[i % 4].read_bytes())
        paths.append(path)
    return paths


def _picture(size, seed):
    random = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3), np.float32)
    edge = 4
    while edge <= max(size):
        small = random.normal(128, 60, (max(edge * size[1] // size[0], 2), edge, 3)).clip(0, 255)
        layer = Image.fromarray(small.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        total += (np.asarray(layer, np.float32) - 128) * (4 / edge) ** 0.5
        edge *= 2
    return Image.fromarray((total * 0.6 + 128).clip(0, 255).astype(np.uint8))
