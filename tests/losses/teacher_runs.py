"""Small runs with a teacher: the trainer's own step, and the parts of a plain float64 loop to compare it with."""

import copy
import math

import torch
from torch import nn

from vissl_like.data.normalise import Normalise
from vissl_like.losses.base import LossContext
from vissl_like.models.batch_norm import synchronise_batch_norm
from vissl_like.models.ssl_model import SSLModel
from vissl_like.models.teachers.ema import EMATeacher
from vissl_like.records import Batch, Progress
from vissl_like.trainer.precision import Precision
from vissl_like.trainer.step import TrainStep

VIEWS, IMAGES, FEATURES, TOTAL, LR, KEPT = 4, 6, 12, 8, 0.1, 0.7
SIZES = (8, 8, 4, 4)


class TinyTrunk(nn.Module):
    """Three pooled statistics and a linear layer: sees content, takes any size."""

    feature_dim = FEATURES

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, FEATURES)

    def forward(self, images):
        return torch.tanh(self.layer(pooled(images)))


def pooled(images):
    return torch.cat([images.mean((2, 3)), images.amax((2, 3)), images.std((2, 3))], 1)


def model_of(make_head):
    """The same weights at every call."""
    torch.manual_seed(3)
    return SSLModel(TinyTrunk(), make_head(FEATURES))


def context_of(model, world_size=1, accumulation=1, **facts):
    given = {
        "num_views": VIEWS,
        "embedding_dim": model.head.embedding_dim,
        "num_prototypes": tuple(model.head.num_prototypes),
        "per_rank_batch": IMAGES // world_size // accumulation,
        "global_batch": IMAGES,
        "world_size": world_size,
        "dataset_size": 100,
        "steps_per_epoch": 2,
        "total_steps": TOTAL,
        "seed": 5,
    }
    return LossContext(**{**given, **facts})


def pixels_of(step):
    """uint8 views of a step's images; views of an image are alike."""
    generator = torch.Generator().manual_seed(step)
    kind = torch.rand(IMAGES, 1, 2, 2, generator=generator) * 200
    views = []
    for size in SIZES:
        large = kind.repeat_interleave(size // 2, 2).repeat_interleave(size // 2, 3)
        views.append((large + 55 * torch.rand(IMAGES, 1, size, size, generator=generator)).to(torch.uint8))
    return views


def micro_batches(step, rank=0, world_size=1, accumulation=1):
    """This process's share of a step, dealt out as the samplers do."""
    size = IMAGES // world_size // accumulation
    for micro in range(accumulation):
        rows = slice((micro * world_size + rank) * size, (micro * world_size + rank + 1) * size)
        yield Batch(views=[view[rows] for view in pixels_of(step)], index=torch.arange(IMAGES)[rows])


class SmallRun:
    """A model, its teacher and its loss in the trainer's own step; records gradients."""

    def __init__(self, model, loss, teacher=None, share=(0, 1, 1), lr=LR):
        self.model, self.loss, self.share, self.gradients = model, loss, share, []
        if share[1] > 1:
            self.model = synchronise_batch_norm(model, "cpu")
        self.teacher = EMATeacher(self.model, momentum=KEPT) if teacher is None else teacher(self.model)
        wrapped = nn.parallel.DistributedDataParallel(self.model) if share[1] > 1 else self.model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.optimizer.register_step_pre_hook(lambda *_: self._record())
        self.step = TrainStep(
            self.model,
            wrapped,
            loss,
            self.optimizer,
            {"lr": lambda progress: lr},
            Precision("fp32", "cpu"),
            Normalise([0.5], [0.25], torch.device("cpu")),
            None,
            self.teacher,
        )

    def _record(self):
        self.gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters()])

    def parameters(self):
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def train(self, steps):
        """Values of the loss."""
        batches = {step: list(micro_batches(step, *self.share)) for step in steps}
        return [self.step(batches[step], Progress(step, TOTAL, 2)).loss for step in steps]

    def state(self):
        parts = {"model": self.model, "teacher": self.teacher, "loss": self.loss, "optimizer": self.optimizer}
        return {
            f"{part}/{name}": copy.deepcopy(value)
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }

    def load(self, state):
        for part in ("model", "teacher", "loss", "optimizer"):
            own = {name[len(part) + 1 :]: value for name, value in state.items() if name.startswith(f"{part}/")}
            getattr(self, part).load_state_dict(own)


def poisoned(loss):
    """The loss with a value that is not a number, as long as it is patched."""
    plain = type(loss).forward
    return lambda *given: {name: value * math.nan for name, value in plain(loss, *given).items()}


def plain_views(step):
    """float64 views, ``(pixel / 255 - 0.5) / 0.25``."""
    return [(view.double() / 255 - 0.5) / 0.25 for view in pixels_of(step)]


def plain_weights(model):
    return {name: p.detach().double().clone() for name, p in model.named_parameters()}


def plain_linear(weights, name, x):
    y = x @ weights[f"{name}.weight"].t()
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def plain_trunk(weights, views):
    return torch.cat([torch.tanh(plain_linear(weights, "trunk.layer", pooled(view))) for view in views])


def plain_mlp(weights, name, x):
    """Linear, BatchNorm of all rows, ReLU, linear."""
    x = plain_linear(weights, f"{name}.0", x)
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    x = x * weights[f"{name}.1.weight"] + weights[f"{name}.1.bias"]
    return plain_linear(weights, f"{name}.3", x.clamp(min=0))


def plain_unit(x):
    return x / x.pow(2).sum(1, keepdim=True).sqrt()


def plain_rows(x, view, images=IMAGES):
    return x[view * images : (view + 1) * images]


def plain_training(weights, objective, steps, mistake=None, before=None, lr=LR):
    """SGD with momentum on ``objective(student, teacher, step)``, and a teacher that follows after each step.

    ``before(student, teacher)`` may change both in place ahead of a step.
    """
    student = {name: value.clone().requires_grad_() for name, value in weights.items()}
    teacher = {name: value.clone() for name, value in weights.items()}
    velocity = {name: torch.zeros_like(value) for name, value in weights.items()}
    values = []
    for step in range(steps):
        if before is not None:
            with torch.no_grad():
                before(student, teacher)
        value = objective(student, teacher, step)
        values.append(float(value.detach()))
        gradients = torch.autograd.grad(value, list(student.values()), allow_unused=True)
        kept = 1 + (KEPT - 1) * 0.5 * (1 + math.cos(math.pi * step / TOTAL))
        with torch.no_grad():
            old = {name: parameter.clone() for name, parameter in student.items()}
            for (name, parameter), gradient in zip(student.items(), gradients):
                if gradient is not None:
                    velocity[name] = 0.9 * velocity[name] + gradient
                    parameter -= lr * velocity[name]
            followed = old if mistake == "teacher before the step" else student
            for name in teacher:
                teacher[name] = kept * teacher[name] + (1 - kept) * followed[name]
    return values, student, teacher


def assert_same_training(run, values, reference):
    """Losses within 1e-5, weights of student and teacher within float32 of many steps."""
    theirs, student, teacher = reference
    torch.testing.assert_close(torch.tensor(values), torch.tensor(theirs), rtol=1e-5, atol=1e-6)
    for network, plain in ((run.model, student), (run.teacher.network, teacher)):
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.double(), plain[name], rtol=2e-4, atol=2e-5, msg=name)


def differs(values, reference):
    """Whether the losses of two loops differ by more than rounding."""
    return max(abs(mine - theirs) for mine, theirs in zip(values, reference[0], strict=True)) > 1e-4
