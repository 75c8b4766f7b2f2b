"""Claims about convert.py: a model that comes in computes what it computes in transformers, or is refused."""
import json
import re
import resource
import sys

import pytest
import torch

import checkpoints
from common import UserError
from conftest import CHATML
from decoding import generate

gguf, safetensors, tokenizers, transformers = map(pytest.importorskip, (
    "gguf", "safetensors.torch", "tokenizers", "transformers"))
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

SHAPE = dict(vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=48, max_position_embeddings=64, rms_norm_eps=1e-5)
EXPERTS = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
SCALING = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=16)
FAMILIES = {
    "llama": ("Llama", dict(tie_word_embeddings=True)), "llama3": ("Llama", dict(rope_parameters=SCALING)),
    "mistral": ("Mistral", dict(head_dim=16)), "qwen2": ("Qwen2", dict(use_sliding_window=False, sliding_window=9)),
    "qwen3": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True, rms_norm_eps=1e-6)),
    "qwen3_moe": ("Qwen3Moe", dict(head_dim=16, **EXPERTS)),
    "qwen3_moe, raw weights": ("Qwen3Moe", dict(head_dim=16, **EXPERTS | dict(norm_topk_prob=False)))}


def make(family, **changes):
    """Returns a random model of transformers in float32, of wide spread: a wrong permutation, scale or norm shows."""
    name, own = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**SHAPE | own | changes)
    model, generator = getattr(transformers, f"{name}ForCausalLM")(config), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            noise = 0.3 * torch.randn(p.shape, generator=generator)
            p.copy_(1 + noise if p.dim() == 1 and p.mean() == 1 else noise)  # norms; biases are 0
    return model.eval()


@pytest.fixture(scope="session")
def real_tokenizer(byte_level):
    """A folder with a byte-level tokenizer of 270 tokens, so a model of 300 has padded rows."""
    return byte_level()


@pytest.fixture
def folder(tmp_path, real_tokenizer):
    """A function: writes a model of transformers as a folder, changed by `change(config)` -> its path."""
    def write(model, change=lambda config: None, path=tmp_path / "model", **how):
        model.save_pretrained(path, **how)
        config = json.loads((path / "config.json").read_text())
        change(config)
        (path / "config.json").write_text(json.dumps(config))
        for file in real_tokenizer.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
        return path
    return write


@pytest.fixture
def come_in(call, out_dir):
    """A function: `come_in(path, *flags)` -> (the model that came in, its checkpoint)"""
    def run(path, *flags):
        done = call("convert", f"--from={path}", f"--out={out_dir / 'x.pt'}", *flags)
        assert done.status == 0, done.err
        model, tokenizer, state = checkpoints.load_model(out_dir / "x.pt")
        assert tokenizer.vocab_size == model.config.vocab_size
        return model, state
    return run


@pytest.fixture
def refused(call, out_dir, tmp_path):
    """A function: `refused(path, *flags)` -> the one error line; nothing was written."""
    def run(path, *flags):
        done = call("convert", f"--from={path}", f"--out={out_dir / 'x.pt'}", *flags)
        assert done.status == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done
        assert list(out_dir.iterdir()) == []
        return done.err
    return run


@torch.no_grad()
def assert_same(ours, theirs, tokens=60):
    ids = torch.randint(SHAPE["vocab_size"], (2, tokens), generator=torch.Generator().manual_seed(1))
    expected, got = theirs(ids).logits, ours(ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
    ours.n_tokens = SHAPE["vocab_size"]  # transformers samples padded ids, too
    greedy = theirs.generate(ids[:1, :9], max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert generate(ours, [ids[0, :9].tolist()], 12) == [greedy[0, 9:].tolist()]


@pytest.mark.parametrize("dtype, how", [("float32", {}), ("bfloat16", dict(max_shard_size="20KB"))])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_every_family_computes_what_it_computes_in_transformers(family, dtype, how, folder, come_in):
    """TRAPS 29: every weight fits and every logit is wrong."""
    path = folder(make(family).to(getattr(torch, dtype)), **how)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert (len(list(path.glob("*.safetensors"))) > 1) == bool(how)
    ours, state = come_in(path)
    assert_same(ours, theirs)
    assert state["source"] == dict(name="model", kind=theirs.config.model_type, licence="apache-2.0")


def older(config):
    """Writes a config as older versions of transformers did."""
    found = config.pop("rope_parameters")
    config["rope_theta"], config["torch_dtype"] = int(found.pop("rope_theta")), config.pop("dtype")
    config["rope_scaling"] = None if found["rope_type"] == "default" else dict(found, type="llama3", factor=8)
    config.pop("head_dim")


@pytest.mark.parametrize("family", ["llama", "llama3"])
def test_a_config_of_an_older_version_means_the_same(family, folder, come_in):
    """Most models of the hub have rope_theta as an int of its own, and no head_dim."""
    theirs = make(family)
    assert_same(come_in(folder(theirs, older))[0], theirs)


PLAIN = dict(rope_type="default", rope_theta=1e4)


@pytest.mark.parametrize("family, named, changes", [
    ("llama", "rope_type yarn", dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=2.0))),
    ("llama", "rope_type linear", dict(rope_parameters=None, rope_scaling=dict(type="linear", factor=2.0))),
    ("llama", "mrope_section", dict(rope_parameters=PLAIN | dict(mrope_section=[1, 1]))),
    ("llama", "partial_rotary_factor", dict(rope_parameters=PLAIN | dict(partial_rotary_factor=0.5))),
    ("llama", "attention_factor", dict(rope_parameters=SCALING | dict(attention_factor=2.0))),
    ("llama", "low_freq_factor", dict(rope_parameters=dict(rope_type="llama3", factor=2.0))),
    ("mistral", "sliding_window", dict(sliding_window=32)),
    ("qwen3", "sliding_window", dict(use_sliding_window=True, sliding_window=32)),
    ("qwen2", "layer_types", dict(layer_types=["full_attention", "sliding_attention"])),
    ("qwen3_moe", "decoder_sparse_step", dict(decoder_sparse_step=2)),
    ("qwen3_moe", "mlp_only_layers", dict(mlp_only_layers=[1])), *(("llama", *field) for field in (
        (name, {name: value}) for name, value in dict(
            hidden_act="gelu", no_rope_layers=[1, 1, 0], embedding_multiplier=12.0, norm_type="layer",
            quantization_config=dict(quant_method="gptq"), attention_bias=True, mlp_bias=True, model_type="gemma3",
            partial_rotary_factor=0.5, final_logit_softcapping=30.0, rope_interleaved=True, num_attention_heads=0,
            num_hidden_layers=None, hidden_size=[32], rms_norm_eps="1e-5", num_key_value_heads=3).items()))])
def test_a_field_that_changes_the_computation_is_refused_by_name(family, named, changes, folder, refused):
    """TRAPS 29: the weights of all these variants load without an error."""
    assert named in refused(folder(make(family), lambda config: config.update(changes)))


def test_the_context_can_be_cut(folder, come_in, refused):
    """A context of 131,072 makes tables of 134 MB. A sliding window in use is none in a short context."""
    path = folder(theirs := make("mistral", sliding_window=32))
    assert "--context 32" in refused(path) and "--context" in refused(path, "--context=65")
    ours, _ = come_in(path, "--context=32")
    assert ours.config.max_seq_len == len(ours.cos) == 32
    assert_same(ours, theirs, tokens=32)


def write_gguf(path, theirs, folder, header={}, tensors={}):
    """Writes a model of transformers as llama.cpp's converter does, with more in it -> path."""
    c, arch = theirs.config, theirs.config.model_type.replace("mistral", "llama")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], c.num_hidden_layers)
    writer, C = gguf.GGUFWriter(path, arch), theirs.model.layers[0].self_attn.head_dim
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    facts = dict(
        block_count=c.num_hidden_layers, context_length=64, embedding_length=32, feed_forward_length=48, head_count=4,
        head_count_kv=2, key_length=C, value_length=C, rope_dimension_count=C, layer_norm_rms_eps=c.rms_norm_eps,
        rope_freq_base=c.rope_parameters["rope_theta"], tokenizer_model="gpt2", tokenizer_pre="gpt-2", eos_token_id=2,
        token_list=[*content["vocab"], *(f"[PAD{i}]" for i in range(270, 300))], chat_template=CHATML,
        token_types=[3] * 3 + [1] * 267 + [5] * 30, token_merges=[" ".join(pair) for pair in content["merges"]])
    for name, value in (facts | header).items():
        getattr(writer, f"add_{name}")(value)
    for name, tensor in theirs.state_dict().items():
        if arch == "llama" and re.search("[qk]_proj", name):
            order = [C // 2 * half + i for i in range(C // 2) for half in (0, 1)]  # 0, C/2, 1, C/2 + 1, ...
            tensor = tensor.view(-1, C, 32)[:, order].view(tensor.shape)
        if name != "lm_head.weight" or not c.tie_word_embeddings:
            tensors = {names.get_name(name, (".weight", ".bias")): tensor, **tensors}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["llama", "llama3", "mistral", "qwen2", "qwen3"])
def test_a_gguf_computes_what_the_model_computes_in_transformers(family, come_in, real_tokenizer, tmp_path):
    """TRAPS 30: rows of q and k are permuted in the llama layout only; logits were off by 33."""
    theirs, more = make(family), {}
    if family == "llama3":
        theirs = make(family, rope_parameters=SCALING | dict(original_max_position_embeddings=8192))
        plain = 1 / 500000.0 ** (torch.arange(0, 8, 2) / 8)
        more = {"rope_freqs.weight": plain / theirs.model.rotary_emb.inv_freq}
    ours, state = come_in(write_gguf(tmp_path / "x.gguf", theirs, real_tokenizer, tensors=more))
    assert_same(ours, theirs)
    assert ours.config.norm_eps == theirs.config.rms_norm_eps  # float32(1e-5) is 9.99999975e-06
    assert state["source"]["kind"] == theirs.config.model_type.replace("mistral", "llama")


@pytest.mark.parametrize("family, changes", [
    ("qwen3", dict(rms_norm_eps=1e-6)), ("llama", {}),  # llama: a minimind of 2025
    ("qwen3_moe", dict(num_experts=4, num_experts_per_tok=1, tie_word_embeddings=True, rms_norm_eps=1e-6))])
def test_a_checkpoint_of_minimind_has_no_config(family, changes, folder, come_in, real_tokenizer, tmp_path):
    """Its shapes do not tell theta, eps or the heads of an older one. A wrong guess would load, too."""
    path = folder(make(family, num_attention_heads=8, num_key_value_heads=4, head_dim=4, **changes, rope_parameters=dict(
        rope_type="default", rope_theta=1e6)).half(), path=tmp_path / "minimind" / "model")
    weights = safetensors.load_file(path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]  # minimind writes both
    file = tmp_path / "minimind" / "out" / "full_sft_32.pth"
    file.parent.mkdir()
    torch.save(weights, file)
    ours, _ = come_in(file)
    assert_same(ours, transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
    assert ours.config.max_seq_len == 32768 and ours.config.tie_embeddings


def rewrite(name, change):
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes()))


def resave(name, tensor=None):
    """A function: replaces a tensor of a folder, or takes it out."""
    def damage(path):
        weights = safetensors.load_file(path / "model.safetensors") | {name: tensor}
        safetensors.save_file({k: v for k, v in weights.items() if v is not None}, path / "model.safetensors")
    return damage


@pytest.mark.parametrize("named, damage", [
    *((name, lambda path, name=name: (path / name).unlink()) for name in (
        "config.json", "tokenizer.json", "model.safetensors")),
    ("Missing key", lambda path: next(path.glob("*-00002-of-*")).unlink()),
    *(("cannot be read", rewrite(name, lambda b: b[:-9])) for name in (
        "config.json", "model.safetensors", "tokenizer.json")),
    ("norm.weight", resave("model.norm.weight", torch.ones(33))), ("norm.weight", resave("model.norm.weight")),
    ("q_proj.bias", resave("model.layers.1.self_attn.q_proj.bias", torch.ones(32)))])
def test_a_damaged_folder_is_refused_in_one_line(named, damage, folder, refused):
    """Half of a model would be a random model, and a teacher of noise."""
    path = folder(make("llama"), max_shard_size="20KB" if named == "Missing key" else "1GB")
    damage(path)
    assert named in refused(path)


NORM = b"output_norm.weight" + bytes([1, 0, 0, 0, 32]) + bytes(7)  # name, dimensions, size; then the type


@pytest.mark.parametrize("named, header, tensors, damage", [
    ("cannot be read", {}, {}, lambda b: b[:-99]), ("is not a valid", {}, {}, lambda b: b.replace(NORM + b"\0", NORM + b"c")),
    ("general.architecture", {}, {}, lambda b: b.replace(b"llama", b"gemma")),
    ("llama.rope.scaling.type", dict(rope_scaling_type=gguf.RopeScalingType.YARN), {}, None),
    ("llama.logit_scale", dict(logit_scale=2.0), {}, None),
    ("rope_freqs", {}, {"rope_freqs.weight": torch.ones(4) * 3}, None),
    ("attn_q.bias", {}, {"blk.0.attn_q.bias": torch.ones(32)}, None)])
def test_a_gguf_that_is_not_understood_is_refused(named, header, tensors, damage, refused, real_tokenizer, tmp_path):
    """The same, for a file of llama.cpp."""
    path = write_gguf(tmp_path / "x.gguf", make("llama"), real_tokenizer, header, tensors)
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    assert named in refused(path)


def test_flags_and_files_that_do_not_fit_are_refused(folder, refused, tmp_path, monkeypatch):
    """An optional package that is missing is named with the command that installs it."""
    path = folder(make("qwen3"))
    for text in (tmp_path / "x.txt", tmp_path / "x.gguf"):
        text.write_text("x")
    assert "a folder" in refused(tmp_path / "x.txt") and "not exist" in refused("no")
    assert "--openings" in refused(path, "--openings=<|im_start|>")
    assert "kind: no effect" in refused(path, "--kind=f16")
    for wrong in (path, path / "model.safetensors"):  # any other script names the command
        with pytest.raises(UserError, match=f"convert.py --from {path} "):
            checkpoints.load(wrong)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "requirements-real.txt" in refused(text)


def test_experts_can_only_teach(folder, come_in, call, tiny_world, out_dir):
    """Without a loss that balances the experts, training makes most of them useless."""
    come_in(folder(make("qwen3_moe")))
    done = call("train_pretrain", *tiny_world.flags("pretrain", init=out_dir / "x.pt", window=32))
    assert done.status == 2 and "experts" in done.err


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_a_student_that_went_out_and_came_back_is_the_same_to_the_bit(kind, call, tmp_path, tiny_world):
    """A rounded weight, or the last step in place of the best one, would go unnoticed."""
    trained, there, back = tmp_path / "a.pt", tmp_path / ("x" if kind == "hf" else "x.gguf"), tmp_path / "back.pt"
    state = checkpoints.load(tiny_world.teacher)
    checkpoints.save(trained, state | dict(best={name: tensor + 1 for name, tensor in state["model"].items()}))
    assert call("convert", trained, f"--to={kind}", f"--out={there}").status == 0
    assert call("convert", f"--from={there}", f"--out={back}").status == 0
    (before, tokenizer, _), (after, same, _) = map(checkpoints.load_model, (trained, back))
    assert before.config == after.config and tokenizer.fingerprint == same.fingerprint
    assert checkpoints.weights_fingerprint(before) == checkpoints.weights_fingerprint(after)


@pytest.mark.slow
@torch.no_grad()
def test_the_quantised_smollm2_is_the_model_that_transformers_reads(run_script, out_dir, tmp_path, smollm2):
    """A real file: Q4_1 and Q8_0 weights, 49,152 tokens. All of it must fit the memory of a laptop."""
    run_script("convert.py", f"--from={smollm2}", f"--out={out_dir / 'x.pt'}", "--context=512")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3e6  # KB
    ours, tokenizer, state = checkpoints.load_model(out_dir / "x.pt")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**load_gguf_checkpoint(smollm2)["config"])).eval()
    read = load_gguf_checkpoint(smollm2, return_tensors=True, model_to_load=theirs)["tensors"]
    theirs.load_state_dict({"lm_head.weight": read["model.embed_tokens.weight"], **read})
    ids = torch.tensor([tokenizer.encode("The capital of France is Paris. It has 2,102,650 people.")])
    expected, got = theirs(ids).logits, ours(ids)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(got.argmax(-1), expected.argmax(-1)) and tokenizer.decode(got[0, 4:5].argmax(-1)) == " Paris"
    assert state["source"]["licence"] == "apache-2.0" and ours.config.norm_eps == 1e-5
