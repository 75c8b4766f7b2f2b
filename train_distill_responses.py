"""Response distillation, black box: the student learns the teacher's answers as text.

    loss = 1/n_valid * sum over response tokens t of  -ln q(y_t | question, y_<t),
    y what the teacher said: sequence-level distillation (Kim & Rush 2016)

An answer is a draw from the teacher's distribution over whole answers: with such draws,
cross-entropy is KL(teacher || student) up to a constant. So the loop is that of
train_pretrain.py. Any file of chats or instructions will do (formats: dataset/formats.py).

Where a row has a thought and an answer, such as those of blackbox/generate.py, the student learns
    --target full      all of it as plain text, no tags: the thought, then "#### " and the answer
    --target answer    the answer alone: <answer>27</answer>
Replies without these two parts are learned as they stand. Chains of thought between their tags:
train_distill_reason.py.

One CPU command (2 minutes):        python train_distill_responses.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_responses.py --size 2m
The last line but one:              out/student-responses.pt: validation ce ... nats a token ...

How it differs from Kim & Rush 2016:
1. They take the teacher's likeliest answer, found by beam search; here answers are sampled, one a
   question or several, at a temperature, and the wrong ones are dropped where that can be told.
2. They distil machine translation; here the assistant's turns count.
3. They also mix in the teacher's distribution of each token: train_distill_logits.py.
"""
from dataclasses import dataclass
from typing import Literal

import common
import train_pretrain
from common import OUT
from model import SIZES
from train_pretrain import main


@dataclass
class Config(train_pretrain.Config):
    name: str = "student-responses"  # the run: writes out/NAME.pt and out/NAME.csv
    data: str = OUT / "data/traces.jsonl"  # of blackbox/generate.py, or your own file of chats
    size: Literal[tuple(SIZES)] = "0.4m"  # shape of the model, by name: see SIZES in model.py
    target: Literal["full", "answer"] = "full"    # the whole reply as plain text, or the answer
    steps: int = 800               # optimizer steps (300 to 5,000)
    lr: float = 6e-3               # peak learning rate (1e-3 to 1e-2 for these small models)


if __name__ == "__main__":
    common.run(main, Config)
