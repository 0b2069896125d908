"""The optimizers of ``torch.optim``, with a fused step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from adaptk.torch._bind import Group
from adaptk.torch._fused import Fused
from adaptk.torch._tensors import detached


def _adam(group: Group) -> tuple[str, dict[str, Any]]:
    beta1, beta2 = group["betas"]
    return "amsgrad" if group["amsgrad"] else "adam", {
        "lr": group["lr"],
        "beta1": beta1,
        "beta2": beta2,
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
        "decoupled": group["decoupled_weight_decay"],
        "maximize": group["maximize"],
    }


class Adam(Fused, torch.optim.Adam):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return _adam(group)


class AdamW(Fused, torch.optim.AdamW):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return _adam(group)


class NAdam(Fused, torch.optim.NAdam):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        beta1, beta2 = group["betas"]
        return "nadam", {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "momentum_decay": group["momentum_decay"],
            "weight_decay": group["weight_decay"],
            "decoupled": group["decoupled_weight_decay"],
            "maximize": group["maximize"],
        }


class RAdam(Fused, torch.optim.RAdam):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        beta1, beta2 = group["betas"]
        return "radam", {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "decoupled": group["decoupled_weight_decay"],
            "maximize": group["maximize"],
        }


class Adamax(Fused, torch.optim.Adamax):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        beta1, beta2 = group["betas"]
        return "adamax", {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }


class Adagrad(Fused, torch.optim.Adagrad):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return "adagrad", {
            "lr": group["lr"],
            "lr_decay": group["lr_decay"],
            "eps_in": 0.0,
            "eps_out": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }

    def _initial(self, name: str, group: Group) -> float:
        # As torch has it, of the constructor and not of the group.
        return float(self.defaults["initial_accumulator_value"])


class Adadelta(Fused, torch.optim.Adadelta):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return "adadelta", {
            "lr": group["lr"],
            "rho": group["rho"],
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }


class RMSprop(Fused, torch.optim.RMSprop):
    _torchs_names: Mapping[str, str] = {**Fused._torchs_names, "rho": "alpha"}

    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        name = "rmsprop_centered" if group["centered"] else "rmsprop"
        values = {
            "lr": group["lr"],
            "rho": group["alpha"],
            "eps_in": 0.0,
            "eps_out": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }
        if group["momentum"] > 0:
            name += "_momentum"
            values.update(momentum=group["momentum"], lr_inside=False)
        return name, values


class Rprop(Fused, torch.optim.Rprop):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        eta_minus, eta_plus = group["etas"]
        step_min, step_max = group["step_sizes"]
        return "rprop", {
            "lr": group["lr"],
            "eta_minus": eta_minus,
            "eta_plus": eta_plus,
            "step_min": step_min,
            "step_max": step_max,
            "maximize": group["maximize"],
        }

    def _initial(self, name: str, group: Group) -> float:
        return float(detached(group["lr"])) if name == "step_size" else 0.0


class ASGD(Fused, torch.optim.ASGD):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return "asgd", {
            "lr": group["lr"],
            "lambd": group["lambd"],
            "alpha": group["alpha"],
            "t0": group["t0"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }


class SGD(Fused, torch.optim.SGD):
    def _saved_names(self, group: Group, rule: str, arrays: list[str]) -> list[str]:
        return []  # as torch has it, the momentum is in the state once it has seen a gradient

    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        values = {
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }
        if group["momentum"] == 0:
            return "sgd", values
        values.update(momentum=group["momentum"], dampening=group["dampening"], velocity=False, dampen_first=False)
        return "nesterov" if group["nesterov"] else "momentum", values


TORCHS: tuple[type[Fused], ...] = (*(Adadelta, Adagrad, Adam, AdamW, Adamax, ASGD, NAdam, RAdam, RMSprop, Rprop, SGD),)
