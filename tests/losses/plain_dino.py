"""DINO's official training loop written out in float64: a reference that uses nothing of the package."""

import math

import numpy as np
import torch

EPOCHS, LENGTH, IMAGES, OUTPUTS = 4, 3, 4, 7
STEPS = EPOCHS * LENGTH
LR, LAST_LR, CLIP = 0.02, 1e-3, 0.3


def views_of(step):
    """Two big and two small uint8 views of a few images of different brightness."""
    generator = torch.Generator().manual_seed(100 + step)

    def one(size):
        pixels = torch.rand(IMAGES, 1, size, size, generator=generator)
        return (255 * pixels * torch.rand(IMAGES, 1, 1, 1, generator=generator)).to(torch.uint8)

    return [one(size) for size in (8, 8, 4, 4)]


def normalised(view):
    """Pixels in float64, which the package's own normalisation would round."""
    return (view.double() / 255 - 0.3) / 0.3


def record(losses, student, teacher, center):
    """All that is compared, by name."""
    tensors = {"losses": torch.tensor(losses), "center": center}
    for who, weights in (("student", student), ("teacher", teacher)):
        tensors |= {f"{who} {name}": weight for name, weight in weights.items()}
    return {name: tensor.detach().double() for name, tensor in tensors.items()}


def cosine_scheduler(base, final, steps):
    """The official half cosine as an array."""
    return final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(steps) / steps))


class Official:
    """``train_one_epoch`` written out for weights in a dictionary; ``mistake`` names a deliberate one.

    Attributes:
        clipped: for every gradient tensor, whether it was scaled down.
    """

    def __init__(self, start, mistake=None, batch_norm=False):
        self.mistake, self.batch_norm, self.clipped, self.step = mistake, batch_norm, [], 0
        self.student = {name: weight.detach().clone().requires_grad_() for name, weight in start.items()}
        self.teacher = {name: weight.detach().clone() for name, weight in start.items()}
        self.first = {name: torch.zeros_like(weight) for name, weight in self.teacher.items()}
        self.second = {name: torch.zeros_like(weight) for name, weight in self.teacher.items()}
        self.updates = dict.fromkeys(start, 0)
        self.center = torch.zeros(1, OUTPUTS, dtype=torch.float64)
        rise = np.linspace(0, LR, LENGTH)
        self.lr = np.concatenate((rise, cosine_scheduler(LR, LAST_LR, STEPS - LENGTH), [LAST_LR]))
        self.decay, self.momentum = cosine_scheduler(0.04, 0.4, STEPS), cosine_scheduler(0.8, 1, STEPS)
        self.temperatures = np.concatenate((np.linspace(0.04, 0.07, 3), np.ones(EPOCHS - 3) * 0.07))

    def scores(self, weights, groups):
        rows = []
        for group in groups:
            images = torch.cat(group)
            pooled = torch.cat([images.mean((2, 3)), images.amax((2, 3)), images.std((2, 3))], 1)
            rows.append(torch.tanh(pooled @ weights["trunk.layer.weight"].T + weights["trunk.layer.bias"]))
        if self.mistake == "head run per resolution":
            return torch.cat([self.head(weights, part) for part in rows])
        return self.head(weights, torch.cat(rows))

    def head(self, weights, x):
        linear_places = (0, 3, 6) if self.batch_norm else (0, 2, 4)
        for place in linear_places:
            x = x @ weights[f"head.mlp.{place}.weight"].T + weights[f"head.mlp.{place}.bias"]
            if place == linear_places[-1]:
                break
            if self.batch_norm:
                mean, variance = x.mean(0), x.var(0, unbiased=False)
                if self.mistake == "teacher in evaluation mode" and weights is self.teacher:
                    mean, variance = 0.0, torch.ones(())  # where running statistics start, and then stay
                x = (x - mean) / torch.sqrt(variance + 1e-5)
                x = x * weights[f"head.mlp.{place + 1}.weight"] + weights[f"head.mlp.{place + 1}.bias"]
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        x = x / x.norm(dim=1, keepdim=True)
        v, g = weights["head.last_layer.weight_v"], weights["head.last_layer.weight_g"]
        return x @ (g * v / v.norm(dim=1, keepdim=True)).T

    def objective(self, student, teacher):
        """Mean over pairs of different views; moves the centre, after its use."""
        mean = teacher[:IMAGES].mean(0) if self.mistake == "center of the first view" else teacher.mean(0)
        if self.mistake == "center moved before its use":
            self.center = 0.9 * self.center + 0.1 * mean
        center = -self.center if self.mistake == "center added" else self.center
        tau = self.temperatures[self.step // LENGTH]
        if self.mistake == "teacher temperature per step":
            tau = np.interp(self.step, [0, 3 * LENGTH - 1], [0.04, 0.07])
        if self.mistake == "teacher temperature without warm-up":
            tau = 0.07
        targets = torch.softmax((teacher - center) / tau, 1).chunk(len(teacher) // IMAGES)
        predictions = torch.log_softmax(student / (1 if self.mistake == "no student temperature" else 0.1), 1).chunk(4)
        total, terms = 0, 0
        for t, target in enumerate(targets):
            for v, prediction in enumerate(predictions):
                if v == t and self.mistake != "view paired with itself":
                    continue
                total, terms = total - (target * prediction).sum(1).mean(), terms + 1
        if self.mistake != "center moved before its use":
            self.center = 0.9 * self.center + 0.1 * mean
        return total / (4 * len(targets) if self.mistake == "divided by all pairs" else terms)

    def clip(self, gradients):
        whole = torch.stack([g.norm() for g in gradients.values()]).norm()
        for name, gradient in gradients.items():
            norm = whole if self.mistake == "whole gradient clipped" else gradient.norm()
            factor = CLIP / (norm + 1e-6)
            self.clipped.append(bool(factor < 1))
            if factor < 1 and self.mistake != "not clipped":
                gradients[name] = gradient * factor
        if self.step < LENGTH and self.mistake != "freeze ignored":
            for name in [name for name in gradients if "last_layer" in name]:
                gradients[name] = torch.zeros_like(gradients[name]) if self.mistake == "frozen by zeros" else None
        return gradients

    @torch.no_grad()
    def adamw(self, gradients):
        lr = self.lr[self.step + (self.mistake == "lr off by one")]
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            weight = self.student[name]
            decayed = weight.ndim > 1 and not name.endswith(".bias")
            decayed = decayed or self.mistake == "vectors decayed"
            decayed = decayed and not (self.mistake == "weight_g not decayed" and name.endswith("weight_g"))
            decay = (0.04 if self.mistake == "decay constant" else self.decay[self.step]) if decayed else 0.0
            if self.mistake == "decay inside the gradient":
                gradient, decay = gradient + decay * weight, 0.0
            self.updates[name] += 1
            self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
            self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
            mean = self.first[name] / (1 - 0.9 ** self.updates[name])
            square = self.second[name] / (1 - 0.999 ** self.updates[name])
            weight -= lr * decay * weight
            weight -= lr * mean / (square.sqrt() + 1e-8)

    @torch.no_grad()
    def follow(self):
        m = self.momentum[0 if self.mistake == "momentum constant" else self.step]
        for name, weight in self.teacher.items():
            self.teacher[name] = m * weight + (1 - m) * self.student[name].detach()

    def train(self):
        losses = []
        for self.step in range(STEPS):
            views = [normalised(view) for view in views_of(self.step)]
            all_groups, big = [views[:2], views[2:]], [views[:2]]
            with torch.no_grad():
                teacher = self.scores(self.teacher, all_groups if self.mistake == "teacher sees all crops" else big)
            loss = self.objective(self.scores(self.student, all_groups), teacher)
            gradients = torch.autograd.grad(loss, list(self.student.values()))
            if self.mistake == "teacher moved before the step":
                self.follow()
            self.adamw(self.clip(dict(zip(self.student, gradients))))
            if self.mistake != "teacher moved before the step":
                self.follow()
            losses.append(float(loss.detach()))
        return record(losses, self.student, self.teacher, self.center)


def difference(ours, theirs, left_out=()):
    """Largest difference of a tensor as a share of its largest entry, over all tensors."""
    assert ours.keys() == theirs.keys() and len(ours) > 20
    names = [name for name in ours if not name.endswith(left_out)]
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in names)
