"""Claims about train_distill_onpolicy.py: who writes which window, what counts, exact gradients."""
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import common
import train_distill_onpolicy
from dataset.windows import open_data, step_windows
from train_distill_onpolicy import prompts_of, student_writes
from losses import divergence, log_softmax
from test_losses import draw


@pytest.mark.parametrize("flags", [dict(), dict(accumulate=2), dict(divergence="jsd", beta=0.1),
                                   dict(dtype="bf16")], ids=str)
def test_share_0_is_logits_distillation_to_the_bit(train, flags):
    """If data, order, random numbers or normaliser differed, the two methods could not be compared."""
    flags = dict(divergence="reverse_kl", steps=3) | flags
    off = train("distill_logits", name="off", **flags)
    on = train("distill_onpolicy", name="on", on_policy_share=0, max_new_tokens=None, **flags)
    assert all(torch.equal(v, on["model"][k]) for k, v in off["model"].items())
    assert (off["tokens"], off["supervised"]) == (on["tokens"], on["supervised"])


@pytest.fixture
def data(tiny_world, tiny_tokenizer, out_dir):
    return open_data(tiny_world.train, tiny_tokenizer, 143)


def test_prompts_are_what_stands_before_the_responses_or_the_first_half_of_plain_text(data, tiny_tokenizer):
    """A prompt with a token of the answer gives it away. A prompt that is cut asks something else."""
    text = dict(ids=np.arange(9)[None], mask=np.array([[0] + [1] * 8]), document=np.ones((1, 9), int))
    assert prompts_of(text, 0, 8) == [[0, 1, 2, 3]]  # all tokens count except the first, which is never predicted
    for number in range(4):
        prompts = prompts_of(data, number, 143)
        assert len(prompts) == data["document"][number].max() - data["document"][number][0] + 1
        for prompt in prompts:
            text = tiny_tokenizer.decode(prompt, show_control=True)
            assert text.startswith("<user>Mia has") and text.endswith("now?<end><assistant>")


@pytest.fixture
def step_of(data, tiny_tokenizer):
    """A function: `step_of(3, model, on_policy_share=1)` -> what student_writes returns for step 3."""
    def run(step, model=None, rank=0, world=1, **changes):
        cfg = dict(batch=8, accumulate=1, seed=0, window=143, on_policy_share=0.5, max_new_tokens=20,
                   sample_temperature=1.0) | changes
        env = dict(rank=rank, world=world, device=torch.device("cpu"), autocast=torch.enable_grad)
        return student_writes(SimpleNamespace(**cfg), SimpleNamespace(**env), model, tiny_tokenizer, data, step)
    return run


def test_packed_windows_hold_each_pair_once_and_count_the_responses_alone(step_of, monkeypatch):
    """TRAPS 8 and 9: padding or prompts that count in the loss, or a pair that is longer than its window."""
    prompts, responses = zip(([1, 2, 3], [4, 5]), ([6], [7, 8, 9]), ([10, 11], [12] * 9), ([13], [14]))
    monkeypatch.setattr(train_distill_onpolicy, "prompts_of", lambda *_: list(prompts))
    monkeypatch.setattr(train_distill_onpolicy, "generate", lambda *_, **__: responses)
    batches, *_ = step_of(0, batch=1, window=9, on_policy_share=1)
    ids, documents, counts = ([b[i][0].tolist() for b in batches] for i in (1, 2, 3))
    assert ids == [[11] + [12] * 8, [2, 3, 4, 5, 6, 7, 8, 9, 0], [14] + [0] * 8]  # y has no first token
    assert counts == [[0] + [1] * 8, [0, 0, 1, 1, 0, 1, 1, 1, 0], [1] + [0] * 8]
    assert documents == [[1] * 9, [1] * 5 + [2] * 4, [1, 1] + [0] * 7]


@pytest.fixture
def fake_words(monkeypatch, tiny_tokenizer):
    """The student writes 50, 51, <end> to every prompt -> these ids."""
    words = [50, 51, tiny_tokenizer.end]
    monkeypatch.setattr(train_distill_onpolicy, "generate", lambda m, prompts, *a, **k: [words for _ in prompts])
    return words


@pytest.mark.parametrize("share, places", [(0, []), (0.25, [3, 7]), (0.5, [1, 3, 5, 7]), (0.05, []),
                                           (1, range(8)), (0.7, [0, 1, 3, 4, 6, 7])])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_share_is_of_windows_and_the_rest_stays_as_it_was(share, places, accumulate, data, step_of, fake_words):
    """A share that depends on how the batch is cut, or a window that is both rewritten and kept."""
    batches, n_valid, counts, _ = step_of(1, on_policy_share=share, accumulate=accumulate)
    windows = step_windows(16, 1, 8, 0)
    ours = [windows[i] for i in places]  # of step 1, places 8 to 15
    own, kept = ([b for b in batches if b[4] is kind] for kind in (True, False))
    assert sum(int((b[3] > 0).sum()) for b in own) == 3 * sum(len(prompts_of(data, n, 143)) for n in ours)
    rows = {tuple(row) for b in kept for row in b[0].tolist()}
    assert rows == {tuple(data["ids"][n][:-1].tolist()) for n in windows if n not in ours}
    assert n_valid == counts["supervised"] == sum(int((b[3] > 0).sum()) for b in batches)
    assert all(set(y[weight > 0].tolist()) == set(fake_words) for _, y, _, weight, _ in own)


def test_over_many_steps_the_share_is_exact_even_if_a_window_comes_twice(step_of, fake_words):
    """Rounded in each step, 0.05 of 8 windows is none. By number, a window that comes twice is rewritten twice."""
    for share, batch in ((0.05, 8), (0.3, 8), (0.5, 32), (0.9, 8)):
        steps = [step_of(step, on_policy_share=share, batch=batch)[0] for step in range(25)]
        kept = sum(len(b[0]) for batches in steps for b in batches if b[4] is False)
        assert kept == pytest.approx(25 * batch * (1 - share), abs=1)


def test_writing_depends_on_seed_and_step_alone(step_of, tiny_model):
    """A resumed run would write other text than an uninterrupted one."""
    model = tiny_model(vocab_size=320, max_seq_len=160)
    written = lambda *args, **kw: [b[0].tolist() for b in step_of(*args, **kw)[0] if b[4] is True]
    first = written(3, model)
    torch.manual_seed(99)
    assert written(3, model) == first != written(3, model, seed=1) and written(4, model) != first


@pytest.fixture
def write(step_of, tiny_model, tiny_tokenizer):
    """A function: `write(end=3.0)` -> (student, batches of a step). The logit of <end> is 3 higher."""
    def run(end=0.0, **changes):
        model = tiny_model(vocab_size=320, max_seq_len=160)
        bias = torch.zeros(320).index_fill(0, torch.tensor([tiny_tokenizer.end]), end)
        run.graphs = []
        model.lm_head.register_forward_hook(
            lambda _, inputs, logits: (run.graphs.append(logits.requires_grad), logits + bias)[1])
        return model, step_of(0, model, on_policy_share=1, **changes)[0]
    return run


def by_weight(batches):
    """Batches -> [(ids that do not count, the ids after them that count)], without padding."""
    found = []
    for x, y, _, weight, _ in batches:
        for first, ids, counts in zip(x[:, 0].tolist(), y.tolist(), (weight > 0).tolist()):
            pairs = zip([first, *ids], [False, *counts])
            runs = [[id for id, _ in run] for _, run in groupby(pairs, lambda pair: pair[1])]
            found += zip(runs[::2], runs[1::2])
    return found


def test_nothing_counts_after_the_first_end_and_no_gradient_flows_through_the_writing(write, data, tiny_tokenizer):
    """Text after <end> would be learned as an answer, or a graph through the sampling would fill the memory."""
    _, batches = write(end=3.0)
    assert write.graphs and not any(write.graphs)
    assert not any(t.is_inference() for batch in batches for t in batch[:4])  # otherwise backward fails
    found, windows = by_weight(batches), step_windows(16, 0, 8, 0)
    assert sorted(prompt for prompt, _ in found) == sorted(sum((prompts_of(data, n, 143) for n in windows), []))
    for _, response in found:
        assert tiny_tokenizer.end not in response[:-1]
        assert response[-1] == tiny_tokenizer.end or len(response) == 20
    assert {len(response) == 20 for _, response in found} == {True, False}  # both cases occur


def test_the_student_writes_max_new_tokens_at_sample_temperature(write):
    """TRAPS 4: a flag without effect. The higher the temperature, the less often the likeliest token is taken."""
    for count in (3, 12):  # <end> never comes
        _, batches = write(end=-torch.inf, max_new_tokens=count)
        assert {len(response) for _, response in by_weight(batches)} == {count}
    shares = []
    for temperature in (0.0, 0.3, 1.0):
        model, batches = write(sample_temperature=temperature)
        right = torch.cat([(model(x, document).argmax(-1) == y)[weight > 0] for x, y, document, weight, _ in batches])
        shares.append(right.float().mean())
    assert shares[0] > 0.99 and 0.9 > shares[1] > shares[2] + 0.1


def test_share_alpha_and_divergence_are_knobs_and_its_own_words_no_labels(train):
    """Cross-entropy on its own samples makes a student certain. Each divergence works on data and own text."""
    f, r, found = "forward_kl", "reverse_kl", []
    for share, name, alpha in zip((0, 0, .5, .5, 1, 1, 1), (f, r, r, r, f, r, r), (.2, .2, .2, .9, .2, .2, .9)):
        state = train("distill_onpolicy", fresh=True, steps=2, on_policy_share=share, divergence=name,
                      alpha=alpha, max_new_tokens=20 if share else None)
        found.append(torch.cat([v.flatten() for v in state["model"].values()]))
    pairs = [(i, j) for j in range(7) for i in range(j) if torch.equal(found[i], found[j])]
    assert pairs == [(5, 6)]  # at share 1 there is no label, so alpha does nothing
    assert 0 < float(train.rows[0]["writing"]) < 1  # the share of time: most of a step is sampling


def test_the_exact_reverse_kl_gradient_is_the_mean_of_the_score_function_estimate():
    """TRAPS 21: KL(q || p) estimated from one sampled token has gradient 0, or a wrong one. For a fixed
    prefix the gradient is E_{v~q}[(ln q_v - ln p_v) d ln q_v], here the mean of 200,000 draws."""
    student, teacher, draws = draw(1, 7, seed=1).requires_grad_(), draw(1, 7, seed=2), 200_000
    [exact] = torch.autograd.grad(divergence("reverse_kl", student, teacher).sum(), student)
    log_q, log_p = log_softmax(student.detach())[0], log_softmax(teacher)[0]
    v = torch.multinomial(log_q.exp(), draws, True, generator=torch.Generator().manual_seed(0))
    score = torch.nn.functional.one_hot(v, 7) - log_q.exp()           # d ln q_v / dz
    estimates = (log_q - log_p)[v][:, None] * score                   # (draws, V)
    mean, error = estimates.mean(0), estimates.std(0) / draws ** 0.5
    assert ((mean - exact[0]) / error).abs().max() <= 5
    assert (mean / error).abs().max() > 5  # a detached sample would give the gradient 0


def test_a_run_on_two_halves_of_the_windows_counts_all_of_them(step_of, fake_words, monkeypatch):
    """TRAPS 11: each rank writes its own part, but n_valid must be the sum over all ranks."""
    seen = []
    monkeypatch.setattr(common, "sum_over_ranks", lambda values, env: seen.append(values) or values)
    for rank, world in ((0, 2), (1, 2), (0, 1)):
        step_of(1, rank=rank, world=world)
    assert np.sum(seen[:2], axis=0).tolist() == seen[2]
