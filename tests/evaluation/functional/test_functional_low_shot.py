"""Low-shot samples: what was asked for, nothing twice, the same everywhere, and evenly drawn."""

import numpy as np
import pytest
import torch

from vissl_like.evaluation.functional.low_shot import k_shot, multi_label_shots

LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 0, 1, 2, 0, 2, 0])  # five 0, two 1, five 2


def plain_draw(members, count, *key):
    """The members with the smallest words of a generator that is seeded with the key."""
    generator = np.random.PCG64(np.random.SeedSequence(key))
    words = [int(generator.random_raw()) for _ in members]
    return sorted(sorted(members, key=lambda member: words[members.index(member)])[:count])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_of_each_class_and_short_classes_are_told(k):
    shot = k_shot(LABELS, k, num_classes=4, seed=3, draw=1)
    counts = LABELS[shot.indices].bincount(minlength=4).tolist()
    assert counts == [k, min(k, 2), k, 0]
    assert shot.short == ({1: 2, 3: 0} if k == 5 else {3: 0})
    assert shot.indices.tolist() == sorted(set(shot.indices.tolist()))
    expected = [plain_draw((label == LABELS).nonzero().flatten().tolist(), k, 3, k, 1, label) for label in range(3)]
    assert shot.indices.tolist() == sorted(index for part in expected for index in part)


def test_the_choice_depends_on_seed_k_and_draw_only():
    labels = torch.arange(200) % 2
    base = k_shot(labels, 10, num_classes=2, seed=0, draw=0).indices
    assert torch.equal(base, k_shot(labels, 10, num_classes=2, seed=0, draw=0).indices)
    for seed, k, draw in [(1, 10, 0), (0, 11, 0), (0, 10, 1)]:
        other = k_shot(labels, k, num_classes=2, seed=seed, draw=draw).indices
        assert len(set(other.tolist()) & set(base.tolist())) < 10  # of 20; chance gives 2
    more = torch.cat([labels, torch.full((50,), 2)])  # another class changes nothing
    assert torch.equal(k_shot(more, 10, num_classes=3, seed=0, draw=0).indices[:20], base)


def test_every_image_is_drawn_equally_often():
    times = torch.zeros(12)
    for draw in range(600):
        times[k_shot(LABELS, 2, num_classes=3, seed=0, draw=draw).indices] += 1
    assert times[LABELS == 1].tolist() == [600, 600]
    # 2 of 5: 240 expected, standard deviation sqrt(600 * .4 * .6) = 12
    assert ((times[LABELS != 1] - 240).abs() < 60).all()


def test_labels_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.1, got 0\.\.2"):
        k_shot(LABELS, 1, num_classes=2, seed=0, draw=0)


def voc_like(seed=0, images=120, classes=4):
    """One or two classes an image, some difficult."""
    random = np.random.default_rng(seed)
    labels = np.zeros((images, classes), dtype=np.int64)
    for row in labels:
        row[random.choice(classes, random.integers(1, 3), replace=False)] = 1
        if random.random() < 0.3:
            row[random.integers(classes)] = -1
    return torch.from_numpy(labels)


@pytest.mark.parametrize("rule", ["each class", "all"])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_multi_label_counts_and_truth(rule, k):
    labels = voc_like()
    shots = multi_label_shots(labels, k, seed=1, draw=2, negatives=rule)
    assert shots.targets.dtype == torch.int8 and shots.short_positives == shots.short_negatives == {}
    for column, own in zip(shots.targets.T, labels.T):
        assert int((column == 1).sum()) == k and int((column == 0).sum()) == 3 * k
        assert (own[column == 1] == 1).all() and (own[column == 0] == 0).all()  # difficult ones are neither
    again = multi_label_shots(labels, k, seed=1, draw=2, negatives=rule)
    assert torch.equal(again.targets, shots.targets)
    for other in ((0, 2), (1, 3)):
        moved = multi_label_shots(labels, k, seed=other[0], draw=other[1], negatives=rule)
        assert not torch.equal(moved.targets, shots.targets)


def test_k_negatives_come_from_each_other_class():
    labels = voc_like()
    targets = multi_label_shots(labels, 8, seed=0, draw=0, negatives="each class").targets
    for label in range(4):
        rows = (targets[:, label] == 0).nonzero().flatten()
        for other in range(4):
            if other != label:
                assert int((labels[rows, other] == 1).sum()) >= 8
    # a rare class: an even draw over all negatives nearly never finds both of its images
    rare = torch.zeros(300, 3, dtype=torch.int64)
    rare[:, 0] = 1
    rare[100:, 0], rare[100:298, 1], rare[298:, 2] = 0, 1, 1
    every = [multi_label_shots(rare, 2, seed=0, draw=draw, negatives="each class").targets for draw in range(5)]
    assert all((targets[298:, 0] == 0).all() for targets in every)
    evenly = [multi_label_shots(rare, 2, seed=0, draw=draw, negatives="all").targets for draw in range(5)]
    assert not any((targets[298:, 0] == 0).all() for targets in evenly)


def test_missing_images_are_reported_and_not_replaced():
    labels = torch.zeros(10, 3, dtype=torch.int64)
    labels[:6, 0], labels[6:9, 1], labels[9, 2] = 1, 1, 1
    for rule in ("each class", "all"):
        shots = multi_label_shots(labels, 3, seed=0, draw=0, negatives=rule)
        assert shots.short_positives == {2: 1}
        # class 0 has 4 images without it, of 6 wanted; class 1 has 7, of which 3 + 1 are of other classes by turns
        assert shots.short_negatives == ({0: 4, 1: 4} if rule == "each class" else {0: 4})
        assert int((shots.targets[:, 2] == 0).sum()) == 6


def test_other_codes_and_rules_are_refused():
    with pytest.raises(ValueError, match="matrix of 1, 0 and -1"):
        multi_label_shots(torch.full((3, 2), 2), 1, seed=0, draw=0, negatives="all")
    with pytest.raises(ValueError, match="'each class' or 'all'"):
        multi_label_shots(torch.ones(3, 2), 1, seed=0, draw=0, negatives="any")
