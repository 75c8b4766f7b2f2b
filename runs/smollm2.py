"""Export real models: is the text equal in three programs? Speed, and the loss as Q8_0.

    python runs/smollm2.py out/smollm2.pt out/smollm2-logits-1.pt    kept as results/smollm2.md

Each model goes out as a folder and as two GGUF files (f32 and q8_0). transformers, llama.cpp and
decoding.py continue the beginnings of some test documents, greedily and in turns. convert.py
reads the Q8_0 file back, so the cross-entropy of its rounded weights is measured here, in float32.
Needs .venv/bin/pip install --no-deps xllamacpp and requirements-dev.txt. Nothing else should run.
"""
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, check, progress, run, versions
import torch

import checkpoints
from dataset.formats import read_documents
from dataset.windows import open_data
from decoding import generate
from eval import score
from metrics import markdown

SERVER = """import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx, params.n_parallel = sys.argv[1], 0, 2048, 2
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(36000)"""


@dataclass
class Config:
    checkpoint: list = None        # the models, such as the teacher and its student
    data: str = OUT / "data/prose/test.jsonl"  # documents to continue, and to score
    documents: int = 10            # how many documents are continued
    tokens: int = 64               # new tokens of each
    batch: int = 8                 # windows scored at once


def convert(*words):
    subprocess.run([sys.executable, "convert.py", *map(str, words), "--fresh"], check=True,
                   stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def llama_cpp(path):
    """Yield a function (prompt ids, number of new tokens) -> new ids: a server with this file."""
    words = [sys.executable, "-c", SERVER, path, str(torch.get_num_threads())]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True) as server:
        url = server.stdout.readline().strip()

        def write(prompt, tokens):
            body = dict(prompt=prompt, temperature=0, n_predict=tokens, return_tokens=True,
                        cache_prompt=False)
            request = urllib.request.Request(f"{url}/completion", json.dumps(body).encode(),
                                             {"Content-Type": "application/json"})
            return json.load(urllib.request.urlopen(request))["tokens"]
        try:
            yield write
        finally:
            server.kill()


def in_transformers(folder):
    """-> the same function, by transformers."""
    from transformers import AutoModelForCausalLM, GenerationConfig
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    how = GenerationConfig(do_sample=False, eos_token_id=model.generation_config.eos_token_id,
                           pad_token_id=model.generation_config.eos_token_id[0])

    def write(prompt, tokens):
        ids = torch.tensor([prompt])
        how.max_new_tokens = tokens
        return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)[
            0, len(prompt):].tolist()
    return write


@torch.inference_mode()
def measure(path, cfg):
    """A checkpoint -> two lines of the table: in float32, and with the weights of its Q8_0."""
    name, lines = Path(path).stem, []
    folder, whole, small = (OUT / f"{name}-out{end}" for end in ("", ".gguf", ".q8_0.gguf"))
    convert(path, "--to", "hf", "--out", folder)
    convert(path, "--to", "gguf", "--out", whole)
    convert(path, "--to", "gguf", "--kind", "q8_0", "--out", small)
    convert("--from", small, "--out", OUT / f"{name}-q8_0.pt")
    for file, checkpoint in ((whole, path), (small, OUT / f"{name}-q8_0.pt")):
        model, tokenizer, _ = checkpoints.load_model(checkpoint)
        data = open_data(cfg.data, tokenizer, 256)
        ce = score(model, tokenizer, None, data, cfg)["ce"]
        texts = [text for _, text in read_documents(cfg.data)][:cfg.documents]
        prompts = [tokenizer.encode(text)[:32] for text in texts]
        with llama_cpp(file) as there:
            writers = [lambda prompt, n: generate(model, [prompt], n, tokenizer.stop_ids)[0], there]
            writers += [in_transformers(folder)] if file == whole else []
            speeds, same = [[] for _ in writers], [0] * len(writers)
            for prompt in progress(f"{file.name}: documents continued:", prompts):
                texts = []
                for place, write in enumerate(writers):
                    began = time.perf_counter()
                    texts.append(write(prompt, cfg.tokens))
                    speeds[place].append(len(texts[-1]) / (time.perf_counter() - began))
                    same[place] += texts[-1] == texts[0]
        speeds = [f"{median(some):.0f}" for some in speeds] + ["-"]
        lines.append([f"{name}, {'float32' if file == whole else 'Q8_0'}",
                      f"{model.num_parameters():,}", f"{file.stat().st_size / 1e6:.0f}",
                      f"{ce:.4f}", *speeds[:3],
                      ", ".join(f"{n} of {len(prompts)}" for n in same[1:])])
    return lines


def main(cfg):
    check(cfg.checkpoint, "name the models, such as out/smollm2.pt")
    lines = [line for path in cfg.checkpoint for line in measure(path, cfg)]
    v = versions()
    print(f"{v['machine']}, {v['threads']} threads, torch {v['torch']}, commit {v['commit']}\n")
    print(markdown("model | parameters: | MB of the GGUF: | test ce: | tokens/s here: | llama.cpp: "
                   "| transformers: | same text as here:", lines))


if __name__ == "__main__":
    run(main, Config)
