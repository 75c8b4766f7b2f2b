"""Claims about dataset/teacher_cache.py: a cache gives the teacher's values, for the right tokens."""
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import checkpoints
from common import UserError
from dataset import cache_reader, teacher_cache
from dataset.windows import open_data, tensors
from dataset.cache_reader import cached_divergence, open_cache
from losses import DIVERGENCES, cross_entropy, divergence, log_softmax, sampled_forward_kl, topk_divergence
from conftest import write_checkpoint
from test_divergences import CASES, every
from test_losses import V, draw

N = 5


def top(teacher, k, temperature=1.0):
    """What a cache keeps of teacher logits (N, V) -> ids (N, k), log_p (N, k + 1); if k = V, log_p (N, k)."""
    log_p = log_softmax(teacher, temperature)
    best = log_p.topk(k)
    rest = log_p.scatter(-1, best.indices, -torch.inf).logsumexp(-1, keepdim=True)
    return best.indices, torch.cat([best.values, rest][:1 + (k < V)], -1)


@every
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_topk_of_the_whole_vocabulary_is_the_divergence(name, mix, temperature):
    """TRAPS 14: if k = V, a bucket for other tokens has ln 0, and the loss becomes NaN or wrong."""
    student, teacher = draw(N, V, seed=1).requires_grad_(), draw(N, V, seed=2)
    both = (topk_divergence(name, student, *top(teacher, V, temperature), temperature, mix),
            divergence(name, student, teacher, temperature, mix))
    gradients = (torch.autograd.grad(values.sum(), student)[0] for values in both)
    torch.testing.assert_close(*both, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@every
def test_topk_with_its_bucket_is_a_lower_bound_that_rises_with_k(name, mix):
    """TRAPS 13: a renormalised list can cost more than the full divergence, and removes a perfect student's tail.
    TRAPS 34: without any bucket the loss can be negative: a public test suite expects a "KL" of -0.96."""
    student, teacher = draw(200, V, seed=1), draw(200, V, seed=2)
    whole = divergence(name, student, teacher, 1.0, mix)
    before = torch.full_like(whole, -1e-12)
    for k in range(1, V + 1):
        values = topk_divergence(name, student, *top(teacher, k), 1.0, mix)
        assert (values >= before - 1e-12).all() and (values <= whole + 1e-12).all()
        before = values
        assert topk_divergence(name, teacher, *top(teacher, k), 1.0, mix).abs().max() < 1e-12
    assert (before - whole).abs().max() < 1e-12


def test_a_tail_that_rounds_to_nothing_leaves_finite_values_and_gradients():
    """A sure teacher's tail (here about 1e-60) is 0 in float32: 1 - sum would be 0 or negative."""
    teacher = torch.full((1, V), -70.0).index_fill(1, torch.tensor([2]), 70.0)
    for seed in range(20):
        student = draw(1, V, seed=seed, scale=20, dtype=torch.float32).requires_grad_()
        for name, mix in CASES:
            value = topk_divergence(name, student, *top(teacher, 2), 1.0, mix)
            [gradient] = torch.autograd.grad(value.sum(), student)
            assert value.isfinite().all() and gradient.isfinite().all() and value >= -1e-6


def test_the_sampled_loss_and_its_gradient_are_unbiased():
    """If draws are renormalised or deduplicated, they are no longer an unbiased estimate of p. A student that
    has memorised the draws, after more epochs, has a kd below 0 although its KL is above 0."""
    student, teacher, draws, tau = draw(1, V, seed=1).requires_grad_(), draw(1, V, seed=2), 20_000, 2.0
    p = log_softmax(teacher, tau).exp().expand(draws, -1)
    ids = torch.multinomial(p, 4, True, generator=torch.Generator().manual_seed(0))  # (draws, k)
    negentropy = (p * p.log()).sum(-1)
    values = sampled_forward_kl(student.expand(draws, -1), ids, negentropy, tau)  # (draws,)
    whole = divergence("forward_kl", student, teacher, tau)
    error = values.std() / draws ** 0.5
    assert (values.mean() - whole.item()).abs() < 4 * error
    [gradient] = torch.autograd.grad(values.mean(), student)
    [expected] = torch.autograd.grad(whole.sum(), student)
    counts = torch.stack([(ids == v).double().mean(1) for v in range(V)], 1)  # (draws, V)
    assert ((gradient - expected).abs() < 4 * tau * counts.std(0) / draws ** 0.5 + 1e-12).all()
    by_heart = tau * counts.add(0.01).log()  # (draws, V): a student that memorised the draws
    assert sampled_forward_kl(by_heart, ids, negentropy, tau).mean() < -0.1
    assert divergence("forward_kl", by_heart, teacher.expand(draws, -1), tau).mean() > 0.1


@pytest.fixture
def make(tiny_world, call, out_dir):
    """Returns a function: `make(kind="hidden", others=teachers)` caches the tiny world's train -> folder."""
    def run(status=0, others=(), **changes):
        flags = dict(teacher=tiny_world.teacher, data=tiny_world.train, val=tiny_world.val, out=out_dir / "cache", window=143,
                     dtype="float32", k=8, temperature=1) | changes
        if changes.get("kind") == "hidden":
            del flags["k"], flags["temperature"]
        words = [f"--{k}" + ("" if v is True else f"={v}") for k, v in flags.items() if v is not None]
        done = call("dataset.teacher_cache", *words, *others)
        assert done.status == status, done.err
        run.said = done.out + done.err
        return flags["out"]
    return run


@pytest.fixture
def opened(tiny_world, tiny_tokenizer, out_dir):
    """Returns a function: folder -> (cache, data, teacher, cfg), opened as in a training script."""
    def run(folder, text=tiny_world.train, **changes):
        cfg = SimpleNamespace(**dict(window=143, target="cot", documents=0, temperature=1.0, steps=4,
                                     divergence="forward_kl", batch=4, cache=str(folder)) | changes)
        data, env = open_data(text, tiny_tokenizer, cfg.window), SimpleNamespace(device="cpu")
        return open_cache(cfg, env, data), data, checkpoints.load_model(tiny_world.teacher)[0], cfg
    return run


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["topk", "hidden"])  # both are exact, except for float16
@torch.no_grad()
def test_a_whole_cache_is_the_teacher(kind, tau, make, opened, monkeypatch):
    """TRAPS 4, 7, 16: with a wrong temperature, a wrong window or a shift by one, training still "works"."""
    for module in (teacher_cache, cache_reader):
        monkeypatch.setattr(module, "SHARD", 5)  # so rows are in several files
    more = dict(k=320, temperature=tau) if kind == "topk" else {}
    cache, data, teacher, cfg = opened(make(kind=kind, **more), temperature=tau)
    sizes = {name: array.dtype.itemsize for name, array in cache["shards"][0].items()}
    assert sizes == (dict(hidden=2, label_ce=4) if kind == "hidden" else dict(ids=2, log_p=2, label_ce=4))
    for numbers in (np.array([3, 0, 15]), np.array([7]), np.arange(16)[::-1]):
        x, y, document, weight = tensors(data, numbers)
        keep = weight > 0
        student = draw(int(keep.sum()), 320, seed=1, dtype=torch.float32)
        teacher_logits = teacher(x, document, keep)
        for name, mix in CASES:
            cfg.divergence = name
            kd, teacher_ce = cached_divergence(cache, numbers, student, cfg, mix)
            torch.testing.assert_close(kd, divergence(name, student, teacher_logits, tau, mix),
                                       rtol=1e-3, atol=4e-3, msg=lambda text: f"{name}: {text}")
        torch.testing.assert_close(teacher_ce, cross_entropy(teacher_logits, y[keep]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_several_teachers_speak_with_the_mean_of_their_distributions(
        make, opened, tiny_world, other_tokenizer, tmp_path):
    """The mean of logits is a geometric mean: one teacher can veto a token. Hidden states or other ids have none."""
    make(status=2, kind="hidden", others=[tiny_world.init])
    make(status=2, others=[write_checkpoint(tmp_path / "other.pt", other_tokenizer)])
    assert "other.pt" in make.said
    tau, both = 2.0, [tiny_world.teacher, tiny_world.init]
    cache, data, _, cfg = opened(make(kind="topk", k=320, temperature=tau, others=both[1:]), temperature=tau)
    x, y, document, weight = tensors(data, np.arange(16))
    keep = weight > 0
    logits = [checkpoints.load_model(path)[0](x, document, keep).double() for path in both]
    p, at_1 = (sum(torch.softmax(z / t, -1) for z in logits) / 2 for t in (tau, 1.0))  # (N, V)
    student = draw(int(keep.sum()), 320, seed=1)
    kl = tau ** 2 * (p * (p.log() - torch.log_softmax(student / tau, -1))).sum(-1)
    kd, teacher_ce = cached_divergence(cache, np.arange(16), student, cfg, 0)
    torch.testing.assert_close(kd, kl, rtol=1e-3, atol=4e-3)
    label_ce = -at_1.gather(-1, y[keep][:, None])[:, 0].log()
    torch.testing.assert_close(teacher_ce.double(), label_ce, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tau", [1.0, 2.0])
@torch.no_grad()
def test_a_sampled_cache_holds_draws_from_the_softened_teacher(tau, make, opened):
    """TRAPS 4: draws at temperature 1, or a sum p ln p of another p, give a finite but wrong loss."""
    cache, data, teacher, cfg = opened(make(kind="sampled", k=64, temperature=tau), temperature=tau)
    x, y, document, weight = tensors(data, np.arange(16))
    log_p = torch.log_softmax(teacher(x, document, weight > 0).double() / tau, -1)   # (N, V)
    negentropy = (log_p.exp() * log_p).sum(-1)                                       # (N,)
    ids = torch.from_numpy(cache["shards"][0]["ids"].astype(np.int64))               # (N, k)
    drawn = log_p.gather(-1, ids)                                                    # (N, k)
    error = (drawn.var(-1).sum() / 64) ** 0.5
    assert (drawn.mean(-1) - negentropy).sum().abs() < 4 * error  # the mean of ln p under p is sum p ln p
    student = draw(len(log_p), 320, seed=1)
    log_q = torch.log_softmax(student / tau, -1).gather(-1, ids)                     # (N, k)
    kd, _ = cached_divergence(cache, np.arange(16), student, cfg, 0)
    torch.testing.assert_close(kd, tau ** 2 * (negentropy - log_q.mean(-1)), rtol=0, atol=1e-4)


def test_draws_are_announced_if_read_again_and_give_forward_kl_only(make, opened):
    """Draws from p give forward KL only. They are unbiased only in the first epoch; later kd can be below 0."""
    folder = make(kind="sampled")  # 16 windows
    for steps, batch, again in ((4, 4, False), (5, 4, True), (2, 8, False), (2, 16, True)):
        assert ("below 0" in opened(folder, steps=steps, batch=batch)[0]["facts"]["cache"]) == again
    for name in set(DIVERGENCES) - {"forward_kl"}:
        with pytest.raises(UserError, match="forward KL only"):
            opened(folder, divergence=name)
    folder = make(kind="topk", fresh=True)
    assert "below 0" not in opened(folder, steps=99)[0]["facts"]["cache"]  # a top-k list has no random draws


@pytest.mark.parametrize("kind, last", [("topk", "log_p"), ("sampled", "negentropy"), ("hidden", "hidden")])
def test_an_unfinished_cache_goes_on_to_the_same_bytes(kind, last, make, opened, monkeypatch):
    """After a stop, new random numbers would give the rest other draws. The file that marks windows as done
    must be written last: otherwise a kill between two files would leave windows out for ever."""
    for module in (teacher_cache, cache_reader):
        monkeypatch.setattr(module, "SHARD", 4)
    folder, save, stops, saved = make(kind=kind), np.save, ["-0000", f"{last}-0001"], []
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}
    shutil.rmtree(folder)

    def save_or_stop(file, array):
        if stops and stops[0] in file.name:
            del stops[0], saved[:]
            raise KeyboardInterrupt
        saved.append(file.name)
        save(file, array)
    monkeypatch.setattr(np, "save", save_or_stop)
    for _ in range(2):
        make(status=130, kind=kind)
        with pytest.raises(UserError, match="not finished"):
            opened(folder)
    make(kind=kind)
    assert len(saved) == 1 + 3 * (len(whole) - 3) // 4  # head.npy, and three of four shards
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == whole
    make(kind=kind)
    assert "already made" in make.said


@pytest.mark.parametrize("name", ["about.json", "thesis.txt"])
def test_a_folder_of_somebody_else_is_left_alone_even_with_fresh(name, make, tmp_path):
    """dataset/stories.py also writes an about.json: --fresh would have removed all files of its folder."""
    (tmp_path / name).write_text('{"settings": {}}')
    before = sorted(tmp_path.iterdir())
    for changes in (dict(), dict(fresh=True)):
        make(status=2, out=tmp_path, **changes)
        assert (tmp_path / name).read_text() == '{"settings": {}}' and sorted(tmp_path.iterdir()) == before


def test_a_teacher_that_is_not_finite_or_too_large_for_float16_is_refused(make, tiny_tokenizer, tmp_path):
    """NaN or infinity would be cached, and found only when a training run computes its first loss."""
    for factor, words in ((1e6, "float16"), (float("nan"), "not finite")):
        teacher = write_checkpoint(tmp_path / "big.pt", tiny_tokenizer,
                                   lambda state: state["model"]["norm.weight"].mul_(factor))
        make(status=2, kind="hidden", teacher=teacher, fresh=True)
        assert words in make.said


def test_another_training_is_refused(make, opened, tiny_world, tmp_path):
    """TRAPS 15, 17: a cache made at another temperature, or from other tokens, acts as another teacher."""
    folder = make()
    for changes, words in ((dict(temperature=2.0), "temperature"), (dict(window=140), "window 143 there, 140"),
                           (dict(target="answer"), "target cot there, answer"), (dict(fused="on"), "--kind hidden")):
        with pytest.raises(UserError, match=words):
            opened(folder, **changes)
    changed = tmp_path / "changed.jsonl"  # edited after the cache was made: the same shape
    changed.write_text(tiny_world.train.read_text().replace("pears", "peers"))
    with pytest.raises(UserError, match="--data or --val"):
        opened(folder, changed)


@pytest.mark.parametrize("val", [True, False])
def test_what_it_says_to_type_next_works(val, make, tiny_world, call):
    """The printed next command could be refused: other temperature, other data, or a name in use."""
    folder = make(temperature=3, **({} if val else dict(val=None)))
    words = make.said.strip().splitlines()[-1].removeprefix("next: python train_distill_logits.py ").split()
    done = call("train_distill_logits", *words, "--steps=1", "--size=0.1m")
    assert done.status == 0 and str(folder) in words, done.err
    assert ("held out of the data: " in done.out) == ("chat.py" in done.out.splitlines()[-1]) == (not val)


@pytest.mark.parametrize("kind", ["topk", "sampled", "hidden"])
def test_a_training_from_the_cache_is_that_beside_the_teacher(kind, make, train):
    """TRAPS 16: after a shuffle, in epoch 2 or with accumulation, a window could get another window's rows."""
    folder = make(kind=kind, k=320 if kind == "topk" else 64)
    flags = dict(steps=4, alpha=1, temperature=1, seed=3)  # 2 steps an epoch
    online = train("distill_logits", name="online", **flags)["model"]
    cached = train("distill_logits", name="cached", cache=folder, **flags)["model"]
    parts = train("distill_logits", name="parts", cache=folder, accumulate=4, **flags)["model"]
    for name, weights in online.items():
        for found in (cached[name], parts[name]):
            assert (found - weights).norm() < (1e-3 if kind != "sampled" else 0.2) * weights.norm(), name
    if kind == "sampled":  # if all were equal, nothing was sampled
        assert any(not torch.equal(cached[n], w) for n, w in online.items())


def test_a_training_from_a_cache_needs_no_teacher_and_refuses_another(make, train, tiny_world):
    """The teacher may be deleted. TRAPS 17: --teacher names the one that made the cache; two caches mix two runs."""
    flags = dict(script="distill_logits", cache=make(), temperature=1, steps=1)
    made_by = train(teacher=None, **flags)["inputs"]["teacher_fingerprint"]
    assert made_by == checkpoints.weights_fingerprint(checkpoints.load_model(tiny_world.teacher)[0])
    train(name="same", **flags)
    assert "--teacher" in train(status=2, name="b", teacher=tiny_world.init, **flags)
    assert "--init-from-teacher" in train(status=2, name="b", init_from_teacher="1", **flags)
    make(status=2, k=4)
    assert "k was 8, is 4" in make.said
    make(k=4, fresh=True)
    assert "--cache is" in train(status=2, teacher=None, **flags)


@pytest.mark.parametrize("script", ["distill_logits", "distill_features", "distill_onpolicy"])
def test_a_student_starts_as_its_teacher(script, tiny_world, train):
    """A student with all layers of the teacher must equal it before the first step, with a KL of 0."""
    found = train(script, init_from_teacher="1", steps=1, lr=1e-9, warmup=0, weight_decay=0)
    teacher = checkpoints.load(tiny_world.teacher)["model"]
    torch.testing.assert_close(found["model"], teacher, rtol=0, atol=1e-7)
    assert "of 1 to 1" in train(script, status=2, name="b", init_from_teacher="2")
    both = dict(init_from_teacher="1", init=tiny_world.init)
    assert "--init" in train(script, status=2, name="b", **both)
