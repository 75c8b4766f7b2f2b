import re, pytest
@pytest.mark.parametrize("s", ["pretrain", "distill_logits"])
def test_p(call, tiny_world, s):
    for opt in ("adamw","muon"):
        for lr in (1, 3, 10, 30, 100):
            for w in (0, 4):
                d = call("train_"+s, *tiny_world.flags(s, steps=8, save_every=3, eval_every=2, batch=6, lr=lr, warmup=w, optimizer=opt), "--fresh")
                print(s, opt, lr, w, re.findall(r"validation ce ([\d.]+) nats a token\n", d.out), d.err)
