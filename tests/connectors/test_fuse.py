"""Several encoders: channels joined, tokens in turn, one group after another."""

import pytest
import torch
from torch.nn import functional as F

from vlmkit_connectors import Groups, Interleaved, MLPConnector, VisionFeatures, concat_encoders, fuse
from vlmkit_connectors.fuse import resample, resize

GRIDS = [(2, 3), (4, 4), (1, 2)]
OTHER = [(4, 6), (2, 2), (3, 5)]
OWNERS = [0, 0, 1]


def features(grids, width, seed=0, owners=OWNERS):
    patches = torch.randn(sum(r * c for r, c in grids), width, generator=torch.Generator().manual_seed(seed))
    return VisionFeatures(patches, torch.tensor(grids), torch.tensor(owners), torch.randn(2, 5))


def test_equal_grids_pass_through():
    one = features(GRIDS, 4)
    assert resample(one, features(GRIDS, 6)) is one


@pytest.mark.parametrize(("grids", "like"), [(GRIDS, OTHER), (OTHER, GRIDS)])
def test_each_view_is_resized_on_its_own(grids, like):
    one = features(grids, 4)
    resized = resample(one, features(like, 6))
    assert resized.grids == like and resized.pooled_BE is one.pooled_BE
    for before, after, grid, wanted in zip(one.views(), resized.views(), grids, like):
        picture = before.T.view(1, 4, *grid)
        expected = F.interpolate(picture, wanted, mode="bilinear", antialias=True)[0].flatten(1).T
        assert torch.equal(after, expected)


def test_views_of_the_same_two_grids_go_together(monkeypatch):
    """Each as alone, bit for bit, and torch is called once a pair of grids, however many the views are."""
    grids, like = [*GRIDS, (2, 3), (4, 4), (2, 3)], [*OTHER, (4, 6), (3, 5), (4, 6)]
    one = features(grids, 4, owners=range(6))
    calls = []
    plain = fuse.interpolate
    monkeypatch.setattr(fuse, "interpolate", lambda *args, **more: calls.append(0) or plain(*args, **more))
    together = resample(one, features(like, 6, owners=range(6)))
    assert len(calls) == 4
    for view_TV, found, grid, wanted in zip(one.views(), together.views(), grids, like):
        assert torch.equal(found, resize(view_TV.view(1, *grid, 4), wanted).flatten(0, 2))


def test_resizing_by_hand():
    """Halving averages (with the tent's tails), and a constant stays one; rows are not columns."""
    ramp = VisionFeatures(torch.arange(8.0).view(8, 1), torch.tensor([[2, 4]]), torch.tensor([0]))
    like = VisionFeatures(torch.zeros(2, 1), torch.tensor([[2, 1]]), torch.tensor([0]))
    assert resample(ramp, like).patches_TV.flatten().tolist() == pytest.approx([1.5, 5.5])


def test_a_grid_of_one_column_keeps_its_rows():
    """Rows of 0, 1, 2, 3 to two places: tents of 3 3 1 and 1 3 3 sevenths, however they are stored."""
    rows = torch.arange(4.0).repeat_interleave(3).view(1, 4, 3, 1).expand(1, 4, 3, 5)
    stored = [rows, rows.contiguous(), rows.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)]
    stored += [rows[..., :1], rows[..., :1].contiguous(), rows[0].contiguous()[None]]
    for patches in stored:
        found = resize(patches, (2, 1))
        assert found.shape == (1, 2, 1, patches.shape[3])
        assert found[0, :, 0].unique(dim=1).flatten().tolist() == pytest.approx([5 / 7, 16 / 7])


def test_channels_come_together_on_the_first_one_s_grid():
    one, other = features(GRIDS, 4), features(OTHER, 3, seed=1)
    fused = concat_encoders([one, other])
    assert fused.grids == GRIDS and fused.patches_TV.shape[1] == 7 and fused.pooled_BE is one.pooled_BE
    assert torch.equal(fused.patches_TV[:, :4], one.patches_TV)
    assert torch.equal(fused.patches_TV[:, 4:], resample(other, one).patches_TV)
    assert concat_encoders([one]) is one


def test_other_views_are_refused():
    with pytest.raises(ValueError, match=r"need the same views, found 3 views .* and 3 views .*groups"):
        concat_encoders([features(GRIDS, 4), features(OTHER, 4, owners=[0, 1, 1])])
    with pytest.raises(ValueError, match="need the same views"):
        concat_encoders([features(GRIDS, 4), features(GRIDS, 4, owners=[0, 1, 1])])


def test_tokens_alternate():
    members = [MLPConnector([4], 8), MLPConnector([3], 8)]
    connector = Interleaved(members)
    one, other = features(GRIDS, 4), features(OTHER, 3, seed=1)
    given = connector([one, other])
    assert given.counts == tuple(map(connector.num_tokens, GRIDS)) == (12, 32, 4)
    assert connector.token_grid((2, 3)) is None
    assert torch.equal(given.tokens_ND[0::2], members[0]([one]).tokens_ND)
    assert torch.equal(given.tokens_ND[1::2], members[1]([resample(other, one)]).tokens_ND)


def test_groups_hold_a_connector_for_each_encoder():
    members = [MLPConnector([4], 8), MLPConnector([3], 8, pool=2)]
    assert Groups(members).each() == members
