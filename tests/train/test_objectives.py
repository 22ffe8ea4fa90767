"""Losses against numbers worked out by hand."""

import math

import pytest
import torch

from vlmkit.errors import UsageError
from vlmkit.objectives import ContrastiveHead, caption_targets, objective_weights, token_loss
from vlmkit.recipe import load_recipe


class TestTokenLoss:
    def test_it_is_the_weighted_sum_over_the_next_tokens(self):
        """Scores say 3/4 for word 1 and 1/4 for word 0 everywhere; position i is judged by label i + 1."""
        logits = torch.log(torch.tensor([0.25, 0.75])).expand(1, 4, 2)
        labels = torch.tensor([[1, 1, 0, -100]])
        weights = torch.tensor([[9.0, 1.0, 0.5, 7.0]])
        total, weight = token_loss(logits, labels, weights)
        assert float(total) == pytest.approx(math.log(4 / 3) + 0.5 * math.log(4))
        assert float(weight) == 1.5

    def test_a_token_predicts_the_one_after_it(self):
        logits = torch.zeros(1, 3, 4)
        logits[0, 0, 2] = 30.0
        total, weight = token_loss(logits, torch.tensor([[-100, 2, -100]]), torch.ones(1, 3))
        assert (float(total), float(weight)) == (0.0, 1.0)

    def test_nothing_supervised_is_zero_over_zero_with_a_gradient(self):
        logits = torch.zeros(1, 3, 4, requires_grad=True)
        total, weight = token_loss(logits, torch.full((1, 3), -100), torch.ones(1, 3))
        total.backward()
        assert (float(total.detach()), float(weight)) == (0.0, 0.0)

    def test_sixteen_bit_scores_are_summed_in_float32(self):
        logits = torch.zeros(1, 4097, 2, dtype=torch.bfloat16)
        total, weight = token_loss(logits, torch.zeros(1, 4097, dtype=torch.long), torch.ones(1, 4097))
        assert float(total) == pytest.approx(4096 * math.log(2), rel=1e-6)
        assert float(weight) == 4096


class TestContrastive:
    def test_targets_name_each_caption_once_and_its_images(self):
        distinct, positive = caption_targets((("a red cat", "a cat"), ("a cat",), ()))
        assert distinct == ["a cat", "a red cat"]
        assert positive.tolist() == [[True, True], [True, False], [False, False]]

    def test_loss_by_hand_with_shared_captions(self):
        """Two images, two captions, the first of both images; vectors at right angles, scale log 3 each way.

        Image 0 lies on caption 0, image 1 on caption 1: scores are [[s, 0], [0, s]] with s = ln 3, shares 3/4
        and 1/4. Image 0 has caption 0 alone, image 1 has both; caption 0 has both images, caption 1 one.
        """
        head = ContrastiveHead(scale=math.log(3))
        images = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
        texts = torch.tensor([[1.0, 0.0], [0.0, 0.1]])
        positive = torch.tensor([[True, False], [True, True]])
        near, far = math.log(4 / 3), math.log(4)
        to_text = (near + (near + far) / 2) / 2
        to_image = ((near + far) / 2 + near) / 2
        loss, count = head(images, texts, positive)
        assert float(loss.detach()) == pytest.approx(2 * (to_text + to_image) / 2, abs=1e-6)
        assert float(count) == 2

    def test_images_of_one_caption_are_no_negatives_of_each_other(self):
        head = ContrastiveHead(scale=100.0)
        same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        loss, _ = head(same, same[:1], torch.tensor([[True], [True]]))
        assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-6)

    def test_the_scale_learns_and_has_a_ceiling(self):
        head = ContrastiveHead(scale=2.0, max_scale=30.0)
        images, texts = torch.eye(2), torch.eye(2)
        loss, _ = head(images, texts, torch.eye(2, dtype=torch.bool))
        loss.backward()
        assert head.log_scale.grad is not None and head.log_scale.grad < 0
        with torch.no_grad():
            head.log_scale.fill_(math.log(1000.0))
            capped, _ = head(images, texts.flip(0), torch.eye(2, dtype=torch.bool))
        assert float(capped) == pytest.approx(60.0, abs=1e-3)

    def test_a_scale_that_begins_at_its_ceiling_is_kept(self):
        head = ContrastiveHead(20.0, 20.0)
        assert [p for p in head.parameters() if p.requires_grad] == []
        loss, _ = head(torch.eye(2), torch.eye(2).flip(0), torch.eye(2, dtype=torch.bool))
        assert float(loss) == pytest.approx(2 * (20 + math.log1p(math.exp(-20))), abs=1e-4)


def test_an_objective_is_a_name_or_weights_by_name():
    assert objective_weights("contrastive") == {"contrastive": 1.0}
    assert objective_weights({"next_token": 1, "contrastive": 0.2}) == {"next_token": 1, "contrastive": 0.2}


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ("[30, 20]", r"logit_scale: begins above the most that it may be; found \[30.0, 20.0\]"),
        ("[0, 20]", "logit_scale.0: .* greater than 0"),
    ],
)
def test_an_impossible_scale_is_refused(stated, says):
    with pytest.raises(UsageError, match=says):
        load_recipe("quickstart", [f"stages.contrastive.logit_scale={stated}"])
