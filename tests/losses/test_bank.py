"""The bank and the table of labels, watched through DeepCluster-v2: slots, skipped updates, ignored images, advice."""

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from small_bank_run import (
    IMAGES,
    ROWS,
    STEPS_PER_EPOCH,
    Source,
    context_of,
    micro_batches,
    order_of,
    sgd,
    tiny_model,
    train,
    views_of,
)

from vissl_like.clustering.statistics import mutual_information
from vissl_like.losses.deepcluster_v2 import DeepClusterV2Loss
from vissl_like.records import Batch, Progress
from vissl_like.utils.errors import UserError

CLUSTERS, STEPS = 4, 4 * STEPS_PER_EPOCH
FIRST = Progress(0, STEPS, STEPS_PER_EPOCH)


def build(**options):
    return tiny_model(), DeepClusterV2Loss(context_of(), **{"num_prototypes": CLUSTERS, **options})


def test_a_skipped_update_leaves_the_bank_alone():
    model, loss = build()
    record = train(model, loss, sgd(model), range(STEPS_PER_EPOCH + 2), skipped=(STEPS_PER_EPOCH,))
    before, skipped, after = (record[STEPS_PER_EPOCH + step][2] for step in (-1, 0, 1))
    assert torch.equal(skipped["bank"], before["bank"]) and torch.equal(skipped["bank_index"], before["bank_index"])
    changed = (after["bank_index"] != before["bank_index"]) | (after["bank"] != before["bank"]).any(2).any(0)
    assert changed.nonzero().flatten().tolist() == [4, 5, 6, 7]  # the second step's slots


def test_an_image_in_two_slots_after_a_skipped_update_is_labelled_once():
    model, loss = build()
    train(model, loss, sgd(model), range(2 * STEPS_PER_EPOCH + 1), skipped=(STEPS_PER_EPOCH + 1,))
    bank_index = torch.cat([order_of(1)[:4], order_of(0)[4:8], order_of(1)[8:12]])
    seen = set(bank_index.tolist())
    assert len(seen) < ROWS  # it does happen here
    labels = loss.table[0]
    assert {i for i in range(IMAGES) if labels[i] != -100} == seen
    assert int(labels.min()) == -100 and int(labels.max()) < CLUSTERS


def test_a_run_stopped_between_labelling_and_the_first_step_does_not_label_again():
    """The checkpoint of such a stop is of the epoch's first step, and has the labels already."""
    model, loss = build()
    loss.before_epoch(Source(model), FIRST)
    saved = {name: value.clone() for name, value in loss.state_dict().items()}
    resumed = build()[1]
    resumed.load_state_dict(saved)
    resumed.before_epoch(None, FIRST)  # would fail if it asked for a pass
    assert all(torch.equal(value, saved[name]) for name, value in resumed.state_dict().items())


def test_the_bank_is_filled_once_with_the_first_epochs_images():
    model, loss = build(assign_views=[2, 0])
    source = Source(model)
    loss.before_epoch(source, FIRST)
    assert loss.bank_index.tolist() == order_of(0)[:ROWS].tolist()
    small = model([views_of(0, loss.bank_index)[2]]).head.embedding.detach()
    torch.testing.assert_close(loss.bank[0], small, rtol=1e-5, atol=1e-6)
    loss.before_epoch(source, Progress(STEPS_PER_EPOCH, STEPS, STEPS_PER_EPOCH))
    assert source.passes == 1


def test_all_images_ignored_gives_zero_not_nan():
    model, loss = build()
    batch = next(micro_batches(0))
    parts = loss(model(batch.views), batch, FIRST)  # nothing has been labelled yet
    parts["loss"].backward()
    assert float(parts["loss"].detach()) == 0 and float(parts["ignored"]) == 1
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_labels_belong_to_images_whatever_their_order_in_the_batch():
    model, loss = build()
    train(model, loss, sgd(model), range(1))
    batch = next(micro_batches(1))
    backwards = Batch(views=[view.flip(0) for view in batch.views], index=batch.index.flip(0))
    expected = loss(model(batch.views), batch, FIRST)["loss"]
    torch.testing.assert_close(loss(model(backwards.views), backwards, FIRST)["loss"], expected)


def test_evenness_of_hand_made_labels():
    _, loss = build(heads=1)
    table = torch.full((1, IMAGES), -100)
    table[0, :4] = torch.tensor([0, 0, 1, 1])  # two of four clusters, equal: ln 2 / ln 4
    loss._describe(table)
    assert float(loss.evenness) == pytest.approx(0.5) and float(loss.agreement) == 0


def test_agreement_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    first, noise = (torch.randint(0, high, (200,), generator=generator) for high in (6, 9))
    second = torch.where(torch.rand(200, generator=generator) < 0.6, first * 2 % 6, noise)
    expected = normalized_mutual_info_score(first.numpy(), second.numpy(), average_method="geometric")
    assert float(mutual_information(first, second)) == pytest.approx(expected, rel=1e-9)
    assert float(mutual_information(first, (first + 2) % 6)) == pytest.approx(1)
    assert float(mutual_information(first, torch.zeros_like(first))) == 0
    assert float(mutual_information(first[:0], first[:0])) == 0


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="13 prototypes are asked for, but an epoch has only 12 images"):
        build(num_prototypes=13)
    with pytest.raises(UserError, match=r"assign_views is \[0, 3\]"):
        build(assign_views=[0, 3])
    build(num_prototypes=12)
    with pytest.raises(UserError, match=r"MODEL.HEAD has prototypes \(4, 3\), which deepcluster_v2 would never train"):
        DeepClusterV2Loss(context_of(num_prototypes=(4, 3)), num_prototypes=CLUSTERS)


def test_advice():
    def advice(heads=3, num_prototypes=3000, **facts):
        given = {"dataset_size": 60_050, "steps_per_epoch": 600, "global_batch": 100, "total_steps": 6000, **facts}
        return DeepClusterV2Loss(context_of(**given), heads=heads, num_prototypes=num_prototypes).advice()

    assert advice() == []
    assert "10000 prototypes for the 60000 images of an epoch are 6.0 images each" in advice(num_prototypes=10_000)[0]
    assert "each epoch leaves out 20 % of the images" in advice(dataset_size=75_000)[0]
    assert "view(s) 1 are kept but never used" in advice(heads=1)[0]
    assert "one epoch long" in advice(total_steps=600)[0]
