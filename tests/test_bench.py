"""Claims about bench.py: it runs, whatever the functions that it borrows have become."""
import json

from runs import bench


def test_both_tables_are_measured_and_written(tiny_world, call, out_dir, monkeypatch):
    """It hands models and windows to dataset/cache_teacher.py, whose functions had other parameters."""
    monkeypatch.setattr(bench, "peak_flops", lambda env, dtype: 1e12)  # seconds of large matmuls
    done = call("runs.bench", f"--data={tiny_world.train}", f"--tokenizer={tiny_world.tokenizer}", "--teacher=0.1m",
                "--student=0.1m", "--window=143", "--batch=2", "--rounds=1", "--compile=false", f"--out={out_dir / 'bench'}")
    assert done.status == 0, done.err
    found = json.loads((out_dir / "bench.json").read_text())
    assert {row["model"] for row in found["shares"]} == {"teacher", "student"}
    assert len(found["ablation"]) == 8 and all(row["ms"] > 0 for row in found["ablation"])
