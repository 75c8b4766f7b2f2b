"""Break the code on purpose, in a copy: the test of each trap of docs/traps.md must fail there, and pass without it.

    python tests/mutants.py              all mutants, one line each; status 1 if one survives
    python tests/mutants.py 7 12a        only those of trap 7 and those whose name begins with 12a
    python tests/mutants.py --apply 3 FOLDER    make a broken copy of the project, to fix in class
"""
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "out", "__pycache__", ".pytest_cache", "*.pt")
LIMIT = 300  # seconds for one mutant: a test that hangs does not count as failed

FORMULA = "test_train.py::test_one_two_four_or_eight_micro_batches_give_the_gradient_of_the_formula"
RANKS = "test_ranks.py::test_two_processes_give_the_gradient_of_one_and_stay_equal"
RESUME = "test_resume.py::test_a_stopped_and_a_crashed_run_go_on_to_the_same_bits"
FUSED = "test_fused.py::test_values_and_gradients_are_the_plain_ones[1-forward_kl-0]"
SPAN = "test_formats.py::test_the_learned_span_runs_from_the_first_response_token_to_the_end"
SHIFTED = "test_train.py::test_y_is_x_shifted_and_tag_weight_reaches_the_tags_of_the_response_only"
SHARED = "test_train.py::test_ranks_and_micro_batches_share_a_step_out_under_one_normaliser[1-2]"
FIELDS = "test_convert.py::test_a_field_that_changes_the_computation_is_refused_by_name"
LAYOUT = "test_convert.py::test_a_gguf_computes_what_the_model_computes_in_transformers"

MUTANTS = [  # trap, as numbered in docs/traps.md; file; old text; new text; test
    (1, "losses.py", "(a * difference).sum(-1)", "(a * difference).mean(-1)",
     "test_divergences.py::test_values_equal_an_explicit_double_loop[1.0-forward_kl-0]"),
    (2, "train_distill_logits.py", "loss = terms[0] / n_valid ",
     "loss = terms[0] / n_valid / keep.sum() ", FORMULA + "[distill_logits]"),
    (3, "losses.py", "return scale(name, temperature) * of_log_probabilities(", "return of_log_probabilities(",
     "test_divergences.py::test_gradients_keep_their_size_at_every_temperature[forward_kl]"),
    (4, "train_distill_logits.py", "teacher_logits, cfg.temperature, mix)", "teacher_logits, 1.0, mix)",
     FORMULA + "[distill_logits]"),
    (4, "train_distill_logits.py", "(1 - cfg.alpha) * ce + cfg.alpha * kd  ", "kd  ",
     "test_train.py::test_alpha_0_is_pretraining"),
    (5, "losses.py", "        return kl(log_p, log_q)", "        return kl(log_q, log_p)",
     "test_losses.py::test_forward_kl_is_the_teachers_expectation"),
    (6, "fused.py", "(1 - alpha) * ce + alpha * kd", "ce + alpha * kd", FUSED),
    (6, "fused.py", "grad_head += grad.T @ hidden[part]", "grad_head = grad.T @ hidden[part]", FUSED),
    (7, "train_distill_logits.py", "teacher_logits = teacher(x, ", "teacher_logits = teacher(y, ",
     "test_train.py::test_a_one_hot_teacher_at_t_plus_1_is_learned_to_its_argmax"),
    (7, "dataset/windows.py", "weight[:, 1:]", "weight[:, :-1]", SHIFTED),
    (8, "dataset/windows.py", "max(weight.sum().item(), 1.0)", "weight.numel()",
     "test_train.py::test_appended_padding_changes_nothing[distill_logits]"),
    (9, "dataset/formats.py", 'if turn.role == "assistant" and turn.learned else 0', "", SPAN),
    (9, "losses.py", "torch.where(weights != 0, values * weights, 0.0)", "(values * weights)",
     "test_losses.py::test_total_is_the_weighted_sum_and_uncounted_tokens_may_hold_anything"),
    (10, "train_pretrain.py", "loss = terms[0] / n_valid ",
     "loss = terms[0] / keep.sum() / cfg.accumulate ", FORMULA + "[distill_responses]"),
    (10, "train_distill_reason.py", "loss = terms[0] / n_valid ",
     "loss = terms[0] / weight.sum() / cfg.accumulate ", FORMULA + "[distill_reason]"),
    (11, "common.py", "g.copy_(summed.view_as(g))", "g.copy_(summed.view_as(g) / env.world)", RANKS + "[pretrain-{}]"),
    (11, "dataset/windows.py", "max(weight.sum().item(), 1.0)",
     "max(env.world * weight[env.rank::env.world].sum().item(), 1.0)", SHARED),
    (12, "train_distill_reason.py", "common.sum_gradients(model.parameters(), env)",
     "common.sum_gradients(model.layers.parameters(), env)", RANKS + "[distill_reason-{}]"),
    (13, "losses.py", "    if log_p.shape[-1] > ids.shape[-1]:",
     "    log_p = log_p[..., :ids.shape[-1]]\n    if False:",
     "test_cache.py::test_topk_with_its_bucket_is_a_lower_bound_that_rises_with_k[forward_kl-0]"),
    (14, "losses.py", "    if log_p.shape[-1] > ids.shape[-1]:",
     "    log_p = torch.cat([log_p, log_p[..., :1] - 99], -1)\n    if True:",
     "test_cache.py::test_topk_of_the_whole_vocabulary_is_the_divergence[1.0-forward_kl-0]"),
    (15, "dataset/cache_reader.py", 'about["temperature"] in (None, cfg.temperature)', "True",
     "test_cache.py::test_another_training_is_refused"),
    (16, "dataset/cache_reader.py", "for number in numbers:", "for number in range(len(numbers)):",
     "test_cache.py::test_a_whole_cache_is_the_teacher[topk-1.0]"),
    (17, "dataset/cache_reader.py", "check(not differing, ", "check(True, ",
     "test_cache.py::test_another_training_is_refused"),
    (17, "dataset/windows.py", "tokenizer.fingerprint, window, target, documents,",
     "tokenizer.fingerprint, window, documents,",
     "test_windows.py::test_windows_are_cut_once_and_anew_for_anything_that_changes_them"),
    (18, "losses.py", "if student_logits.shape != teacher_logits.shape:", "if False:",
     "test_losses.py::test_different_vocabularies_or_shapes_are_refused[wrong1]"),
    (19, "checkpoints.py", "model.to(device).eval()", "model.to(device).train()",
     "test_train.py::test_the_teacher_is_frozen_in_eval_mode_and_without_gradient"),
    (20, "losses.py", "x.dtype == torch.float64 else x.float()", "x.dtype != torch.int8 else x.float()",
     "test_losses.py::test_half_precision_logits_lose_nothing_in_the_loss[1.0-dtype0]"),
    (21, "losses.py", "        return kl(log_q, log_p)", "        return kl(log_q.detach(), log_p)",
     "test_onpolicy.py::test_the_exact_reverse_kl_gradient_is_the_mean_of_the_score_function_estimate"),
    (22, "train_distill_features.py", 'teacher[t - 1]["hidden"]', 'teacher[max(t - 2, 0)]["hidden"]',
     "test_features.py::test_identical_networks_cost_nothing_under_every_map[last]"),
    (23, "dataset/verify.py", 'return (-value if sign == "-" else value)', "return (value)",
     "test_verify.py::test_numbers_are_exact"),
    (23, "dataset/verify.py", "        if depth == 0:", "        if depth <= 1:",
     "test_verify.py::test_the_final_answer_is_found"),
    (24, "dataset/windows.py", "is_tag & (weight > 0)", "is_tag", SHIFTED),
    (24, "tokenizer/train.py", "control_symbols=CONTROL[2:]", "user_defined_symbols=CONTROL[2:]",
     "test_tokenizer.py::test_no_text_spells_a_mark"),
    (25, "dataset/formats.py", "[learned] * words", "[0] + [learned] * (words - 1)", SPAN),
    (25, "dataset/formats.py", "[learned] * words", "[learned] * (words - 1) + [0]", SPAN),
    (26, "checkpoints.py", 'state["model"], strict=True)\n        tok', 'state["model"], strict=False)\n        tok',
     "test_bad_input.py::test_weights_that_do_not_fit_their_config_are_refused"),
    (26, "checkpoints.py", "optimizer.load_state_dict(saved)", "pass", RESUME + "[pretrain]"),
    (27, "train_distill_logits.py", "divergence(cfg.divergence, logits, teacher_logits, ",
     "divergence(cfg.divergence, teacher_logits, teacher_logits, ",
     FORMULA + "[distill_logits]"),
    (28, "runs/render.py", "        check(recipe in rows, ", "        check(True, ",
     "test_docs.py::test_a_claim_with_one_axis_is_refused"),
    (29, "convert.py", "check(value is None or name in (*KNOWN, *fixed), ", "check(True, ", FIELDS),
    (29, "model.py", "    if scaling:", "    if False:",
     "test_convert.py::test_a_folder_of_every_family_computes_what_it_computes_in_transformers[llama3-float32-how0]"),
    (30, "convert.py", 'arch == "llama" and re', "re", LAYOUT + "[qwen3]"),
    (30, "convert.py", 'arch == "llama" and re', "False and re", LAYOUT + "[llama]"),
    (31, "dataset/windows.py", "(ids, mask, order)", "(ids, [m * (i != pad) for i, m in zip(ids, mask)], order)",
     "test_real_tokenizer.py::test_the_end_is_learned_and_padding_is_not_although_both_are_one_id"),
    (32, "decoding.py", "logits[:, :model.n_tokens]", "logits", "test_real_tokenizer.py::test_padded_ids_are_never_sampled"),
    (32, "checkpoints.py", "own.fingerprint == tokenizer.fingerprint", "own.vocab_size == tokenizer.vocab_size",
     "test_real_tokenizer.py::test_equal_width_is_not_the_same_tokenizer"),
    (33, "checkpoints.py", "inputs = dict(teacher_fingerprint=weights_fingerprint(teacher))",
     'teacher = teacher.bfloat16().float() if env.dtype == "bf16" else teacher\n'
     "    inputs = dict(teacher_fingerprint=weights_fingerprint(teacher))",
     "test_train.py::test_no_flag_of_the_student_reaches_the_teacher"),
    (34, "losses.py", "return scale(name, temperature) * divergence(name, merged, log_p, mix=mix)",
     "return kl(log_p[..., :ids.shape[-1]], log_softmax(z).gather(-1, ids))",
     "test_cache.py::test_topk_with_its_bucket_is_a_lower_bound_that_rises_with_k[forward_kl-0]"),
]


def names():
    """{name: mutant}; 10a-train_pretrain is the first of trap 10."""
    found, seen = {}, Counter()
    for mutant in MUTANTS:
        trap, file = mutant[:2]
        found[f"{trap}{'abc'[seen[trap]]}-{Path(file).stem}"] = mutant
        seen[trap] += 1
    return found


def mutated(mutant):
    """The file's text with the old text replaced. ValueError unless that occurs exactly once."""
    _, file, old, new, _ = mutant
    text = (ROOT / file).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ValueError(f"{file}: the old text occurs {text.count(old)} times, not once: {old!r}")
    return text.replace(old, new)


def make_tree(folder, mutant):
    """Copy the tree to `folder`, and apply the mutant if there is one."""
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    if mutant:
        (folder / mutant[1]).write_text(mutated(mutant), encoding="utf-8")


def run(name, mutant, tests):
    """Run the tests in a copy of the tree, print a line -> did they fail (no mutant: pass)?"""
    words = [sys.executable, "-m", "pytest", "-qx", "--all", "-p", "no:cacheprovider",
             *[f"tests/{test}" for test in tests]]
    with tempfile.TemporaryDirectory(prefix="minidistill-mutants-") as folder:
        tree = Path(folder, "tree")
        make_tree(tree, mutant)
        try:
            log = subprocess.run(words, cwd=tree, capture_output=True, text=True, timeout=LIMIT,
                                 env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}).stdout.splitlines()
        except subprocess.TimeoutExpired:
            log = []
    end = log[-1] if log else "error: it hung or died"  # or "1 failed in 2.1s", "1 error in ..."
    right = " failed" in end if mutant else " passed" in end and " failed" not in end
    ok = right and "error" not in end
    why = next((line for line in log if line.startswith("E  ")), "")
    print(f"{'ok ' if ok else 'BAD'} {name:<26} {end}: {why[:130]}", flush=True)
    return ok


def main(words):
    """`mutants.py [NAME or TRAP ...]`, or `mutants.py --apply TRAP FOLDER` -> status"""
    chosen = {name: mutant for name, mutant in names().items()
              if any(word == str(mutant[0]) or name.startswith(word) and not word.isdigit()
                     for word in words) or not words}
    if words[:1] == ["--apply"]:
        if len(words) != 3 or not chosen or Path(words[2]).exists():
            print("error: --apply NAME FOLDER, a new folder; NAME one of " + ", ".join(names()))
            return 2
        mutant = next(iter(chosen.values()))
        make_tree(Path(words[2]), mutant)
        print(f"{words[2]}: a copy with one bug; the test that sees it: tests/{mutant[4]}")
        return 0
    tests = list(dict.fromkeys(mutant[4] for mutant in chosen.values()))
    jobs = [(f"untouched-{i}", None, tests[i::2]) for i in range(min(2, len(tests)))]
    jobs += [(name, mutant, [mutant[4]]) for name, mutant in chosen.items()]
    with ThreadPoolExecutor(2) as pool:
        bad = list(pool.map(run, *zip(*jobs))).count(False)
    print(f"{len(chosen)} mutants, {bad} not as they should be")
    return 0 if chosen and not bad else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
