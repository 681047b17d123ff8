"""SwAV's official training loop written out in float64: a reference that uses nothing of the package."""

import numpy as np
import torch

EPOCHS, LENGTH, IMAGES, DIM, PROTOTYPES = 4, 4, 6, 8, 5
STEPS = EPOCHS * LENGTH
FROZEN = 6
"""Iterations of frozen prototypes: past the first epoch, so that no other switch falls together with it."""
QUEUE_ASKED, QUEUE_EPOCH = 20, 1
"""Rows asked for (18 fit whole batches), and the first epoch with a queue: filled from step 4, used from step 7."""
LARC = {"start": 0.02, "base": 0.4, "final": 0.008, "decay": 0.02, "trust": 0.05, "eps": 0.02}
"""SwAV's shape of schedule. Decay and eps are far above the official 1e-6 and 1e-8, which no comparison would see;
trust is 50 times the official one and the rate smaller in turn, so that a tensor that is not rescaled takes no huge
step."""
SGD = {"start": 0.01, "base": 0.1, "final": 0.002, "decay": 0.1}


def views_of(step):
    """Two big and two small uint8 views of a few images of different brightness."""
    generator = torch.Generator().manual_seed(200 + step)

    def one(size):
        pixels = torch.rand(IMAGES, 1, size, size, generator=generator)
        return (255 * pixels * torch.rand(IMAGES, 1, 1, 1, generator=generator)).to(torch.uint8)

    return [one(size) for size in (8, 8, 4, 4)]


def normalised(view):
    """Pixels in float64, which the package's own normalisation would round."""
    return (view.double() / 255 - 0.3) / 0.3


def record(losses, weights, queues):
    """All that is compared, by name."""
    tensors = {"losses": torch.tensor(losses), "queue of crop 0": queues[0], "queue of crop 1": queues[1], **weights}
    return {name: tensor.detach().double() for name, tensor in tensors.items()}


def difference(ours, theirs):
    """Largest difference of a tensor as a share of its largest entry, over all tensors."""
    assert ours.keys() == theirs.keys() and len(ours) >= 10
    shares = [(ours[name] - theirs[name]).abs().max() / theirs[name].abs().max() for name in ours]
    return float(torch.stack(shares).max())  # torch's maximum, unlike Python's, never hides a NaN


class Official:
    """``main`` and ``train`` written out for weights in a dictionary; ``mistake`` names a deliberate one.

    Args:
        start: weights by name.
        mistake: what to do wrong, or None.
        batch_norm: whether trunk and head have BatchNorm.
        larc: LARC around SGD as in the official recipes, or SGD alone.

    Attributes:
        balanced: rows that Sinkhorn saw, for every assignment.
    """

    def __init__(self, start, mistake=None, batch_norm=False, larc=True):
        self.mistake, self.batch_norm, self.larc = mistake, batch_norm, larc
        self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in start.items()}
        self.velocity, self.queue, self.balanced, self.step = {}, None, [], 0
        self.last_prototypes = self.weights["head.prototypes.weight"].detach().clone()
        self.rates = LARC if larc else SGD
        first, base, final = (self.rates[name] for name in ("start", "base", "final"))
        rise, t = np.linspace(0 if mistake == "warm-up from zero" else first, base, LENGTH), np.arange(STEPS - LENGTH)
        fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * t / (STEPS - LENGTH)))
        self.lr = np.concatenate((rise, fall, [final]))
        if mistake == "no warm-up":
            self.lr = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS))

    def norm(self, x, name):
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def trunk(self, images):
        pooled = torch.cat([images.mean((2, 3)), images.amax((2, 3)), images.std((2, 3))], 1)
        rows = pooled @ self.weights["trunk.layer.weight"].T
        return torch.tanh(self.norm(rows, "trunk.norm") if self.batch_norm else rows + self.weights["trunk.layer.bias"])

    def head(self, x):
        x = x @ self.weights["head.projection_head.0.weight"].T + self.weights["head.projection_head.0.bias"]
        x = torch.relu(self.norm(x, "head.projection_head.1") if self.batch_norm else x)
        x = x @ self.weights["head.projection_head.3.weight"].T + self.weights["head.projection_head.3.bias"]
        return x / x.norm(dim=1, keepdim=True)

    def embeddings(self, views):
        groups = [views[:2], views[2:]]
        if self.mistake == "trunk sees every view apart":
            groups = [[view] for view in views]
        rows = [self.trunk(torch.cat(group)) for group in groups]
        if self.mistake == "head run per resolution":
            return torch.cat([self.head(part) for part in rows])
        return self.head(torch.cat(rows))

    def normalise_prototypes(self):
        prototypes = self.weights["head.prototypes.weight"]
        with torch.no_grad():
            prototypes /= prototypes.norm(dim=1, keepdim=True)

    def sinkhorn(self, scores):
        """Official order of operations, on the transposed matrix."""
        self.balanced.append(len(scores))
        if self.mistake == "targets from softmax":
            return torch.softmax(scores / 0.05, 1)
        q = torch.exp(scores / 0.05).T
        k, b = q.shape
        q = q / q.sum()
        for _ in range(1 if self.mistake == "one Sinkhorn iteration" else 3):
            if self.mistake == "rows before prototypes":
                q = q / q.sum(0, keepdim=True) / b
                q = q / q.sum(1, keepdim=True) / k
            else:
                q = q / q.sum(1, keepdim=True) / k
                q = q / q.sum(0, keepdim=True) / b
        return (q * b).T

    def remember(self, slot, new):
        """Moves the queue on by a batch, the newest in front."""
        if self.queue is None:
            return
        if self.mistake == "queue appended at the end":
            self.queue[slot] = torch.cat([self.queue[slot][IMAGES:], new])
        else:
            self.queue[slot] = torch.cat([new, self.queue[slot][:-IMAGES]])

    def assign(self, slot, scores, embeddings):
        """Assignments of one crop; the queue takes part once full, then takes in the crop's embeddings."""
        new = embeddings.detach().clone()
        if self.mistake == "queue updated before use":
            self.remember(slot, new)
        if self.queue is not None:
            rows = self.queue[0 if self.mistake == "one queue for both crops" else slot]
            if self.use_queue or bool((rows[-1] != 0).any()) or self.mistake == "queue used before full":
                self.use_queue = True
                prototypes = self.weights["head.prototypes.weight"].detach()
                if self.mistake == "queue scored with earlier prototypes":
                    prototypes = self.last_prototypes
                scores = torch.cat([rows @ prototypes.T, scores])
        if self.mistake != "queue updated before use":
            self.remember(slot, new)
        balanced = self.sinkhorn(scores)
        return balanced[:IMAGES] if self.mistake == "first rows taken" else balanced[-IMAGES:]

    def objective(self, z):
        """Mean over the assign crops of the mean cross-entropy of all other crops."""
        scores = z @ self.weights["head.prototypes.weight"].T
        temperature = 1 if self.mistake == "no temperature" else 0.1
        predictions = torch.log_softmax(scores / temperature, 1).split(IMAGES)
        loss = 0
        for slot in range(2):
            with torch.set_grad_enabled(self.mistake == "gradient through the targets"):
                q = self.assign(slot, scores.split(IMAGES)[slot], z.split(IMAGES)[slot])
            part, terms = 0, len(predictions) - 1
            for v, prediction in enumerate(predictions):
                if v != slot or self.mistake == "view paired with itself":
                    part = part - (q * prediction).sum(1).mean()
            if self.mistake in ("view paired with itself", "divisor V"):
                terms += 1
            loss = loss + part / terms
        return loss / 2

    def rescaled(self, weight, gradient, lr):
        """apex's LARC: the gradient that SGD without decay then sees."""
        decay, eps = self.rates["decay"], self.rates["eps"]
        if self.mistake == "decay missing" or (self.mistake == "vectors not decayed" and weight.ndim < 2):
            decay = 0.0
        if self.mistake == "vectors not rescaled" and weight.ndim < 2:
            return gradient + decay * weight
        p, g = weight.norm(), gradient.norm()
        if self.mistake != "zero tensor left at zero" and (p == 0 or g == 0):
            return gradient
        if self.mistake == "eps missing":
            eps = 0.0
        size = (gradient + decay * weight).norm() if self.mistake == "norm of the sum" else g + decay * p
        factor = self.rates["trust"] * p / (size + eps)
        if self.mistake == "clip":
            factor = min(factor / lr, 1)
        if self.mistake == "decay after rescaling":
            return factor * gradient + decay * weight
        return factor * (gradient + decay * weight)

    @torch.no_grad()
    def update(self, gradients):
        lr = self.lr[self.step + (self.mistake == "lr off by one")]
        if self.mistake == "lr of the epoch":
            lr = self.lr[self.step - self.step % LENGTH]
        momentum = 0.0 if self.mistake == "momentum missing" else 0.9
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            weight = self.weights[name]
            if not self.larc:
                gradient = gradient + self.rates["decay"] * weight
            elif self.mistake != "not rescaled":
                gradient = self.rescaled(weight, gradient, lr)
            if self.mistake == "rate inside the momentum":
                gradient = lr * gradient
            self.velocity[name] = momentum * self.velocity[name] + gradient if name in self.velocity else gradient
            weight -= self.velocity[name] if self.mistake == "rate inside the momentum" else lr * self.velocity[name]

    def freeze(self, gradients):
        name = "head.prototypes.weight"
        if self.step < FROZEN + (self.mistake == "freeze one step too long") and self.mistake != "freeze ignored":
            gradients[name] = torch.zeros_like(gradients[name]) if self.mistake == "frozen by zeros" else None
        return gradients

    def train(self):
        losses = []
        for self.step in range(STEPS):
            if self.step % LENGTH == 0:  # the head of an epoch
                self.use_queue = False
                if self.queue is None and (self.step // LENGTH >= QUEUE_EPOCH or self.mistake == "queue too early"):
                    self.queue = torch.zeros(2, QUEUE_ASKED - QUEUE_ASKED % IMAGES, DIM, dtype=torch.float64)
            never = self.mistake in ("prototypes not normalised", "prototypes normalised after the update")
            if not (never or (self.mistake == "prototypes normalised once" and self.step)):
                self.normalise_prototypes()
            loss = self.objective(self.embeddings([normalised(view) for view in views_of(self.step)]))
            gradients = dict(zip(self.weights, torch.autograd.grad(loss, list(self.weights.values()))))
            self.last_prototypes = self.weights["head.prototypes.weight"].detach().clone()
            self.update(self.freeze(gradients))
            if self.mistake == "prototypes normalised after the update":
                self.normalise_prototypes()
            losses.append(float(loss.detach()))
        return record(losses, self.weights, self.queue)
