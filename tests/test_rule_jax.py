"""The function for JAX of a rule that was made at run time."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import RULES, same_bits
from traced_rules import traced

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
import adaptk.jax  # noqa: E402


def trained(opt: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=5000), jnp.float32), "b": jnp.ones((3, 2), jnp.float32)}
    state = opt.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        params, state = opt.apply(params, grads, state)
    return jax.tree.leaves((params, state))


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"state_dtype": "8bit"}])
@pytest.mark.parametrize("rule", [r for r in RULES if all(s.option is None for s in RULES[r].states)])
def test_the_bits_of_the_compiled_rule(rule: str, options: dict[str, Any]) -> None:
    with traced(rule) as made:
        for a, b in zip(trained(getattr(adaptk.jax, rule)(**options)), trained(made.jax(**options)), strict=True):
            assert same_bits(np.asarray(a), np.asarray(b))


def test_same_interface_as_built_in_rules() -> None:
    with traced("adam") as made:
        opt = made.jax(0.1, beta1=0.8)
        assert repr(opt) == "adaptk.jax.traced_adam(learning_rate=0.1, beta1=0.8)"
        assert opt.rule == "traced_adam"
        assert "learning_rate : float" in (made.jax.__doc__ or "")
        with pytest.raises(TypeError, match="beta"):
            made.jax(beta=1)
        with pytest.raises(ValueError, match="learning_rate"):
            made.jax(-1.0)
        params = jnp.ones(3)
        state = opt.init(params)
        step = jax.jit(opt.apply)
        params, state = step(params, jnp.ones(3), state)
        assert type(state).__name__ == "TracedAdamState"
        assert np.asarray(params)[0] == pytest.approx(0.9)
        again = pickle.loads(pickle.dumps(opt))
        saved = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))
        assert type(saved) is type(state)
        a, _ = opt.apply(params + 0, jnp.ones(3), jax.tree.map(jnp.asarray, saved))
        b, _ = again.apply(params, jnp.ones(3), state)
        assert same_bits(np.asarray(a), np.asarray(b))


def test_works_after_unregister() -> None:
    with traced("lion") as made:
        pass
    opt = made.jax()
    assert repr(opt) == "adaptk.jax.traced_lion()"
    data = pickle.dumps(opt)
    with traced("lion"):
        pass
    for a, b in zip(trained(opt), trained(pickle.loads(data)), strict=True):
        assert same_bits(np.asarray(a), np.asarray(b))


def test_made_before_the_module_is_imported() -> None:
    script = (
        "import adaptk\n"
        "@adaptk.rule(lr=0.1)\n"
        "def plain(p, g, h, t):\n"
        "    return p - h.lr * g\n"
        "plain.jax().init([])\n"
        "import adaptk.jax\n"
        "assert not hasattr(adaptk.jax, 'plain')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
