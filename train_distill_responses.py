"""Response distillation, black box: the student learns the teacher's answers as text.

    loss = 1/n_valid * sum over response tokens t of  -ln q(y_t | question, y_<t),
    y what the teacher said: sequence-level distillation (Kim & Rush 2016)

On answers drawn from the teacher, cross-entropy is KL(teacher || student) up to a constant. So the
loop is that of train_pretrain.py. Any file of chats or instructions will do: dataset/formats.py.
If a row has a thought and an answer, the student learns
    --target full      all of it as plain text, no tags: the thought, then "#### " and the answer
    --target answer    only the answer: <answer>27</answer>
Other replies are learned as they are. Thoughts between their tags: train_distill_reason.py.

One CPU command (2 minutes):        python train_distill_responses.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_responses.py --size 2m
The last line but one:              out/student-responses.pt: validation ce ... nats a token ...

How it differs from Kim & Rush 2016:
1. They take the teacher's likeliest answer, found by beam search; here answers are sampled, one a
   question or several, at a temperature, and the wrong ones are dropped where that can be told.
2. They distil machine translation; here the assistant's turns count.
3. They also mix in the teacher's distribution of each token: see train_distill_logits.py.
"""
from dataclasses import dataclass
from typing import Literal

import common
from model import SIZES
from train_pretrain import Config as Pretraining, main


@dataclass
class Config(Pretraining):
    name: str = "student-responses"  # the run: writes out/NAME.pt and out/NAME.csv
    data: str = common.OUT / "data/traces.jsonl"  # of blackbox/generate.py, or your own chats
    size: Literal[tuple(SIZES)] = "0.4m"  # shape of the model, by name: see SIZES in model.py
    target: Literal["full", "answer"] = "full"    # the whole reply as plain text, or the answer
    steps: int = 800               # optimizer steps (300 to 5,000)
    lr: float = 6e-3               # peak learning rate (1e-3 to 1e-2 for these small models)


if __name__ == "__main__":
    common.run(main, Config)
