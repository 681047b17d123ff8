"""SwAV's head: official names, unit sphere, freezing."""

import torch

from vissl_like.models.heads.swav import SwAVHead
from vissl_like.records import Progress


def test_official_key_names():
    keys = set(SwAVHead(2048).state_dict())
    assert {"projection_head.0.weight", "projection_head.1.running_mean", "projection_head.3.bias"} <= keys
    assert "prototypes.weight" in keys and "prototypes.bias" not in keys


def test_logits_are_cosines_with_normalised_prototypes():
    head = SwAVHead(6, hidden_dim=0, output_dim=4, num_prototypes=3)
    head.before_forward(Progress(0, 10, 5))
    output = head(torch.randn(5, 6))
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(head.prototypes.weight.norm(dim=1), torch.ones(3))
    expected = torch.nn.functional.cosine_similarity(output.embedding[:, None], head.prototypes.weight[None], dim=2)
    torch.testing.assert_close(output.logits[0], expected)


def test_prototypes_thaw_exactly_after_the_first_epoch():
    head = SwAVHead(6, hidden_dim=0, output_dim=4, num_prototypes=3, freeze_prototypes="1 epochs")
    for step, frozen in [(0, True), (4, True), (5, False)]:
        head(torch.randn(5, 6)).logits[0].sum().backward()
        head.before_update(Progress(step, 10, 5))
        assert (head.prototypes.weight.grad is None) == frozen


def test_without_batch_norm_keys_keep_their_places():
    keys = set(SwAVHead(6, hidden_dim=5, batch_norm=False).state_dict())
    assert "projection_head.3.weight" in keys and "projection_head.1.weight" not in keys
