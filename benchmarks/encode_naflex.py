"""NaFlex for `encode.py`: pictures of several budgets of patches, packed here and padded in transformers."""

from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import torch
from encode_models import BASE, shake, unit
from PIL import Image
from transformers import Siglip2ImageProcessorPil, Siglip2VisionConfig, Siglip2VisionModel

from vlmkit.encoders.batch import join_batches, pixel_batch
from vlmkit.encoders.siglip2_naflex import NaFlexEncoder

BUDGETS = [64, 128, 256, 1024]
SIZES = [(640, 480), (480, 640), (1600, 500), (500, 500), (300, 900)]


class NaFlex:
    """Both sides with the same weights and pixels in memory."""

    def __init__(self, device, images):
        config = {**BASE, "patch_size": 16, "num_patches": 256}
        self.device = device
        self.ours = shake(NaFlexEncoder(vision_config=config).eval()).to(device)
        self.theirs = Siglip2VisionModel(Siglip2VisionConfig(**config)).eval().to(device)
        self.theirs.load_state_dict(self.ours.vision.state_dict())
        random = np.random.default_rng(0)
        sizes, self.budgets = islice(cycle(SIZES), images), list(islice(cycle(BUDGETS), images))
        pictures = [Image.fromarray(random.integers(0, 256, (h, w, 3)).astype(np.uint8)) for w, h in sizes]
        pairs = list(zip(pictures, self.budgets))
        specs = {budget: replace(self.ours.spec, max_patches=budget) for budget in BUDGETS}
        self.batch = join_batches([pixel_batch(specs[budget], [picture]) for picture, budget in pairs])
        process = Siglip2ImageProcessorPil()
        self.inputs = [process(p, max_num_patches=budget, return_tensors="pt") for p, budget in pairs]

    def packed(self):
        """Ours."""
        return self.ours.embed_batch(self.batch)

    def padded(self):
        """Every image padded to the largest budget, and a mask, as the processor does with one budget."""
        longest = max(self.budgets)
        padded = {
            name: torch.cat([_longer(one[name], longest) for one in self.inputs])
            for name in ("pixel_values", "pixel_attention_mask")
        }
        shapes = torch.cat([one["spatial_shapes"] for one in self.inputs])
        return self._vectors({**padded, "spatial_shapes": shapes})

    def one_by_one(self):
        """Each image padded to its own budget only."""
        return np.concatenate([self._vectors(dict(one)) for one in self.inputs])

    def _vectors(self, inputs):
        moved = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        return unit(self.theirs(**moved).pooler_output)


def _longer(tensor, length):
    missing = length - tensor.shape[1]
    return torch.cat([tensor, tensor.new_zeros(1, missing, *tensor.shape[2:])], dim=1)
