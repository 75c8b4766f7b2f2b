"""What does a teacher know? Three tiny models learn which word comes third: `cat eats mice`.

    python lessons/1-soft-targets/toy.py --seed 0 --lines 200 --teacher-lines 20000 --temperature 2

The teacher reads --teacher-lines lines. Two students start equal and read the same --lines lines.
One learns each line's third word (the label), the other the teacher's probabilities of all words.
"""
import argparse

import torch
from torch import nn

ANIMALS = "cat fox owl cow goat horse hen duck goose seal gull heron".split()  # 4 kinds of 3
HABITS = dict(  # what each kind eats, fears and likes: five words, the likeliest first
    eats=["mice birds fish meat milk", "grass hay corn leaves bread",
          "corn worms seeds grass bread", "fish crabs squid worms bread"],
    fears=["dogs fire noise water men", "wolves fire noise flies dogs",
           "foxes dogs hawks noise men", "sharks storms hawks men noise"],
    likes=["night trees sleep warmth mice", "meadows shade water company sleep",
           "ponds company straw shade worms", "rocks waves ponds warmth company"])
SHARES = torch.tensor([0.5, 0.25, 0.13, 0.08, 0.04])  # how often each of the five words follows
WORDS = sorted(set(" ".join([*ANIMALS, *HABITS, *sum(HABITS.values(), [])]).split()))


def make_lines(count):
    """-> the first two words (count, 2) and the label (count,), as numbers of words in WORDS."""
    ids, verbs = [], list(HABITS)
    for place in torch.multinomial(SHARES, count, replacement=True):
        animal, verb = torch.randint(12, ()), verbs[torch.randint(3, ())]
        line = ANIMALS[animal], verb, HABITS[verb][animal // 3].split()[place]
        ids.append([WORDS.index(word) for word in line])
    ids = torch.tensor(ids)
    return ids[:, :2], ids[:, 2]


def make_model(hidden):
    """Two words (N, 2) -> logits (N, V). `hidden` is the number of units in the middle."""
    return nn.Sequential(nn.Embedding(len(WORDS), 16), nn.Flatten(), nn.Linear(32, hidden),
                         nn.ReLU(), nn.Linear(hidden, len(WORDS)))


def train(model, words, targets, test, temperature=1.0):
    """Targets (N, V) are probabilities. -> a list of (step, loss on the test lines, accuracy)."""
    optimizer, curve = torch.optim.Adam(model.parameters(), lr=0.01), []
    for step in range(1, 401):
        rows = torch.randint(len(words), (200,))
        log_q = torch.log_softmax(model(words[rows]) / temperature, -1)           # (200, V)
        loss = temperature ** 2 * -(targets[rows] * log_q).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (25, 50, 100, 200, 400):
            logits = model(test[0]).detach()
            right = (logits.argmax(-1) == test[1]).float().mean().item()
            curve.append((step, nn.functional.cross_entropy(logits, test[1]).item(), right))
    return curve


def main(seed, lines, teacher_lines, temperature):
    torch.manual_seed(seed)
    (words, labels), test, many = (make_lines(n) for n in (lines, 5000, teacher_lines))
    one_hot = torch.eye(len(WORDS))  # row i: the label i as probabilities, 1 for it, 0 for others
    teacher, alone, taught = models = make_model(64), make_model(16), make_model(16)
    taught.load_state_dict(alone.state_dict())
    known = train(teacher, many[0], one_hot[many[1]], test)
    soft = torch.softmax(teacher(words).detach() / temperature, -1)               # (lines, V)
    a, b = train(alone, words, one_hot[labels], test), train(taught, words, soft, test, temperature)
    print("loss on new lines   labels                          with teacher")
    for (step, x, _), (_, y, _) in zip(a, b):
        bars = f"{x:.2f} {'█' * round(x * 8):26} {y:.2f} {'█' * round(y * 8)}"
        print(f"after step {step:3}      {bars}")
    for name, curve in zip(("labels", "with teacher", "teacher"), (a, b, known)):
        print(f"{name:12} loss {curve[-1][1]:.2f}, right on {curve[-1][2]:.1%} of the new lines")
    print(f"perfect      loss {-(SHARES * SHARES.log()).sum():.2f}, right on 50%")
    row = (soft.argmax(-1) != labels).nonzero()[0]  # a line whose label is not the likeliest word
    logits = torch.cat([model(words[row]).detach() for model in models])          # (3, V)
    for tau in (1, 2, 4):
        print(f"\n{' '.join(WORDS[i] for i in words[row][0])}: temperature {tau}\n{'':9}"
              "its label         teacher           labels            with teacher")
        for i in logits[0].topk(5).indices:
            shares = [one_hot[labels[row], i], *torch.softmax(logits / tau, -1)[:, i]]
            bars = (f"{'█' * round(p.item() * 12):12}{p.item():5.0%}" for p in shares)
            print(f"{WORDS[i]:8}", *bars)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, default in dict(seed=0, lines=200, teacher_lines=20000, temperature=2.0).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    main(**vars(parser.parse_args()))
