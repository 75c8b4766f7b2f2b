"""Claims about runs/spoil.py: it changes what it should, and nothing else."""
import json

import pytest

from metrics import json_lines

CHAINS = [("3+19=22\n22+18=40\n40-20=20", "20"), ("14/2=7", "7"), ("1+1=2", "3")] * 250


def spoiled(call, folder, rows, *flags):
    """Run spoil.py on rows -> [(thought, answer)] of the new replies."""
    path, out = folder / "x.jsonl", folder / "y.jsonl"
    path.write_text(json_lines(rows))
    assert call("runs.spoil", "--input", path, "--out", out, "--fresh", *flags).status == 0
    replies = [json.loads(line)["conversations"][-1] for line in out.read_text().splitlines()]
    return [(reply["reasoning_content"], reply["content"]) for reply in replies]


@pytest.mark.parametrize("how, spoilable", [("shuffled", (0,)), ("wrong", (0, 1))])
def test_a_spoiled_chain_is_wrong_in_one_way_only(call, out_dir, how, spoilable):
    """A shuffle in the old order, an answer that its chain does not end with, or a --share without effect."""
    rows = [dict(conversations=[dict(role="user", content="q"), dict(
        role="assistant", reasoning_content=thought, content=answer)]) for thought, answer in CHAINS]
    after = spoiled(call, out_dir, rows, "--how", how, "--share", 1)
    for i, ((old, was), (new, answer)) in enumerate(zip(CHAINS, after, strict=True)):
        assert (new != old) == (i % 3 in spoilable)
        if how == "shuffled":
            assert sorted(new.split("\n")) == sorted(old.split("\n")) and answer == was
        elif i % 3 in spoilable:
            assert new.rpartition("=") == (old.rpartition("=")[0], "=", answer) and answer != was
    half, again = (spoiled(call, out_dir, rows, "--how", how, "--share", 0.5) for _ in range(2))
    changed = sum(new != old for new, old in zip(half, CHAINS))
    assert abs(changed / (250 * len(spoilable)) - 0.5) < 0.12 and half == again  # 3.8 standard deviations or more


def test_unjudged_keeps_right_and_wrong_alike(call, out_dir):
    """Wrong answers would be dropped, or cut-off answers, answers without a thought or the header would be kept."""
    answers = [("1+1=2", "2", "ok"), ("1+1=3", "3", "wrong answer"), ("1+1", "", "truncated"),
               (None, "<think>2+2=4</think><answer>4</answer>", "ok"), (None, "4", "ok")]
    rows = [dict(conversations=[dict(role="user", content="q")], reasoning_content=thought,
                 content=content, verdict=verdict) for thought, content, verdict in answers]
    assert spoiled(call, out_dir, [dict(teacher=""), *rows], "--how", "unjudged") == [
        ("1+1=2", "2"), ("1+1=3", "3"), ("2+2=4", "4")]
    assert call("runs.spoil", f"--input={out_dir}/x.jsonl", f"--out={out_dir}/y.jsonl").status == 2
    (out_dir / "x.txt").write_text("Once upon a time")  # it has no turns
    assert call("runs.spoil", f"--input={out_dir}/x.txt", f"--out={out_dir}/z.jsonl").status == 2
