"""Choose the blocks of a teacher that its student starts from: leave out each one and measure.

    python runs/prune.py out/smollm2.pt --keep 15 --out out/smollm2-half.pt       2 minutes
    expected last line: next: python train_distill_logits.py --init out/smollm2-half.pt ...

Without a block the cross-entropy on validation text is higher. The blocks that matter least go.
Source: Men et al. 2024 (ShortGPT) leave out blocks by another measure, Kim et al. 2024 (Shortened
LLaMA) by this one.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common

import checkpoints
from common import OUT, check, show
from dataset.windows import open_data, validation_ce
from model import with_layers


@dataclass
class Config:
    checkpoint: list = None        # the teacher
    val: str = OUT / "data/prose/val.jsonl"  # text to measure on; not the text of any test
    keep: int = 15                 # how many blocks to keep
    out: str = ""                  # the checkpoint to write
    windows: int = 8               # windows of 256 tokens to measure on (8 to 64)
    dtype: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 if the hardware has it
    fresh: bool = False            # replace an existing file


def main(cfg):
    path, = cfg.checkpoint or [OUT / "teacher.pt"]
    check(cfg.out and (cfg.fresh or not Path(cfg.out).exists()), "--out must name a new file")
    env = common.device_and_dtype(cfg)
    env.rank, env.world = 0, 1
    teacher, tokenizer, state = checkpoints.load_model(path, env.device)
    kept = list(range(1, teacher.config.n_layers + 1))
    check(0 < cfg.keep < len(kept), f"--keep {cfg.keep}: the teacher has {len(kept)} blocks")
    val = open_data(cfg.val, tokenizer, 256)
    how = SimpleNamespace(batch=8, eval_windows=cfg.windows, val=cfg.val)

    def loss(numbers):
        return validation_ce(with_layers(teacher, numbers).to(env.device), val, how, env)

    print(f"{show(path)}: {len(kept)} blocks, {loss(kept):.3f} nats a token")
    found = {n: loss([other for other in kept if other != n])
             for n in common.progress("blocks left out:", kept)}
    print("without a block:", ", ".join(f"{n} {ce:.3f}" for n, ce in found.items()))
    kept = sorted(sorted(found, key=found.get)[-cfg.keep:])  # the loss rises most without these
    student = with_layers(teacher, kept)
    print(f"kept: {','.join(map(str, kept))}, {loss(kept):.3f} nats a token")
    checkpoints.save(cfg.out, dict(
        model=student.state_dict(), model_config=vars(student.config), tokenizer=state["tokenizer"],
        source=dict(checkpoints.parent(state).get("source", {}), blocks=kept), inputs={},
        step=0, tokens=0))
    print("next: " + common.command("train_distill_logits.py", init=Path(cfg.out), teacher=path,
                                    data="TEXT", val=cfg.val, optimizer="adamw", lr="1e-3"))


if __name__ == "__main__":
    common.run(main, Config)
