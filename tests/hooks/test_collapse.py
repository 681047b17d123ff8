"""Speaks within 200 steps of a forced collapse; silent while a run is healthy, its first steps included."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from vissl_like.hooks.collapse import CollapseHook

from .conftest import outputs

K, D, ROWS = 60, 64, 96
LN_K = math.log(K)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def prototypes(generator):
    return normalize(torch.randn(K, D, generator=generator), dim=1)


def with_logits(embedding, prototypes):
    return outputs(embedding, normalize(embedding, dim=1) @ prototypes.T)


def first_warning(run, make_output, loss, steps=400):
    """Steps done when the first warning came, None if there was none."""
    for step in range(1, steps + 1):
        output = make_output(step) if step % 20 == 0 else None
        run.do_step(loss=loss(step), parts={}, output=output)
        if run.messages("warning"):
            return step
    return None


def test_constant_outputs_from_the_first_step_are_announced(make_run, generator, prototypes):
    run = make_run(CollapseHook(), total=100_000, per_epoch=1000, trivial=LN_K).start()
    same = torch.randn(1, D, generator=generator).repeat(ROWS, 1)
    assert first_warning(run, lambda _: with_logits(same, prototypes), lambda _: LN_K) <= 200
    (text,) = run.messages("warning")
    assert "the same for all images" in text and "OPTIMIZER.base_lr" in text and "global batch 32" in text


def test_nearly_constant_outputs_are_announced(make_run, generator, prototypes):
    run = make_run(CollapseHook(), total=100_000, trivial=None).start()
    same = torch.randn(1, D, generator=generator).repeat(ROWS, 1)

    def noise(_):
        return outputs((same + 0.005 * torch.randn(ROWS, D, generator=generator)).bfloat16())

    assert first_warning(run, noise, lambda _: 1.0) <= 200


def test_collapse_in_the_middle_of_a_run_is_announced_within_200_steps(make_run, generator, prototypes):
    run = make_run(CollapseHook(), total=2000, per_epoch=100, trivial=LN_K).start()

    def healthy():
        return with_logits(torch.randn(ROWS, D, generator=generator), prototypes)

    same = torch.randn(1, D, generator=generator).repeat(ROWS, 1)
    at = first_warning(run, lambda s: healthy() if s <= 1000 else with_logits(same, prototypes), lambda s: 3.0, 1300)
    assert 1000 < at <= 1200


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_one_direction_is_announced(make_run, generator, prototypes, noise):
    run = make_run(CollapseHook(), total=100_000, trivial=LN_K).start()
    direction = torch.randn(1, D, generator=generator)

    def along_a_line(_):
        places = torch.randn(ROWS, 1, generator=generator)
        return with_logits(places * direction + noise * torch.randn(ROWS, D, generator=generator), prototypes)

    assert first_warning(run, along_a_line, lambda _: 2.0) <= 200
    assert "one or two of 64 directions" in run.messages("warning")[0]


def test_one_prototype_for_all_is_announced_though_embeddings_differ(make_run, generator, prototypes):
    run = make_run(CollapseHook(), total=100_000, trivial=LN_K).start()

    def one_wins(_):
        logits = 0.05 * torch.randn(ROWS, K, generator=generator)
        logits[:, 7] += 2.0
        return outputs(torch.randn(ROWS, D, generator=generator), logits)

    assert first_warning(run, one_wins, lambda _: 0.001) <= 200
    assert "one prototype" in run.messages("warning")[0]


def test_uniform_outputs_are_announced_though_embeddings_differ(make_run, generator, prototypes):
    """Targets that are uniform: the loss comes down to ln K and stays just above it."""
    run = make_run(CollapseHook(), total=100_000, trivial=LN_K).start()

    def uniform(_):
        return outputs(torch.randn(ROWS, D, generator=generator), 0.003 * torch.randn(ROWS, K, generator=generator))

    assert first_warning(run, uniform, lambda _: LN_K + 0.001) <= 200
    assert "outputs are uniform" in run.messages("warning")[0]


def test_a_low_rank_counts_after_the_first_steps(make_run, generator):
    """As measured with a learning rate 1000 times too high: loss above its trivial value, RankMe < 2, spread 0.05."""
    run = make_run(CollapseHook(), total=2000, trivial=LN_K).start()
    mean, direction = (normalize(torch.randn(1, D, generator=generator), dim=1) for _ in range(2))

    def diverged(_):
        along = 0.04 * torch.randn(ROWS, 1, generator=generator) * direction
        return outputs(mean + along + 0.01 * torch.randn(ROWS, D, generator=generator) / D**0.5)

    assert first_warning(run, diverged, lambda _: 1.3 * LN_K) == 180
    numbers = run.events("collapse_watch")[0].fields
    assert 0.02 < numbers["spread"] < 0.08 and numbers["rankme"] < 2 < numbers["rankme_centred"]
    assert "one or two of 64 directions" in run.messages("warning")[0]


@pytest.mark.parametrize(("total", "when"), [(400, 180), (2_000, 280)])
def test_loss_alone_counts_once_the_start_is_over(make_run, generator, prototypes, total, when):
    run = make_run(CollapseHook(), total=total, per_epoch=100, trivial=LN_K).start()

    def healthy(_):
        return with_logits(torch.randn(ROWS, D, generator=generator), prototypes)

    at = first_warning(run, healthy, lambda step: LN_K * 0.997, total)
    assert at == when  # the fifth look after 100 steps, or after 10 % of the run
    assert "equals its trivial value (4.0943)" in run.messages("warning")[0]


def test_silent_on_a_healthy_run(make_run, generator, prototypes):
    run = make_run(CollapseHook(), total=2000, trivial=LN_K).start()

    def healthy(_):
        return with_logits(torch.randn(ROWS, D, generator=generator), prototypes)

    assert first_warning(run, healthy, lambda step: LN_K * (0.97 - 0.2 * step / 2000), 2000) is None
    assert all(event.fields["findings"] == [] for event in run.events("collapse_watch"))


def test_silent_in_a_healthy_start_near_the_trivial_loss(make_run, generator, prototypes):
    """As measured without BatchNorm in the head: for 100 steps spread 0.064 and loss within 0.3 % of ln K."""
    run = make_run(CollapseHook(), total=2000, trivial=LN_K).start()
    mean = normalize(torch.randn(1, D, generator=generator), dim=1)
    prototypes = normalize(prototypes - prototypes @ mean.T * mean, dim=1)  # none is nearer to the common direction

    def starting(step):
        width = 0.064 if step < 140 else 0.5
        rows = mean + width * torch.randn(ROWS, D, generator=generator) / D**0.5
        return with_logits(rows, prototypes)

    def loss(step):
        return LN_K * (1.17 - 0.17 * step / 20 if step < 20 else 0.999 if step < 50 else 0.997 if step < 140 else 0.85)

    assert first_warning(run, starting, loss, 600) is None
    watched = run.events("collapse_watch")[2].fields
    assert watched["spread"] == pytest.approx(0.064, rel=0.05)
    assert watched["sample_entropy"] > 0.99


def test_silent_at_random_initialisation_with_warm_up(make_run, generator):
    """Loss exactly trivial for long (learning rate 0), outputs of an untrained network: normal in the first 10 %."""
    run = make_run(CollapseHook(), total=10_000, per_epoch=100, trivial=math.log(4096)).start()
    weights = normalize(torch.randn(4096, D, generator=generator), dim=1)
    mean = torch.randn(1, D, generator=generator)

    def untrained(_):
        return with_logits(mean + torch.randn(ROWS, D, generator=generator), weights)

    assert first_warning(run, untrained, lambda _: math.log(4096), 900) is None


def test_says_it_once_and_again_only_after_a_recovery(make_run, generator, prototypes):
    run = make_run(CollapseHook(), total=100_000, trivial=LN_K).start()
    same = torch.randn(1, D, generator=generator).repeat(ROWS, 1)
    stages = [(300, True), (300, False), (300, True)]
    for steps, collapsed in stages:
        for _ in range(steps):
            rows = same if collapsed else torch.randn(ROWS, D, generator=generator)
            run.do_step(loss=3.0, output=with_logits(rows, prototypes))
    assert len(run.messages("warning")) == 2
    recovered = [text for text in run.messages("info") if "no sign of collapse" in text]
    assert len(recovered) == 1 and "step 400" in recovered[0]


def test_a_single_odd_look_is_not_a_collapse(make_run, generator, prototypes):
    run = make_run(CollapseHook(), total=100_000, trivial=LN_K).start()
    same = torch.randn(1, D, generator=generator).repeat(ROWS, 1)

    def now_and_then(step):
        return with_logits(same if step % 100 else torch.randn(ROWS, D, generator=generator), prototypes)

    assert first_warning(run, now_and_then, lambda _: 3.0) is None


def test_stop_is_a_choice(make_run):
    same = torch.ones(ROWS, D)
    for action, wanted in (("warn", None), ("stop", "collapse: same_embedding")):
        run = make_run(CollapseHook(action=action), total=1000).start()
        run.do_steps(200, output=outputs(same))
        assert run.stop_reason == wanted


def test_numbers_are_emitted_at_every_look(make_run, generator, prototypes):
    run = make_run(CollapseHook(every=10), trivial=LN_K).start()
    rows = torch.randn(ROWS, D, generator=generator)
    for step in range(1, 21):
        run.do_step(loss=float(step), output=with_logits(rows, prototypes))
    first, second = run.events("collapse_watch")
    assert (first.step, second.step) == (10, 20)
    assert (first.fields["loss"], second.fields["loss"]) == (5.5, 15.5)
    assert first.fields["trivial_loss"] == LN_K
    assert 0.9 < first.fields["spread"] < 1.1
    assert 40 < first.fields["rankme"] <= 64
    assert set(first.fields) == {
        *("spread", "rankme", "rankme_centred", "first_direction", "feature_rankme"),
        *("assignment_entropy", "sample_entropy", "used_share", "loss", "trivial_loss", "findings"),
    }


@pytest.mark.parametrize(
    "output",
    [None, outputs(torch.ones(4, D)), outputs(torch.full((ROWS, D), math.nan)), outputs(torch.randn(ROWS, 2))],
    ids=["no output", "few rows", "not finite", "two dimensions"],
)
def test_what_cannot_be_judged_is_not_judged(make_run, output):
    run = make_run(CollapseHook(), total=1000).start()
    run.do_steps(200, output=output, loss=math.nan)
    assert run.messages() == []
    assert len(run.events("collapse_watch")) == 10


def test_watching_goes_on_after_a_restart(make_run, tmp_path):
    same = outputs(torch.ones(ROWS, D))
    hook = CollapseHook()
    make_run(hook, total=1000).start().do_steps(90, output=same, loss=2.0)
    torch.save(hook.state_dict(), tmp_path / "state.pt")
    resumed = CollapseHook()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run = make_run(resumed, total=1000, step=90).start()
    run.do_steps(10, output=same, loss=4.0)
    assert len(run.messages("warning")) == 1
    assert run.events("collapse_watch")[0].fields["loss"] == pytest.approx(3.0)
    again = CollapseHook()
    again.load_state_dict(resumed.state_dict())
    run = make_run(again, total=1000, step=100).start()
    run.do_steps(200, output=same)
    assert run.messages() == []
