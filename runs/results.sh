#!/usr/bin/env bash
# The scoreboard: every way to distil against the student without a teacher, at equal tokens and equal wall-clock.
#   bash runs/results.sh            four seeds; about 90 minutes on 2 cores; rows in results/scoreboard.jsonl
#   bash runs/results.sh --quick    the stories alone, a third of the students' steps, two seeds: under 20 minutes, in out/quick
#   SEEDS="1 2" ONLY="few/*" bash runs/results.sh    some of the seeds, the recipes that fit a pattern
# A finished run is a row, and a row that is there is skipped: stop it and start it as you like. A new
# way to distil is one line that begins with "mode". For the last minutes, the speeds, leave the machine idle.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in ""|--quick) ;; *) echo "error: got $1; expected nothing or --quick" >&2; exit 2 ;; esac
if [ "${1:-}" = --quick ]; then export MINIDISTILL_OUT="${MINIDISTILL_OUT:-out}/quick"; fi
source runs/rows.sh
rows=results/scoreboard.jsonl seeds=${SEEDS:-1 2 3 4} scale=1 questions=1000 problems=500
if [ "${1:-}" = --quick ]; then
    rows=$out/scoreboard.jsonl seeds=${SEEDS:-1 2} scale=3 questions=300 problems=200
fi
mkdir -p "$out/data"

# alone SCRIPT FLAGS...: the student without a teacher.   mode NAME WALL SCRIPT FLAGS...: one with; N steps
# (equal tokens), and WALL steps, which take the time of N steps alone, the teacher's work counted.
alone() { run "$group/alone" "$seed" "$@" --steps $((N / scale)); }
mode() {
    local name=$1 wall=$2; shift 2
    run "$group/$name" "$seed" "$@" --steps $((N / scale))
    run "$group/$name-wall" "$seed" "$@" --steps $((wall / scale))
}

# --- stories: labels for 3 % of what the teacher learned from, and 8,000 questions without worked steps
group=few stories=$out/data/stories test=$out/data/stories/test.jsonl val=$out/data/stories/val.jsonl
teacher=$out/few-teacher-0.pt few=$out/data/few.jsonl
eval_flags="--questions $questions --suites $out/data/suites"
pretrain_few="train_pretrain.py --size 2m-deep --steps 1000"  # in --quick, too: a teacher worth learning from
prepare_few() {
    $python dataset/stories.py --out "$stories"
    if [ ! -e "$out/tokenizer.model" ]; then $python tokenizer/train.py; fi
    $python dataset/suites.py --data "$stories/test.jsonl" --problems $problems --out "$out/data/suites"
    $python $pretrain_few --name few-teacher-0 --seed 0
    together "$few" <(head -1200 "$stories/train.jsonl")
    # the teacher's verified solutions: of the questions as they are, and of half of them disturbed
    $python blackbox/prompts.py --out "$out/data/prompts.jsonl"
    local kind asked
    for kind in plain rich; do
        asked=$stories/distill.jsonl; if [ $kind = rich ]; then asked=$out/data/prompts.jsonl; fi
        $python blackbox/generate.py --teacher "$teacher" --input "$asked" \
            --questions $((8000 / scale)) --out "$out/data/traces-$kind.jsonl"
        together "$out/data/few-$kind.jsonl" "$few" "$out/data/traces-$kind.jsonl"
    done
}
together() { local made=$1; shift; cat "$@" > "$made.tmp"; mv "$made.tmp" "$made"; }
run few/teacher 0 $pretrain_few
small="--size 0.4m --val $val"
logits="train_distill_logits.py --teacher $teacher --alpha 1 $small"
N=1600
if [ $scale = 1 ]; then
    alone="train_pretrain.py $small --data $few --eval-every 50 --steps $N"
    reason="train_distill_reason.py $small --data $out/data/few-plain.jsonl --steps $N"
    for lr in 6e-3 1e-2 1.5e-2; do
        trial alone/lr-$lr  $alone --lr $lr
        trial reason/lr-$lr $reason --lr $lr
    done
    trial alone/decay-.3    $alone --lr 1e-2 --weight-decay 0.3
    trial reason/decay-.3   $reason --lr 1e-2 --weight-decay 0.3
fi
small="$small --lr 1e-2" logits="$logits --lr 1e-2 --temperature 2"
rich="train_distill_reason.py $small --data $out/data/few-rich.jsonl" teacher_few=$teacher
for seed in $seeds; do
    alone                 train_pretrain.py $small --data "$few" --eval-every 50
    mode logits      780  $logits --data "$few" --eval-every 50
    mode reason      770  train_distill_reason.py $small --data "$out/data/few-plain.jsonl"
    mode reason-rich 770  $rich
done

# --- prose: Python's own documentation; the students see a quarter of the teacher's documents
if [ $scale = 1 ]; then
    group=prose prose=$out/data/prose test=$out/data/prose/test.jsonl val=$out/data/prose/val.jsonl
    teacher=$out/prose-teacher-0.pt eval_flags=""
    files="--data $prose/train.jsonl --val $val --eval-windows 0"
    pretrain_prose="train_pretrain.py $files --tokenizer $out/prose.model --lr 3e-3 --steps 1500 --weight-decay 0.5"
    prepare_prose() {
        make_prose
        $python $pretrain_prose --name prose-teacher-0 --seed 0
    }
    run prose/teacher 0 $pretrain_prose
    small="$files --size 0.4m --lr 6e-3 --documents 533"
    alone="train_pretrain.py $small --tokenizer $out/prose.model"
    logits="train_distill_logits.py $small --teacher $teacher --alpha 1"
    N=1000
    trial alone/700-decay-.3     $alone --steps 700 --weight-decay 0.3
    trial alone/2000-decay-.6    $alone --steps 2000 --weight-decay 0.6
    trial alone/1000-decay-.3    $alone --steps $N --weight-decay 0.3
    trial alone/1000-decay-.6    $alone --steps $N --weight-decay 0.6
    trial alone/1000-decay-4     $alone --steps $N --weight-decay 4
    trial alone/1000-decay-4-lr-1e-2  $alone --steps $N --weight-decay 4 --lr 1e-2
    trial logits/tau-1           $logits --steps $N --temperature 1
    trial logits/tau-2           $logits --steps $N --temperature 2
    trial logits/tau-4           $logits --steps $N --temperature 4
    trial logits/tau-2-decay-.3  $logits --steps $N --temperature 2 --weight-decay 0.3
    for seed in $seeds; do
        alone            $alone --weight-decay 4 --lr 1e-2
        mode logits 490  $logits --temperature 2
    done
fi

# --- speed of the stories' teacher and a student, twice: do the ratios repeat?
for turn in 1 2; do
    if ! missing few/speed/1 $turn; then continue; fi
    group=few teacher=$teacher_few
    if [ ! -e "$teacher_few" ] || [ ! -e "$out/few-reason-rich-1.pt" ]; then prepare_few; fi
    $python $rich --steps $((1600 / scale)) --name few-reason-rich-1 --seed 1  # unless it is there
    $python speed.py "$teacher_few" "$out/few-reason-rich-1.pt" --seed $turn --row "$rows" \
        --recipe few/speed
done
if [ -n "${ONLY:-}" ]; then exit 0; fi
if [ $scale = 1 ]; then $python runs/render.py; else $python runs/render.py --rows "$rows" --show modes,robust,keeps; fi
