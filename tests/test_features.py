"""Claims about train_distill_features.py: right layers, right tokens, only the student is kept."""
import math
from itertools import product

import pytest
import torch
from torch import nn

import checkpoints
from common import UserError
from test_losses import draw
from test_resume import Crash, at_step, crash
from train_distill_features import (Config, hidden_cosine, hidden_mse, hidden_term, layer_pairs,
                                    relation_kl, relation_term)

B, T = 2, 6


@pytest.mark.parametrize("rule, layers, pairs", [
    ("last", (3, 9), [(3, 9)]), ("last", (4, 4), [(4, 4)]),
    ("uniform", (3, 9), [(1, 3), (2, 6), (3, 9)]), ("uniform", (4, 4), [(1, 1), (2, 2), (3, 3), (4, 4)]),
    ("uniform", (2, 1), [(1, 1), (2, 1)]), ("uniform", (3, 4), [(1, 1), (2, 3), (3, 4)]),
    ("1:2,3:9", (3, 9), [(1, 2), (3, 9)])])
def test_maps_name_block_outputs(rule, layers, pairs):
    """TRAPS 22: with the embedding counted as layer 0 every pair is off by one."""
    assert layer_pairs(rule, *layers) == pairs


@pytest.mark.parametrize("rule", ["first", "0:1", "1:0", "4:1", "1:10", "1-2", "1:2:3", "1:", ",", "", "1.5:2",
                                  "-1:2", "1:2,"])
def test_a_layer_that_does_not_exist_is_refused(rule):
    """Python's index -1 would silently take the last layer."""
    with pytest.raises(UserError, match="1:1 to 3:9"):
        layer_pairs(rule, 3, 9)


def recorded(model, ids, document=None):
    features = []
    model.hidden_states(ids, document, features=features)
    return features


SAME = [nn.Identity()] * 3  # no projections


@pytest.mark.parametrize("rule", ["last", "uniform", "2:2", "1:1,3:3"])
@torch.no_grad()
def test_identical_networks_cost_nothing_under_every_map(rule, tiny_model):
    """TRAPS 22: the input of a block could be compared with the output of another network's block."""
    model = tiny_model(n_layers=3)
    ids = torch.randint(0, 300, (B, T), generator=torch.Generator().manual_seed(1))
    document = torch.tensor([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]])
    keep, seen, pairs = document > 0, recorded(model, ids, document), layer_pairs(rule, 3, 3)
    for loss in ("mse", "cosine"):
        value = hidden_term(Config(hidden_loss=loss), pairs, SAME, seen, seen, keep)
        assert value.shape == (10,) and value.abs().max() < 1e-6
    value = relation_term(Config(relation_heads=2), pairs, seen, seen, document, keep)
    assert value.shape == (10,) and value.abs().max() < 1e-6
    other = recorded(tiny_model(n_layers=3, seed=9), ids, document)
    assert hidden_term(Config(), pairs, SAME, other, seen, keep).min() > 0.1
    assert (relation_term(Config(relation_heads=2), pairs, other, seen, document, keep) > -1e-6).all()


@torch.no_grad()
def test_what_is_recorded_are_the_blocks_outputs_and_qkv_before_rope(tiny_model):
    """The final norm's output is not a block's output. After RoPE, queries of equal tokens differ by position."""
    model, ids = tiny_model(n_layers=3), torch.full((1, T), 7)
    seen = recorded(model, ids)
    assert len(seen) == 3 and seen[0]["hidden"].shape == (1, T, 32)
    torch.testing.assert_close(model.norm(seen[-1]["hidden"]), model.hidden_states(ids))
    first = seen[0]  # every position holds the same token: before RoPE the same vectors
    assert first["q"].shape == (1, 4, T, 8) and first["k"].shape == first["v"].shape == (1, 2, T, 8)
    for which in "qkv":
        torch.testing.assert_close(first[which], first[which][:, :, :1].expand_as(first[which]))


def test_hidden_distances_by_hand():
    """If channels were summed instead of averaged, a wider teacher would weigh more."""
    a, b = torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert hidden_mse(a, b).item() == pytest.approx(8 / 3)
    assert hidden_cosine(a, b).item() == pytest.approx(1 - 1 / 3)
    assert hidden_cosine(5 * a, b).item() == pytest.approx(1 - 1 / 3)  # length has no effect


@torch.no_grad()
def test_of_several_pairs_a_term_is_the_mean_that_of_relations_over_queries_keys_and_values(tiny_model):
    """If pairs were summed, twice the layers would weigh twice as much: the map would act as a second weight."""
    def block(*numbers):
        return dict(hidden=torch.tensor([[numbers, (9.0, 9.0)]]))  # (1, 2, D); one token does not count
    student, teacher = [block(1.0, 2.0), block(0.0, 3.0)], [block(1.0, 0.0), block(4.0, 3.0)]
    for loss, mean in (("mse", (4 / 2 + 16 / 2) / 2), ("cosine", (1 - 1 / 5 ** 0.5 + 1 - 3 / 5) / 2)):
        value = hidden_term(Config(hidden_loss=loss), [(1, 1), (2, 2)], SAME, student, teacher,
                            torch.tensor([[True, False]]))
        assert value.tolist() == pytest.approx([mean])
    ids, document = torch.arange(B * T).view(B, T), torch.ones(B, T)
    student, teacher = recorded(tiny_model(), ids), recorded(tiny_model(seed=9), ids)
    value = relation_term(Config(relation_heads=2), [(1, 2), (2, 1)], student, teacher, document, document > 0)
    parts = [relation_kl(student[s][part], teacher[t][part], 2) for s, t in ((0, 1), (1, 0)) for part in "qkv"]
    torch.testing.assert_close(value, torch.stack(parts).mean(0).flatten())


def relation_by_hand(student, teacher, heads, document):
    """Plain loops over batch, head, t and s: student and teacher (B, H, T, C) -> KL (B, T) in nats."""
    values = torch.zeros(B, T, dtype=torch.float64)
    for b, h, t in product(range(B), range(heads), range(T)):
        see, rows = [s for s in range(t + 1) if document[b][s] == document[b][t]], []
        for x in (student, teacher):
            part = torch.cat(list(x[b]), -1).chunk(heads, -1)[h]  # (T, w): the channels, head after head
            scores = torch.stack([(part[t] * part[s]).sum() / math.sqrt(part.shape[1]) for s in see])
            rows.append(scores.exp() / scores.exp().sum())
        q, p = rows
        values[b, t] += (p * (p / q).log()).sum() / heads
    return values


def test_relations_equal_explicit_loops_over_pairs_of_one_document():
    """Other documents, later tokens, padding or a wrong scale. Relation heads need not match the attention heads."""
    student, teacher = draw(B, 2, T, 4, seed=1), draw(B, 3, T, 4, seed=2)
    for document in ([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]], None):
        values = relation_kl(student, teacher, 4, document and torch.tensor(document))
        expected = relation_by_hand(student, teacher, 4, document or [[1] * T] * B)
        torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-6)


def test_projections_are_trained_and_resumed_and_dropped_from_the_student(train, monkeypatch, out_dir, at_step):
    """Untrained projections are noise. New ones make a resumed loss jump. A student that keeps them is refused."""
    wider = dict(script="distill_features", size="0.4m")  # 96 wide, the teacher 64
    seen, real = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, *rest: (
        seen.append([p.detach().clone() for p in parameters][-1]), real(parameters, *rest))[1])
    whole = train(name="whole", **wider)
    assert "projections 18,432" in train.said and "projections" not in whole  # three pairs of 96 x 64
    assert checkpoints.load_model(out_dir / "whole.pt")[0].state_dict().keys() == whole["model"].keys()
    assert len(seen) == 4 and all(p.shape == (64, 96) for p in seen) and not torch.equal(seen[0], seen[3])
    at_step(3, crash)
    with pytest.raises(Crash):
        train(name="parts", **wider)
    assert "projections" in checkpoints.load(out_dir / "parts.pt")  # saved at step 2
    parts = train(name="parts", **wider)
    assert torch.equal(seen[-1], seen[3])
    assert all(torch.equal(v, whole["model"][k]) for k, v in parts["model"].items())


def test_weights_of_zero_leave_logits_distillation(train):
    """A term could stay in the gradient although its weight is 0."""
    features = train("distill_features", hidden_weight=0, relation_weight=0, relation_heads=None)
    logits = train("distill_logits", name="logits")  # its last MLP reads fewer tokens: other rounding
    torch.testing.assert_close(logits["model"], features["model"])


def test_every_knob_changes_the_training(train):
    """TRAPS 4: a flag could have no effect."""
    knobs = [dict(), dict(hidden_weight=0), dict(relation_weight=0, relation_heads=None), dict(hidden_loss="cosine"),
             dict(hidden_layers="1:1"), dict(hidden_weight=2), dict(divergence="jsd", beta=0.9)]
    base, *others = [train("distill_features", size="0.2m", steps=2, fresh=True, **flags)["model"] for flags in knobs]
    for flags, changed in zip(knobs[1:], others):
        assert any(not torch.equal(v, changed[k]) for k, v in base.items()), flags
