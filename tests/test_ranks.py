"""Claims about torchrun: two processes train like one. torchrun also starts this file, as `worker`. Only the first
step's gradients are compared to 1e-5: Muon and Adam divide by a gradient's size, so later steps amplify rounding."""
import csv
import hashlib
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("pretrain", "distill_logits", "distill_reason", "distill_features", "distill_onpolicy", "distill_responses")
KNOBS = {"distill_logits": dict(alpha=0.7, temperature=2), "distill_reason": dict(tag_weight=3),
         "distill_features": dict(hidden_loss="cosine"),
         "distill_onpolicy": dict(sample_temperature=0)}  # greedy: one or two processes write the same


def worker(script, folder, stop_at, *flags):
    """Run one rank. Save its gradients and a hash of its parameters. In step `stop_at` only rank 1 gets a SIGTERM."""
    sys.path.insert(0, str(ROOT))
    import common
    module, rank = importlib.import_module(f"train_{script}"), int(os.environ.get("RANK", 0))
    clip, gradients, models = torch.nn.utils.clip_grad_norm_, [], []

    def record(parameters, *rest, **named):
        parameters = list(parameters)
        gradients.append(torch.cat([p.grad.flatten().clone() for p in parameters]))
        models[:] = [parameters]
        if len(gradients) == int(stop_at) and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return clip(parameters, *rest, **named)
    torch.nn.utils.clip_grad_norm_ = record
    sys.argv = [script, *flags]
    try:
        common.run(module.main, module.Config)
    finally:
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in models[0])).hexdigest()
        torch.save(dict(gradients=gradients, parameters=digest), f"{folder}/rank{rank}.pt")


def launch(processes, script, folder, flags, stop_at=0):
    """-> (output, [what each rank saved]). The status must be 0, except if stop_at stops the run."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={processes}"] if processes > 1 else [sys.executable]
    done = subprocess.run([*command, __file__, script, str(folder), str(stop_at), *flags], timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert (done.returncode == 0) == (stop_at == 0), done.stdout + done.stderr
    return done.stdout + done.stderr, [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


def losses(out, name):
    with open(out / f"{name}.csv", newline="") as file:
        return [float(row["ce"]) for row in csv.DictReader(file)]


MORE = [("distill_features", dict(size="0.9m", relation_weight=0, relation_heads=None)),  # with projections
        ("distill_logits", dict(fused="on")),
        ("distill_reason", dict(target="multi")),  # each row is two examples
        *(("distill_logits", dict(divergence=name)) for name in (
            "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation"))]


@pytest.mark.slow
@pytest.mark.parametrize("script, more", [*((s, {}) for s in SCRIPTS), *MORE], ids=str)
def test_two_processes_give_the_gradient_of_one_and_stay_equal(script, more, tiny_world, out_dir, tmp_path):
    """TRAPS 11 and 12: a mean of the ranks' means, or a module whose gradients are not summed over ranks."""
    def flags(name, **changes):
        return tiny_world.flags(script, name=name, steps=6, eval_every=3, eval_windows=0,
                                **KNOBS.get(script, {}) | more, **changes)
    _, [one] = launch(1, script, tmp_path / "one", flags("one"))
    said, two = launch(2, script, tmp_path / "two", flags("two", accumulate=2))
    assert "2 process(es)" in said  # each line is printed once, not by each rank:
    assert said.count("| val ce") == 2 and said.count("validation ce") == 1

    difference = two[0]["gradients"][0] - one["gradients"][0]
    assert difference.norm() <= 1e-5 * one["gradients"][0].norm()
    assert len(two[0]["gradients"]) == len(two[1]["gradients"]) == 6
    assert all(map(torch.equal, two[0]["gradients"], two[1]["gradients"]))
    assert two[0]["parameters"] == two[1]["parameters"] != one["parameters"]
    assert losses(out_dir, "two") == pytest.approx(losses(out_dir, "one"), rel=1e-3)
    states = [torch.load(out_dir / f"{name}.pt", weights_only=True) for name in ("one", "two")]
    assert all(states[0][counted] == states[1][counted] for counted in ("tokens", "supervised"))
    assert states[0]["best_ce"] == pytest.approx(states[1]["best_ce"], rel=1e-3)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_to_the_same_bits(tiny_world, out_dir, tmp_path):
    """If only one rank stops, the others wait for it forever."""
    def flags(name):
        return tiny_world.flags("pretrain", name=name, steps=6, eval_every=2)
    _, whole = launch(2, "pretrain", tmp_path / "whole", flags("whole"))
    said, _ = launch(2, "pretrain", tmp_path / "broken", flags("broken"), stop_at=3)
    assert "same command goes on" in said
    assert torch.load(out_dir / "broken.pt", weights_only=True)["step"] == 3
    said, again = launch(2, "pretrain", tmp_path / "again", flags("broken"))
    assert "resuming after step 3" in said
    assert again[0]["parameters"] == again[1]["parameters"] == whole[0]["parameters"]
    assert losses(out_dir, "broken") == losses(out_dir, "whole")


if __name__ == "__main__":
    worker(*sys.argv[1:])
