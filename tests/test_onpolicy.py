"""Claims about train_distill_onpolicy.py: the student's own words, corrected exactly, and nothing else."""
import csv
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import checkpoints
import common
import train_distill_onpolicy
from dataset.windows import open_data, step_batches, step_windows
from train_distill_onpolicy import chosen, pack, prompts_of, student_writes
from losses import divergence, log_softmax
from test_losses import draw


@pytest.fixture
def train(call, tiny_world, out_dir):
    """A function: `train("distill_onpolicy", on_policy_share=0)` -> checkpoint."""
    def run(script="distill_onpolicy", **changes):
        done = call(f"train_{script}", *tiny_world.flags(script, **changes))
        assert done.status == 0, done.err
        return checkpoints.load(out_dir / f"{changes.get('name', 'run')}.pt")
    return run


@pytest.mark.parametrize("flags", [dict(), dict(accumulate=2), dict(divergence="jsd", beta=0.1),
                                   dict(dtype="bf16")], ids=str)
def test_share_0_is_logits_distillation_to_the_bit(train, flags):
    """Another reader, order, random stream or normaliser, and the comparison is of two things."""
    flags = dict(divergence="reverse_kl", steps=3) | flags
    off = train("distill_logits", name="off", **flags)
    on = train(name="on", on_policy_share=0, **flags)
    assert all(torch.equal(v, on["model"][k]) for k, v in off["model"].items())
    assert (off["tokens"], off["supervised"]) == (on["tokens"], on["supervised"])


@pytest.fixture
def data(tiny_world, tiny_tokenizer, out_dir):
    return open_data(tiny_world.train, tiny_tokenizer, 143)


def test_prompts_are_what_stands_before_the_responses(data, tiny_tokenizer):
    """A prompt that holds a token of the answer gives it away; one that is cut asks something else."""
    for number in range(4):
        prompts = prompts_of(data, number, 143)
        assert len(prompts) == data["document"][number].max() - data["document"][number][0] + 1
        for prompt in prompts:
            text = tiny_tokenizer.decode(prompt, show_control=True)
            assert text.startswith("<user>Mia has") and text.endswith("now?<end><assistant>")


def test_plain_text_is_asked_for_its_second_half():
    """No prompt: everything counts, except the first token, which nothing predicts."""
    text = dict(ids=np.arange(9)[None], mask=np.array([[0] + [1] * 8]), document=np.ones((1, 9), int))
    assert prompts_of(text, 0, 8) == [[0, 1, 2, 3]]


def test_packed_windows_hold_each_pair_once_and_count_the_responses_alone():
    """TRAPS 9: counted prompts; TRAPS 8: counted padding; a pair cut at the window's edge."""
    pairs = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9]), ([10, 11], [12] * 8), ([13], [14])]
    packed = pack(pairs, 9, 0)
    assert packed["ids"].tolist() == [[10, 11] + [12] * 8, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
                                      [13, 14] + [0] * 8]
    assert packed["mask"].tolist() == [[0, 0] + [1] * 8, [0, 0, 0, 1, 1, 0, 1, 1, 1, 0],
                                       [0, 1] + [0] * 8]
    assert packed["document"].tolist() == [[1] * 10, [1] * 5 + [2] * 4 + [0], [1, 1] + [0] * 8]


@pytest.fixture
def fake_words(monkeypatch, tiny_tokenizer):
    """What the student writes, whatever it is asked: 50, 51, <end>."""
    words = [50, 51, tiny_tokenizer.end]
    monkeypatch.setattr(train_distill_onpolicy, "generate", lambda m, prompts, *a, **k: [words for _ in prompts])
    return words


def config(**changes):
    return SimpleNamespace(**dict(batch=8, accumulate=1, seed=0, window=143, on_policy_share=0.5,
                                  max_new_tokens=20, sample_temperature=1.0) | changes)


def environment(rank=0, world=1):
    return SimpleNamespace(rank=rank, world=world, device=torch.device("cpu"), autocast=torch.enable_grad)


@pytest.mark.parametrize("share, places", [(0, []), (0.25, [3, 7]), (0.5, [1, 3, 5, 7]), (0.05, []),
                                           (1, range(8)), (0.7, [0, 1, 3, 4, 6, 7])])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_share_is_of_windows_and_the_rest_stays_as_it_was(share, places, accumulate, data,
                                                              tiny_tokenizer, fake_words):
    """A share that drifts with the batch's cut, or a window both rewritten and kept."""
    cfg, env = config(on_policy_share=share, accumulate=accumulate), environment()
    before, _, _ = step_batches(data, 1, cfg, env)
    batches, n_valid, counts, _ = student_writes(cfg, env, None, tiny_tokenizer, data, 1, before)
    windows = step_windows(16, 1, 8, 0)
    ours = [windows[i] for i in places]  # of step 1, places 8 to 15
    prompts = [p for n in ours for p in prompts_of(data, n, 143)]
    own = [b for b in batches if b[4] is True]
    kept = [b for b in batches if b[4] is False]
    assert sum(int((b[3] > 0).sum()) for b in own) == 3 * len(prompts)
    rows = {tuple(row) for b in kept for row in b[0].tolist()}
    assert rows == {tuple(data["ids"][n][:-1].tolist()) for n in windows if n not in ours}
    assert n_valid == counts["supervised"] == sum(int((b[3] > 0).sum()) for b in batches)
    for x, y, document, weight, _ in own:  # the counted ones are the written ones
        assert set(y[weight > 0].tolist()) == set(fake_words)


def test_over_many_steps_the_share_is_exact():
    """Rounded in each step, a twentieth of eight windows is none: a dead knob."""
    for share in (0.05, 0.3, 0.5, 0.9):
        assert chosen(np.arange(2000), share).sum() == pytest.approx(2000 * share, abs=1)


def test_a_window_that_comes_twice_is_written_as_often_as_its_places_say(data, tiny_tokenizer, fake_words):
    """Chosen by its number, it would be rewritten both times: share 0.5 of 32 of 16 windows was 1."""
    cfg, env = config(batch=32), environment()
    batches, *_ = student_writes(cfg, env, None, tiny_tokenizer, data, 0, step_batches(data, 0, cfg, env)[0])
    assert sum(len(b[0]) for b in batches if b[4] is False) == 16


def test_writing_depends_on_seed_and_step_alone(data, tiny_model, tiny_tokenizer):
    """A resumed run must write what the undisturbed one wrote."""
    model, env = tiny_model(vocab_size=320, max_seq_len=160), environment()

    def written(step, **changes):
        cfg = config(**changes)
        batches, *_ = student_writes(cfg, env, model, tiny_tokenizer, data, step,
                                     step_batches(data, step, cfg, env)[0])
        return [b[0].tolist() for b in batches if b[4] is True]
    first = written(3)
    torch.manual_seed(99)
    assert written(3) == first != written(3, seed=1) and written(4) != first


@pytest.fixture
def write(data, tiny_model, tiny_tokenizer):
    """A function: `write(max_new_tokens=3)` -> (student, the windows that it wrote in a step); its
    logit of <end> is `end` higher."""
    def run(end=0.0, **changes):
        model = tiny_model(vocab_size=320, max_seq_len=160)
        bias = torch.zeros(320).index_fill(0, torch.tensor([tiny_tokenizer.end]), end)
        run.graphs = []
        model.lm_head.register_forward_hook(
            lambda _, inputs, logits: (run.graphs.append(logits.requires_grad), logits + bias)[1])
        cfg, env = config(on_policy_share=1, **changes), environment()
        return model, student_writes(cfg, env, model, tiny_tokenizer, data, 0,
                                     step_batches(data, 0, cfg, env)[0])[0]
    return run


def by_weight(batches):
    """[(ids that do not count, ids after them that do)] of all windows, without the padding."""
    found = []
    for x, y, _, weight, _ in batches:
        weight = torch.nn.functional.pad(weight, (1, 0))         # (B, T + 1), as the next
        for row in torch.stack([torch.cat([x[:, :1], y], 1), weight > 0], -1).tolist():
            runs = [[id for id, _ in run] for _, run in groupby(row, lambda pair: pair[1])]
            found += zip(runs[::2], runs[1::2])
    return found


def test_nothing_counts_after_the_first_end_and_no_gradient_flows_through_the_writing(
        write, data, tiny_tokenizer):
    """What comes after the end is no answer; a graph through the sampling would hold every step."""
    _, batches = write(end=3.0)
    assert write.graphs and not any(write.graphs)
    assert not any(t.is_inference() for batch in batches for t in batch[:4])  # or backward fails
    prompts = [p for n in step_windows(16, 0, 8, 0) for p in prompts_of(data, n, 143)]
    found = by_weight(batches)
    assert sorted(prompt for prompt, _ in found) == sorted(prompts)
    for _, response in found:
        assert tiny_tokenizer.end not in response[:-1]
        assert response[-1] == tiny_tokenizer.end or len(response) == 20
    assert {len(response) == 20 for _, response in found} == {True, False}  # both were seen


def test_a_response_without_an_end_is_as_long_as_max_new_tokens_says(write):
    """TRAPS 4: a dead knob, and every answer is cut off, or half of a step is spent on babble."""
    for count in (3, 12):
        _, batches = write(end=-torch.inf, max_new_tokens=count)
        assert {len(response) for _, response in by_weight(batches)} == {count}


def test_the_student_writes_at_sample_temperature(write):
    """TRAPS 4: a dead knob. At 0 it takes the likeliest token, and less often the warmer it is."""
    shares = []
    for temperature in (0.0, 0.3, 1.0):
        model, batches = write(sample_temperature=temperature)
        right = torch.cat([(model(x, document).argmax(-1) == y)[weight > 0]
                           for x, y, document, weight, _ in batches])
        shares.append(right.float().mean())
    assert shares[0] > 0.99 and 0.9 > shares[1] > shares[2] + 0.1


def test_share_alpha_and_divergence_are_knobs_and_its_own_words_no_labels(train, out_dir):
    """With cross-entropy on its own samples a student would only grow surer of itself. GKD's point:
    on-policy with forward KL, or off-policy with reverse KL, are both possible."""
    def weights(**knobs):
        state = train(fresh=True, steps=2, **knobs)["model"]
        return torch.cat([v.flatten() for v in state.values()])
    found = [weights(on_policy_share=share, divergence=name, alpha=alpha) for share, name, alpha in (
        (0, "forward_kl", 0.2), (0, "reverse_kl", 0.2), (0.5, "reverse_kl", 0.2), (0.5, "reverse_kl", 0.9),
        (1, "forward_kl", 0.2), (1, "reverse_kl", 0.2), (1, "reverse_kl", 0.9))]
    pairs = [(i, j) for j in range(7) for i in range(j) if torch.equal(found[i], found[j])]
    assert pairs == [(5, 6)]  # at share 1 alpha weighs no label
    row = next(csv.DictReader((out_dir / "run.csv").open()))
    assert 0 < float(row["writing"]) < 1  # the share of time: most of a step is sampling


def test_the_exact_reverse_kl_gradient_is_the_mean_of_the_score_function_estimate():
    """TRAPS 21: KL(q || p) differentiated through one sampled token has the gradient 0, or another.

    With the prefix fixed, the gradient is E_{v~q}[(ln q_v - ln p_v) d ln q_v]: 200,000 draws.
    """
    student, teacher, draws = draw(1, 7, seed=1).requires_grad_(), draw(1, 7, seed=2), 200_000
    [exact] = torch.autograd.grad(divergence("reverse_kl", student, teacher).sum(), student)
    log_q, log_p = log_softmax(student.detach())[0], log_softmax(teacher)[0]
    v = torch.multinomial(log_q.exp(), draws, replacement=True,
                          generator=torch.Generator().manual_seed(0))
    score = torch.nn.functional.one_hot(v, 7) - log_q.exp()           # d ln q_v / dz
    estimates = (log_q - log_p)[v][:, None] * score                   # (draws, V)
    z = (estimates.mean(0) - exact[0]) / (estimates.std(0) / draws ** 0.5)
    assert z.abs().max() <= 5
    wrong = log_q.exp() * 0  # what a detached sample would give: nothing
    assert ((estimates.mean(0) - wrong) / (estimates.std(0) / draws ** 0.5)).abs().max() > 5


def test_a_run_on_two_halves_of_the_windows_counts_all_of_them(data, tiny_tokenizer, fake_words, monkeypatch):
    """TRAPS 11: each rank writes its own part; n_valid is of all of them."""
    cfg, seen = config(), []
    monkeypatch.setattr(common, "sum_over_ranks", lambda values, env: seen.append(values) or values)
    for env in (environment(0, 2), environment(1, 2), environment()):
        student_writes(cfg, env, None, tiny_tokenizer, data, 1, step_batches(data, 1, cfg, env)[0])
    assert np.sum(seen[:2], axis=0).tolist() == seen[2]
