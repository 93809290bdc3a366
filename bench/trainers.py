"""Adversarial training as other libraries offer it: one epoch of PGD training on the same rows, from the same weights.

(x, y, radius, steps, batch, seed) -> None. Adam at 1e-3, steps of 2.5 radii over `steps`, a random start, as a careful user would set them.
"""

from __future__ import annotations

import models
import shims
import torch
from torch import Tensor, nn


def _start(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = models.small_cnn()
    return module, torch.optim.Adam(module.parameters(), lr=1e-3)


def art(x: Tensor, y: Tensor, radius: float, steps: int, batch: int, seed: int) -> None:
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    module, optimizer = _start(seed)
    wrapped = PyTorchClassifier(
        module, nn.CrossEntropyLoss(), (1, 28, 28), 10, optimizer, clip_values=(0.0, 1.0), device_type="cpu"
    )
    trainer = AdversarialTrainerMadryPGD(
        wrapped, nb_epochs=1, batch_size=batch, eps=radius, eps_step=2.5 * radius / steps, max_iter=steps
    )
    trainer.fit(x.numpy(), y.numpy())


def secml(x: Tensor, y: Tensor, radius: float, steps: int, batch: int, seed: int) -> None:
    shims.install()
    from secmlt.adv.backends import Backends
    from secmlt.adv.evasion.perturbation_models import LpPerturbationModels
    from secmlt.adv.evasion.pgd import PGD
    from secmlt.defenses.adv_training.pytorch.adversarial_trainer import AdversarialTrainer
    from torch.utils.data import DataLoader, TensorDataset

    module, optimizer = _start(seed)
    attack = PGD(
        perturbation_model=LpPerturbationModels.LINF, epsilon=radius, num_steps=steps, step_size=2.5 * radius / steps,
        random_start=True, y_target=None, lb=0.0, ub=1.0, backend=Backends.NATIVE,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)
    AdversarialTrainer(optimizer, epochs=1).train(module, loader, attack)


PEERS = {"art": art, "secml-torch": secml}
