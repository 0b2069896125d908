"""``adaptk.torch`` in Lightning, transformers, PEFT and wrappers of optimizers, like torch's own classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
at = pytest.importorskip("adaptk.torch")


def net() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


X, Y = torch.linspace(-1, 1, 32).reshape(8, 4), torch.linspace(0, 1, 8).reshape(8, 1)


def close(a: Any, b: Any, tolerance: float = 1e-6) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance)


# Wrappers of optimizers


def schedulefree(base: Any) -> Any:
    return pytest.importorskip("schedulefree").ScheduleFreeWrapper(base, momentum=0.9)


def of_pytorch_optimizer(name: str, **options: Any) -> Callable[[Any], Any]:
    return lambda base: getattr(pytest.importorskip("pytorch_optimizer"), name)(base, **options)


WRAPPERS = {
    "schedulefree": schedulefree,
    "Lookahead": of_pytorch_optimizer("Lookahead", k=2),
    "ScheduleFreeWrapper": of_pytorch_optimizer("ScheduleFreeWrapper"),
    "TRAC": of_pytorch_optimizer("TRAC"),
    "OrthoGrad": of_pytorch_optimizer("OrthoGrad"),
    "PCGrad": of_pytorch_optimizer("PCGrad"),
}


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_an_optimizer(name: str, base: str) -> None:
    models = []
    for module in (at, torch.optim):
        model = net()
        options = {"momentum": 0.9} if base == "SGD" else {}
        optimizer = getattr(module, base)(model.parameters(), lr=0.05, **options)
        if (name, base, module) == ("schedulefree", "AdamW", torch.optim):
            # The wrapper's own state hides from PyTorch's class that it has none yet.
            for p in model.parameters():
                zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                optimizer.state[p] = {"step": torch.zeros(()), **zeros}
        opt = WRAPPERS[name](optimizer)
        if hasattr(opt, "train"):
            opt.train()
        for _ in range(6):
            opt.zero_grad()
            losses = [torch.nn.functional.mse_loss(model(X), Y), model(X).square().mean()]
            if name == "PCGrad":
                opt.pc_backward(losses)
            else:
                sum(losses).backward()
            opt.step()
        models.append(model)
    close(*models)


@pytest.mark.parametrize("name", ["SAM", "WSAM", "LookSAM"])
def test_wrappers_that_make_their_optimizer_of_a_class(name: str) -> None:
    wrappers = pytest.importorskip("pytorch_optimizer")
    models = []
    for module in (at, torch.optim):
        model = net()
        first = (model, model.parameters()) if name == "WSAM" else (model.parameters(),)
        opt = getattr(wrappers, name)(*first, base_optimizer=module.AdamW, lr=0.05)

        def closure(model: Any = model, opt: Any = opt) -> Any:
            loss = torch.nn.functional.mse_loss(model(X), Y)
            loss.backward()
            return loss

        for _ in range(4):
            closure()
            opt.step(closure)
            opt.zero_grad()
        models.append(model)
    close(*models, 1e-5)


def test_wrappers_that_refuse_an_optimizer() -> None:
    heavyball = pytest.importorskip("heavyball", reason="needs HeavyBall")
    params = list(net().parameters())
    for module in (at, torch.optim):
        for given in (module.AdamW, module.AdamW(params)):
            with pytest.raises(ValueError, match="AdamW is not a HeavyBall optimizer"):
                heavyball.SAMWrapper(params, given)


def test_averaged_models() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    averages = []
    for module in (at, torch.optim):
        model = net()
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        opt = module.Adam(model.parameters(), lr=0.05)
        for _ in range(4):
            opt.zero_grad()
            torch.nn.functional.mse_loss(model(X), Y).backward()
            opt.step()
            average.update_parameters(model)
        averages.append(average)
    close(*averages)


# Lightning


@pytest.mark.full
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.filterwarnings("ignore")
def test_lightning(precision: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="needs Lightning")
    import lightning.pytorch as pl

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, make: Callable[[Any], Any]) -> None:
            super().__init__()
            self.net, self.make = net(), make

        def training_step(self, batch: Any, _: int) -> Any:
            return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            opt = self.make(self.parameters())
            return [opt], [torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=20)]

    def fit(make: Callable[[Any], Any], checkpoint: str | None = None, epochs: int = 4) -> Any:
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4)
        trainer = pl.Trainer(
            max_epochs=epochs, precision=precision, gradient_clip_val=0.1, accelerator="cpu", logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            enable_checkpointing=False,
        )  # fmt: skip
        module = Module(make)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
        return module, trainer

    assert lightning is not None
    ours, trainer = fit(lambda p: at.AdamW(p, lr=0.05))
    theirs, _ = fit(lambda p: torch.optim.AdamW(p, lr=0.05))
    close(ours, theirs, 1e-5)
    assert any(bool((p != q).any()) for p, q in zip(ours.net.parameters(), net().parameters(), strict=True))
    # Lion has betas, which the schedule cycles.
    fit(lambda p: at.Lion(p, lr=0.01))
    if precision != "32-true":
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            fit(lambda p: at.AdamW(p, lr=0.05, fused=True))
    # A run that resumes from a checkpoint.
    _, trainer = fit(lambda p: at.AdamW(p, lr=0.05), epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(lambda p: at.AdamW(p, lr=0.05), checkpoint=str(tmp_path / "half.ckpt"))
    close(resumed, ours, 0.0)


# Accelerate, whose wrapper passes no arguments to a step


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs Accelerate")
    models = []
    for module in (at, torch.optim):
        accelerator = accelerate.Accelerator(cpu=True)
        model = net()
        options = {"clip_norm": 0.1, "skip_nonfinite": True} if module is at else {}
        model, opt = accelerator.prepare(model, module.AdamW(model.parameters(), lr=0.05, **options))
        for t in range(5):
            opt.zero_grad()
            accelerator.backward(torch.nn.functional.mse_loss(model(X), Y) * (float("inf") if t == 2 else 1.0))
            if module is at:
                opt.step()
            elif t != 2:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                opt.step()
        models.append(model)
    close(*models)


# transformers and PEFT


class Words(torch.utils.data.Dataset):  # type: ignore[misc, name-defined]
    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, Any]:
        ids = (torch.arange(8) * (i + 1)) % 32
        return {"input_ids": ids, "labels": ids}


def language_model() -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=8, use_cache=False)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return transformers.GPT2LMHeadModel(config)


def trained(folder: Path, model: Any, resume: Any = None, steps: int = 6, **how: Any) -> tuple[Any, list[float]]:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs Accelerate")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, logging_steps=1, learning_rate=0.01,
        save_steps=3, report_to=[], use_cpu=True, disable_tqdm=True, seed=1, lr_scheduler_type="cosine",
        max_grad_norm=1.0, weight_decay=0.1,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Words(), **how)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model, [x["loss"] for x in trainer.state.log_history if "loss" in x]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer(tmp_path: Path) -> None:
    options = {"lr": 0.01, "weight_decay": 0.1}
    _, by_theirs = trained(tmp_path / "a", language_model(), optimizer_cls_and_kwargs=(torch.optim.AdamW, options))
    model, losses = trained(tmp_path / "b", language_model(), optimizer_cls_and_kwargs=(at.AdamW, options))
    assert losses == by_theirs
    assert losses[-1] < losses[0]
    resumed, rest = trained(
        tmp_path / "b", language_model(), resume=str(tmp_path / "b" / "checkpoint-3"),
        optimizer_cls_and_kwargs=(at.AdamW, options),
    )  # fmt: skip
    close(resumed, model, 0.0)
    assert rest[-1] == losses[-1]
    given = language_model()
    opt = at.Adan(given.parameters(), lr=0.01, betas=(0.98, 0.92, 0.99))
    _, of_adan = trained(tmp_path / "c", given, optimizers=(opt, None))
    assert of_adan[-1] < of_adan[0]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs PEFT")
    losses = []
    for module in (at, torch.optim):
        model = peft.get_peft_model(
            language_model(), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        )
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trainable = [p for p in model.parameters() if p.requires_grad]
        opt = module.AdamW(trainable, lr=0.05)
        stepped, of_module = trained(tmp_path / module.__name__, model, optimizers=(opt, None))
        losses.append(of_module)
        for name, p in stepped.named_parameters():
            assert bool((p == before[name]).all()) != p.requires_grad, name
    assert losses[0] == losses[1]
