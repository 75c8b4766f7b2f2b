"""Claims about fused.py: the plain loss and its gradients, but never all logits in memory."""
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fused
from common import ROOT
from fused import FusedLoss
from losses import cross_entropy, divergence, total
from test_cache import make
from test_divergences import CASES

N, D, TEACHER_D, V = 37, 16, 24, 50


def inputs(dtype=torch.float32, n=N, v=V):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g)
    weight = torch.rand(n, generator=g) + 0.5
    weight[3:4] = 0  # a token that does not count
    hidden, head = draw(n, D).to(dtype).requires_grad_(), (draw(v, D) * 0.5).requires_grad_()
    return (hidden, head, torch.randint(v, (n,), generator=g), weight,
            draw(n, TEACHER_D).to(dtype), draw(v, TEACHER_D) * 0.5)


def plain(hidden, head, y, weight, teacher_hidden, teacher_head, alpha, name, tau, mix):
    logits = hidden @ head.to(hidden.dtype).T
    teacher_logits = teacher_hidden @ teacher_head.to(hidden.dtype).T
    ce = cross_entropy(logits, y)
    kd = divergence(name, logits, teacher_logits, tau, mix)
    return (total((1 - alpha) * ce + alpha * kd, weight), total(ce, weight), total(kd, weight),
            total(cross_entropy(teacher_logits, y), weight))


def both(*how, dtype=torch.float32):
    """[fused, plain]: (four sums (4,), gradient of hidden (N, D), gradient of head (V, D)) each."""
    found = []
    for way in (FusedLoss.apply, plain):
        hidden, head, *rest = inputs(dtype)
        sums = way(hidden, head, *rest, *how)
        (sums[0] / 30).backward()  # the others have no gradient: it would be 0, without an error
        assert way is plain or not any(value.requires_grad for value in sums[1:])
        found.append((torch.stack([s.detach() for s in sums]), hidden.grad, head.grad))
    return found


@pytest.mark.parametrize("name, mix", CASES)
@pytest.mark.parametrize("chunk", [1, 7 * V, 10**9])
def test_values_and_gradients_are_the_plain_ones(name, mix, chunk, monkeypatch):
    """TRAPS 6: a fused path that differs from the plain one trains another objective silently."""
    monkeypatch.setattr(fused, "CHUNK", chunk)
    for dtype, tau, bound in ((torch.float32, 2.0, 1e-5), (torch.bfloat16, 1.0, 2e-2)):
        for a, b in zip(*both(0.7, name, tau, mix, dtype=dtype)):
            assert (a.float() - b.float()).norm() <= bound * b.float().norm()


def test_the_matrix_gradients_of_a_thousand_chunks_are_summed_in_float32(monkeypatch):
    """A bfloat16 sum (8 bits) ignores numbers below its last bit: the gradient was off by 3 %."""
    monkeypatch.setattr(fused, "CHUNK", V)  # one token at a time
    gradients = []
    for dtype, way in ((torch.bfloat16, FusedLoss.apply), (torch.float32, plain)):
        tensors = [t.detach().bfloat16().to(dtype) if t.dim() == 2 else t
                   for t in inputs(torch.bfloat16, n=1000)]  # both read the same numbers
        head = tensors[1] = tensors[1].float().requires_grad_()
        way(*tensors, 0.7, "forward_kl", 1.0, None)[0].backward()
        gradients.append(head.grad)
    ours, exact = gradients
    assert (ours - exact).norm() <= 5e-3 * exact.norm()


def test_no_tensor_of_all_logits_is_ever_made(monkeypatch):
    """The fused loss exists to avoid this tensor. Checking shapes finds what a memory meter might miss."""
    monkeypatch.setattr(fused, "CHUNK", 4 * V)
    tensors, largest = inputs(), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out
    with Watch():
        FusedLoss.apply(*tensors, 1.0, "forward_kl", 1.0, None)[0].backward()
    assert max(largest) <= V * TEACHER_D < N * V


def test_no_token_gives_zero_and_zero_gradients():
    """TRAPS 9: a step without a token that counts must not give NaN."""
    _, head, *_ = tensors = inputs(n=0)
    loss = FusedLoss.apply(*tensors, 1.0, "forward_kl", 1.0, None)[0]
    loss.backward()
    assert loss == 0 and (head.grad == 0).all()


@pytest.mark.parametrize("flags", [{}, dict(accumulate=2, divergence="jsd", beta=0.2),
                                   dict(alpha=1, temperature=4), dict(cache="hidden")], ids=str)
def test_the_script_trains_the_same_student_either_way(flags, train, make, out_dir, monkeypatch):
    """TRAPS 6, in the script: one of the two paths could use another mask, normaliser or teacher."""
    monkeypatch.setattr(fused, "CHUNK", 5 * 320)
    if "cache" in flags:
        flags = dict(cache=make(kind="hidden"))
    on, off = (train("distill_logits", name=name, fused=name, **flags)["model"] for name in ("on", "off"))
    for name, weights in off.items():
        assert (on[name] - weights).norm() <= 1e-4 * weights.norm(), name
    on, off = (np.loadtxt(out_dir / f"{name}.csv", delimiter=",", skiprows=1, usecols=(1, 2, 3, 4))
               for name in ("on", "off"))
    assert on == pytest.approx(off, rel=1e-4)


MEASURE = """
from types import SimpleNamespace
import torch
from fused import fused_step
from model import ModelConfig, Transformer, with_layers
from optim import make_optimizers
torch.manual_seed(0)
teacher = Transformer(ModelConfig(49152, 576, 30, 9, 3, 64, 1536, 256, qk_norm=False)).requires_grad_(False)
model = with_layers(teacher, range(1, 31, 2)).requires_grad_(True)
x = torch.randint(49152, (8, 256))
cfg = SimpleNamespace(alpha=0.5, divergence="forward_kl", temperature=1.0)
env = SimpleNamespace(dtype="float32", device=x.device, autocast=lambda: torch.autocast("cpu", enabled=False))
memory = lambda key: next(int(line.split()[1]) for line in open("/proc/self/status") if key in line) / 1e6
optimizers, before = make_optimizers(model, "muon", 1e-3, 0.1), memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # forget the peak
fused_step(cfg, env, model, teacher, x, x, torch.ones_like(x), torch.ones(8, 256), None, 2048)
for optimizer in optimizers:
    optimizer.step()
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_with_49152_tokens_needs_less_than_3_gb():
    """SmolLM2-135M teaches half of itself in float32. Logits of both, and each gradient of them, would be 0.8 GB."""
    run = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and 0.5 < float(run.stdout) < 3, run.stdout + run.stderr


def test_it_is_chosen_by_size_and_never_beside_a_cache_without_hidden_states():
    """With a small vocabulary the loop costs time and saves nothing."""
    base = dict(batch=8, window=256, accumulate=1, fused="auto")
    chosen = lambda v, *cache, **changes: fused.use_fused(Mock(**base | changes), Mock(world=1), v, *cache)
    assert chosen(151_936) and chosen(32_768) and not chosen(32_768, accumulate=8)
    assert chosen(32_768, dict(kind="hidden")) and not (chosen(1024) or chosen(151_936, dict(kind="topk")))
