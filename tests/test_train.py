"""Claims about the training loops: each step's gradient is what the formula in the docstring says."""
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import checkpoints
import train_distill_responses
import train_pretrain
from common import ROOT
from dataset import windows
from dataset.windows import eval_batches, open_data, step_batches, step_windows
from dataset.formats import encode_document, read_documents
from optim import get_lr

ENV = SimpleNamespace(rank=0, world=1, device="cpu", autocast=torch.no_grad)
ALPHA, TEMPERATURE, TAG_WEIGHT = 0.7, 1.5, 3.0  # no defaults: a flag without effect shows
KNOBS = {"pretrain": {}, "distill_logits": dict(alpha=ALPHA, temperature=TEMPERATURE),
         "distill_reason": dict(tag_weight=TAG_WEIGHT), "distill_responses": dict(window=150),
         "distill_features": dict(alpha=ALPHA, temperature=TEMPERATURE)}
all_scripts = pytest.mark.parametrize("script", KNOBS)


@pytest.fixture
def gradients(monkeypatch):
    """-> list: the gradient of each step as one vector, recorded when the script clips it."""
    steps, clip = [], torch.nn.utils.clip_grad_norm_

    def record(parameters, *rest, **named):
        parameters = list(parameters)
        steps.append(torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten().clone()
                                for p in parameters]))
        return clip(parameters, *rest, **named)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    return steps


def fake_data(ids, mask, document):
    """What open_data returns, made by hand: arrays (windows, window + 1)."""
    return dict(ids=np.array(ids), mask=np.array(mask), document=np.array(document),
                meta=dict(source_sha256="fake", documents=1, padding_share=0.0, windows=len(ids),
                          window=len(ids[0]) - 1, tokens=0, supervised=0, spelled=0, left_out={}))


def relative(a, b):
    """|a - b| / |b|"""
    return ((a - b).norm() / b.norm()).item()


def config(**values):
    return SimpleNamespace(**dict(batch=4, accumulate=1, seed=0) | values)


def features_by_hand(model, teacher, ids, hidden_weight, relation_weight):
    """One document (1, T) -> its feature terms (T,): last blocks, two relation heads, PyTorch's losses."""
    seen = [], []
    for network, features in zip((model, teacher), seen):
        network.hidden_states(ids, features=features)
    hidden = F.mse_loss(*(blocks[-1]["hidden"][0] for blocks in seen), reduction="none").mean(-1)
    relation = 0.0
    for which in "qkv":
        flat = [blocks[-1][which][0].transpose(0, 1).flatten(1) for blocks in seen]  # (T, heads * C)
        for pair in zip(*(x.chunk(2, -1) for x in flat)):
            log_q, log_p = (
                F.log_softmax((x @ x.T / x.shape[1] ** 0.5 + torch.full((len(x),) * 2, -1e9).triu(1)), -1)
                for x in pair)
            relation += F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) / 6
    return hidden_weight * hidden + relation_weight * relation


def expected_gradient(script, world, tokenizer):
    """-> the gradient of the formula as one vector, over all documents of the file, one at a time."""
    model = checkpoints.load_model(world.init)[0].requires_grad_(True)
    teacher = checkpoints.load_model(world.teacher)[0]
    loss, n_valid = 0.0, 0.0
    for _, document in read_documents(world.train):
        ids, mask = encode_document(tokenizer, document)
        if script == "distill_responses":  # <user> 4, <end> 2, <assistant> 5, and no other control token
            asked, told = document
            asked = [4, *tokenizer.encode(asked.content), 2, 5]
            said = [*tokenizer.encode(f"{told.think}\n#### {told.answer}"), 2]
            ids, mask = asked + said, [0] * len(asked) + [1] * len(said)
        weights = torch.tensor(mask[1:], dtype=torch.float32)                     # (T,)
        labels = torch.tensor(ids[1:])                                            # (T,)
        logits = model(torch.tensor([ids[:-1]]))[0]                               # (T, V)
        values = F.cross_entropy(logits, labels, reduction="none")                # (T,)
        if script in ("distill_logits", "distill_features"):
            log_p = F.log_softmax(teacher(torch.tensor([ids[:-1]]))[0] / TEMPERATURE, -1)
            log_q = F.log_softmax(logits / TEMPERATURE, -1)
            kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
            values = (1 - ALPHA) * values + ALPHA * TEMPERATURE ** 2 * kl
        if script == "distill_features":  # weights as in conftest.py
            values = values + features_by_hand(model, teacher, torch.tensor([ids[:-1]]), 0.5, 2)
        if script == "distill_reason":  # ids 6 to 9: <think> </think> <answer> </answer>
            weights = weights * torch.where((labels >= 6) & (labels <= 9), TAG_WEIGHT, 1.0)
        loss, n_valid = loss + (values * weights).sum(), n_valid + weights.sum()
    (loss / n_valid).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@all_scripts
def test_one_two_four_or_eight_micro_batches_give_the_gradient_of_the_formula(
        script, train, gradients, tiny_world, tiny_tokenizer):
    """TRAPS 1, 2, 4, 7, 8, 9, 10, 24, 27: a wrong normaliser, shift, mask or mean, or a flag without effect."""
    data = open_data(tiny_world.train, tiny_tokenizer, 143)
    batches, _, _ = step_batches(data, 0, config(batch=16, accumulate=4), ENV)
    assert len({weight.sum().item() for *_, weight, _ in batches}) > 1  # otherwise a mean of means would be right
    assert len(data["ids"]) == 16 and (data["document"].max(1) > 1).all()  # all windows are packed
    expected = expected_gradient(script, tiny_world, tiny_tokenizer)
    flags = dict(KNOBS[script], init=tiny_world.init, batch=16, steps=1, fresh=True)
    for accumulate in (1, 2, 4, 8):
        train(script, accumulate=accumulate, **flags)
        assert relative(gradients[-1], expected) <= 1e-5, accumulate


@all_scripts
def test_appended_padding_changes_nothing(script, train, gradients, monkeypatch, tiny_world, tiny_tokenizer):
    """TRAPS 8: padding that counts, or that tokens see, makes the loss depend on the shape of the batch."""
    real = open_data(tiny_world.train, tiny_tokenizer, 143)
    arrays = [np.array(real[name]) for name in ("ids", "mask", "document")]
    ces, flags = [], dict(KNOBS[script], init=tiny_world.init, steps=1, fresh=True)
    for extra_windows, extra_columns in ((0, 0), (0, 13), (4, 0), (8, 13)):
        wider = [np.pad(a, ((0, extra_windows), (0, extra_columns)), constant_values=value)
                 for a, value in zip(arrays, (42, 0, 0))]  # padding may have any id
        monkeypatch.setattr(windows, "open_data", lambda *_, **__: fake_data(*wider))
        train(script, batch=16 + extra_windows, **flags)
        ces.append(float(train.rows[0]["ce"]))
        assert relative(gradients[-1], gradients[0]) <= 1e-5
        assert ces[-1] == pytest.approx(ces[0], rel=1e-6)


@all_scripts
def test_a_step_without_a_counted_token_changes_no_gradient_to_nan(script, train, gradients, monkeypatch):
    """TRAPS 9: 0/0 = NaN if a whole step is prompt."""
    shape = (8, 20)
    prompts = fake_data(np.full(shape, 6), np.zeros(shape), np.ones(shape))  # 6: <think>
    both = [prompts, fake_data(np.full(shape, 42), np.ones(shape), np.ones(shape))]  # train, val
    monkeypatch.setattr(windows, "open_data", lambda *_, **__: both.pop())
    train(script, steps=2, **KNOBS[script])
    assert [float(row["ce"]) for row in train.rows] == [0, 0]
    assert gradients[0].abs().max() == 0 and gradients[1].abs().max() == 0


def test_alpha_0_is_pretraining(train, gradients):
    """Weights and gradients are those of pretraining to the bit: loading a teacher must not use random numbers."""
    pretrained = train("pretrain", steps=3)
    distilled = train("distill_logits", name="other", alpha=0, steps=3)
    assert all(torch.equal(gradients[step], gradients[3 + step]) for step in range(3))
    assert all(torch.equal(weight, distilled["model"][name]) for name, weight in pretrained["model"].items())


def test_the_teacher_is_frozen_in_eval_mode_and_without_gradient(train, tiny_world, monkeypatch):
    """TRAPS 19: dropout in the teacher makes the targets noisy. Its graph doubles the memory."""
    loaded, passes = checkpoints.load_model(tiny_world.teacher), []
    teacher, before = loaded[0], checkpoints.load(tiny_world.teacher)["model"]
    teacher.register_forward_hook(lambda net, *_: passes.append((net.training, torch.is_grad_enabled())))
    monkeypatch.setattr(checkpoints, "load_model", lambda *_, **__: loaded)
    train("distill_logits", steps=2)
    assert len(passes) > 2 and set(passes) == {(False, False)}
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(w, before[name]) for name, w in teacher.state_dict().items())


class OneHotTeacher(torch.nn.Module):
    """A teacher that is certain that 10 + (7 x_t mod 31) follows x_t, whatever the text says."""
    config = type("Config", (), dict(max_seq_len=160, vocab_size=320))

    def forward(self, x, document=None, keep=None):
        logits = 40.0 * F.one_hot(10 + 7 * x % 31, self.config.vocab_size)  # (B, T, V)
        return logits if keep is None else logits[keep]


def test_a_one_hot_teacher_at_t_plus_1_is_learned_to_its_argmax(train, monkeypatch, tiny_tokenizer, out_dir):
    """TRAPS 7: a teacher, mask or label that is not shifted is off by one, and training still seems to work."""
    monkeypatch.setattr(checkpoints, "load_model", lambda *_, **__: (OneHotTeacher().eval(), tiny_tokenizer, {}))
    rng = np.random.default_rng(0)
    ids = rng.integers(10, 41, (64, 25))  # (windows, window + 1): random, so only the teacher can be learned
    data = fake_data(ids, rng.integers(0, 2, ids.shape), np.ones(ids.shape))
    monkeypatch.setattr(windows, "open_data", lambda *_, **__: data)
    train("distill_logits", alpha=1, steps=60, batch=32, lr=2e-2, eval_every=60)
    monkeypatch.undo()
    student, _, _ = checkpoints.load_model(out_dir / "run.pt")
    x = torch.from_numpy(ids[:, :-1])
    learned = (student(x).argmax(-1) == 10 + 7 * x % 31).double().mean().item()
    assert learned > 0.99 and float(train.rows[-1]["kd"]) < 0.1


def test_the_self_check_prints_the_numbers_that_must_be_right(train):
    """A wrong teacher, loss or start would be seen only after an hour of training."""
    train("distill_logits", steps=1)
    zero, start, guessing = (float(re.search(words, train.said)[1]) for words in (
        r"KL\(teacher\|\|teacher\) (\S+) must be 0", r"ce at start +(\S+) nats", r"ln V = (\S+) is guessing"))
    assert zero == 0 and abs(start - guessing) < 0.1  # small weights at init


def test_every_epoch_takes_each_window_once_in_an_order_of_its_own():
    """A window that is left out or taken twice, or the same order in every epoch."""
    windows, batch = 10, 4  # 5 steps are 2 epochs; the third step has windows of both
    steps = [step_windows(windows, step, batch, seed=0).tolist() for step in range(5)]
    first, second = (sum(steps, [])[start:start + 10] for start in (0, 10))
    assert sorted(first) == sorted(second) == list(range(windows)) and first != second
    for step in reversed(range(5)):  # a resumed run continues with the next windows
        assert step_windows(windows, step, batch, seed=0).tolist() == steps[step]
        assert step_windows(windows, step, batch, seed=1).tolist() != steps[step]


def test_y_is_x_shifted_and_tag_weight_reaches_the_tags_of_the_response_only():
    """TRAPS 7, 24, 25: with the mask of x the first response token is never learned. Tags in prompts have no weight."""
    ids = np.array([[4, 6, 7, 50, 5, 6, 51, 7, 8, 52, 9, 2]])  # tags in the prompt, too
    mask = np.array([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]])
    data = fake_data(ids, mask, np.ones(ids.shape))
    [(x, y, _, weight, _)], n_valid, _ = step_batches(data, 0, config(batch=1), ENV, {6, 7, 8, 9}, 5.0)
    assert (x.tolist(), y.tolist()) == (ids[:, :-1].tolist(), ids[:, 1:].tolist())
    assert weight[0].tolist() == [0, 0, 0, 0, 5, 1, 5, 5, 1, 5, 1]  # y: 6 7 50 5 | 6 51 7 8 52 9 2
    assert n_valid == 23
    [(_, _, _, plain, _)], n_valid, _ = step_batches(data, 0, config(batch=1), ENV, {6, 7, 8, 9}, 1.0)
    assert plain.sum() == n_valid == 7


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_and_micro_batches_share_a_step_out_under_one_normaliser(world, accumulate):
    """TRAPS 10 and 11: n_valid of only a part of the step, or a window that is used twice or never."""
    rng = np.random.default_rng(1)
    ids, document = np.arange(8 * 6).reshape(8, 6), np.ones((8, 6), dtype=int)
    document[:, -2:] = 0
    data, cfg = fake_data(ids, rng.integers(0, 2, ids.shape), document), config(accumulate=accumulate)
    seen, counts = [], []
    for rank in range(world):
        env = SimpleNamespace(rank=rank, world=world, device="cpu")
        batches, n_valid, counted = step_batches(data, 1, cfg, env)
        assert len(batches) == accumulate
        seen += [row for x, *_ in batches for row in (x[:, 0] // 6).tolist()]
        counts += [weight.sum().item() for *_, weight, _ in batches]
        assert [n for *_, numbers in batches for n in numbers] == seen[-sum(len(b[0]) for b in batches):]
        assert counted["tokens"] == 4 * 4  # through the student: without padding, of all ranks
        assert counted["supervised"] == n_valid == data["mask"][step_windows(8, 1, 4, 0), 1:].sum()
    assert sum(counts) == n_valid and sorted(seen) == sorted(step_windows(8, 1, 4, 0).tolist())


@all_scripts
def test_the_log_has_every_step_and_the_checkpoint_the_best_weights(script, train, tiny_world, out_dir):
    """A schedule that is not applied, a step that is logged twice or never, or the last weights instead of the best."""
    state = train(script, steps=6, lr=3, warmup=4, weight_decay=0, eval_every=1, eval_windows=0)
    rows = train.rows
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6] and state["step"] == 6
    assert [float(row["lr"]) for row in rows] == [get_lr(step, 6, 3, 4) for step in range(6)]
    assert {g["lr"] for saved in state["optimizers"] for g in saved["param_groups"]} == {get_lr(5, 6, 3, 4)}
    assert state["tokens"] == sum(int(row["tokens"]) for row in rows) > state["supervised"] > 0
    ces = [float(row["val_ce"]) for row in rows]  # the high lr makes it diverge
    assert len(ces) == 6 and state["best_step"] == 1 + ces.index(min(ces)) < 6
    assert state["best_ce"] == pytest.approx(min(ces), abs=1e-4)
    model, tokenizer, _ = checkpoints.load_model(out_dir / "run.pt")
    data = open_data(tiny_world.val, tokenizer, 143, state["run_config"]["target"])
    ce = windows.validation_ce(model, data, config(eval_windows=0, val=tiny_world.val), ENV)
    assert ce == pytest.approx(min(ces), abs=1e-4)


def test_no_flag_of_the_student_reaches_the_teacher(train, tiny_world):
    """TRAPS 33: a public trainer loaded the teacher with the student's quantisation."""
    made, seen = checkpoints.weights_fingerprint(checkpoints.load_model(tiny_world.teacher)[0]), []
    for flags in (dict(), dict(size="0.2m"), dict(init_from_teacher="1", lr=0.1), dict(optimizer="adamw"),
                  dict(dtype="bf16")):
        assert train("distill_logits", fresh=True, **flags)["inputs"]["teacher_fingerprint"] == made
        seen.append([float(row["teacher ce"]) for row in train.rows])
    assert seen[:-1] == [seen[0]] * 4
    assert seen[-1] == pytest.approx(seen[0], rel=0.02)  # the pass is in bf16, the weights are not


def test_the_loops_tell_the_same_story():
    """Students compare two scripts with `diff`. That is clear only if all have the same six numbered comments."""
    banners = {path.stem: re.findall(r"^ +# (\d\) .*)$", path.read_text(encoding="utf-8"), re.M)
               for path in ROOT.glob("train_*.py")}
    assert banners.pop("train_distill_responses") == [] and train_distill_responses.main is train_pretrain.main
    assert [banner[0] for banner in banners["train_pretrain"]] == list("123456")
    assert len(banners) == 5 and all(b == banners["train_pretrain"] for b in banners.values()), banners


def test_a_part_of_the_validation_windows_is_spread_over_all():
    """Packing puts the longest documents first, so the first windows would not be a fair sample."""
    ids = np.arange(10 * 3).reshape(10, 3)
    data = fake_data(ids, np.ones_like(ids), np.ones_like(ids))
    seen = [(x[:, 0] // 3).tolist() for x, *_ in eval_batches(data, 2, limit=4)]
    assert seen == [[0, 3], [6, 9]]
    assert sum(len(x) for x, *_ in eval_batches(data, 3)) == 10
