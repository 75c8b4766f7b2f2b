#!/usr/bin/env bash
# What black-box data is worth: five lessons from one teacher's text, its prompts, its filter, its amount, spoiled.
#   bash runs/lessons.sh            four seeds, after bash speedrun.sh; hours on 2 cores; rows in results/blackbox.jsonl
#   SEEDS=1 ONLY="blackbox/rows-*" bash runs/lessons.sh    some of the seeds, the recipes that fit a pattern
# The teacher stands behind HTTP: no student reads its file. A row that is there is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/rows.sh
rows=results/blackbox.jsonl group=blackbox teacher=$out/teacher.pt stories=$out/data/blackbox-stories
test=$stories/test.jsonl made=$out/data/blackbox port=${PORT:-8124}

prepare_blackbox() {
    if [ -e "$made-ready" ]; then return 0; fi
    need "$teacher" "bash speedrun.sh"
    $python dataset/stories.py --train 1 --test 2000 --out "$stories"
    $python dataset/suites.py --data "$stories/test.jsonl" --out "$out/data/blackbox-suites"
    $python dataset/suites.py --data "$stories/test.jsonl" --out "$out/data/blackbox-suites-2000" --problems 2000
    # 8,000 questions as they are; and 8,000 of which half are disturbed: adversarial ones, edge cases
    $python blackbox/prompts.py --input "$stories/distill.jsonl" --out "$made-rich-prompts.jsonl" \
        --operations typos,invented,no_punctuation,order,format_trap,boundary,deeper
    serve
    ask plain "$stories/distill.jsonl"
    ask rich "$made-rich-prompts.jsonl"
    stop_serving
    # as many rows of each: the teacher fails at more of the disturbed questions
    local n
    n=$(wc -l < "$made-rich-kept.jsonl")
    head -n "$n" "$made-plain-kept.jsonl" > "$made-plain.jsonl"
    cp "$made-rich-kept.jsonl" "$made-rich.jsonl"
    # and spoiled: answers that nobody judged, chains out of order, chains that end wrong
    $python runs/spoil.py --how unjudged --input "$made-rich-raw.jsonl.all.jsonl" --out "$made-all.jsonl" --fresh
    head -n "$n" "$made-all.jsonl" > "$made-unjudged.jsonl"
    $python runs/spoil.py --how shuffled --input "$made-rich.jsonl" --out "$made-shuffled.jsonl" --fresh
    $python runs/spoil.py --how wrong --input "$made-rich.jsonl" --out "$made-wrong.jsonl" --fresh
    touch "$made-ready"
}
ask() {  # NAME PROMPTS: the teacher's answers, and those that the filter keeps
    $python blackbox/generate.py --base-url "http://127.0.0.1:$port/v1" --model teacher --input "$2" --out "$made-$1-raw.jsonl"
    $python blackbox/filter.py --input "$made-$1-raw.jsonl" --out "$made-$1-kept.jsonl" --against "$stories/"{val,test}.jsonl
}

# lesson NAME ROWS SCRIPT FLAGS...: one student
lesson() { local name=$1; shift; run "blackbox/$name" "$seed" $(training "$@"); }
training() {
    local data=$1; shift
    echo "$* --data $made-$data.jsonl --val $stories/val.jsonl --steps 1600 --lr 1e-2"
}
# again NAME LESSON EVALUATION ROWS SCRIPT FLAGS...: that student, evaluated once more in another way
again() {
    local name=$1 model=blackbox-$2-$seed evaluation=$3; shift 3
    if ! missing "blackbox/$name" "$seed"; then return 0; fi
    prepare_blackbox
    $python $(training "$@") --name "$model" --seed "$seed"  # unless it is there
    eval_flags=$evaluation score "blackbox/$name" "$seed" "$out/$model.pt"
}
reason=train_distill_reason.py answers=train_distill_responses.py
clean="--questions 2000" eval_flags="$clean --suites $out/data/blackbox-suites"
if missing blackbox/teacher 0; then
    prepare_blackbox
    score blackbox/teacher 0 "$teacher"
fi
# what was tried for both ends, on validation data
val=$stories/val.jsonl
for lr in 6e-3 1e-2; do
    trial cot/lr-$lr  $(training rich $reason) --lr $lr
    trial bare/lr-$lr $(training rich $answers --target answer) --lr $lr
done
trial bare/lr-6e-3-800 $(training rich $answers --target answer) --lr 6e-3 --steps 800
for seed in ${SEEDS:-1 2 3 4}; do
    lesson cot          rich  $reason
    lesson plain        plain $reason
    lesson bare         rich  $answers --target answer
    lesson full         rich  $answers
    lesson mixed        rich  $reason --target mixed
    eval_flags="$eval_flags --target cot" lesson multi rich $reason --target multi
    again mixed-cot mixed "$eval_flags --target cot" rich $reason --target mixed
    again multi-bare multi "$eval_flags --target answer" rich $reason --target multi
    large="$clean --suites $out/data/blackbox-suites-2000"
    again cot-2000 cot "$large" rich $reason
    again plain-2000 plain "$large" plain $reason
    lesson unjudged     unjudged $reason
    eval_flags=$clean
    lesson shuffled     shuffled $reason
    lesson wrong        wrong    $reason
    for percent in 1 3 10 30; do
        if ! missing blackbox/rows-$percent "$seed"; then continue; fi
        prepare_blackbox
        n=$(wc -l < "$made-rich.jsonl")
        lesson rows-$percent rich $reason --documents $((n * percent / 100))
    done
    eval_flags="$clean --suites $out/data/blackbox-suites"
done
if [ -z "${ONLY:-}" ]; then $python runs/render.py; fi
