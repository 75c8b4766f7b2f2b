"""Response distillation, black box: the student learns the teacher's answers as text.

    loss = 1/n_valid * sum over the n_valid response tokens t of  -ln q(y_t | question, y_<t),
    where y is the teacher's answer: sequence-level distillation (Kim & Rush 2016)

On answers sampled from the teacher, the mean cross-entropy is KL(teacher || student) + a constant.
So the loop is the one of train_pretrain.py. It reads chats and instructions (dataset/formats.py).
If a row has a thought and an answer, the student learns
    --target full      all of it as plain text, no tags: the thought, then "#### " and the answer
    --target answer    only the answer: <answer>27</answer>
Other replies are learned unchanged. To learn a thought with its tags, use train_distill_reason.py.

One CPU command (2 minutes):        python train_distill_responses.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_responses.py --size 2m
It ends with:                       out/student-responses.pt: validation ce ... nats a token ...

How it differs from Kim & Rush 2016:
1. They use the teacher's likeliest answer, found by beam search. Here one or several answers to a
   question are sampled at a temperature. If the right answer is known, wrong ones are dropped.
2. They distil machine translation. Here the data are conversations; the assistant's turns count.
3. They also mix in the teacher's distribution of each token: see train_distill_logits.py.
"""
from dataclasses import dataclass
from typing import Literal

import common
from model import SIZES
from train_pretrain import Config as Pretraining, main


@dataclass
class Config(Pretraining):
    name: str = "student-responses"  # name of the run: it writes out/NAME.pt and out/NAME.csv
    data: str = common.OUT / "data/traces.jsonl"  # from blackbox/generate.py, or your own chats
    size: Literal[tuple(SIZES)] = "0.4m"  # name of the model's shape: see SIZES in model.py
    target: Literal["full", "answer"] = "full"    # the whole reply as plain text, or the answer
    steps: int = 800               # optimizer steps (300 to 5,000)
    lr: float = 6e-3               # peak learning rate (1e-3 to 1e-2 for these small models)


if __name__ == "__main__":
    common.run(main, Config)
