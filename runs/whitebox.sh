#!/usr/bin/env bash
# White box, every way: what the teacher's distribution, hidden states, relations and layers are worth on prose.
#   bash runs/whitebox.sh           after bash runs/results.sh: two seeds of all, four new ones of the best; hours
#   bash runs/whitebox.sh --times   what a step of each costs, taking turns, on an idle machine
#   SEEDS=1 ONLY="white/c*" bash runs/whitebox.sh    some of the seeds, the recipes that fit a pattern
# Rows in results/whitebox.jsonl, times in results/whitebox-times.jsonl; what is there is skipped. A new
# way to distil is one line that begins with "mode".
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in ""|--times) ;; *) echo "error: got $1; expected nothing or --times" >&2; exit 2 ;; esac
source runs/rows.sh
rows=results/whitebox.jsonl group=white prose=$out/data/prose test=$out/data/prose/test.jsonl val=$out/data/prose/val.jsonl
teacher=$out/white-teacher-0.pt cache=$out/data/white-cache mixed=$out/data/white-mixed.jsonl
files="--data $prose/train.jsonl --val $val --eval-windows 0"
pretrain="train_pretrain.py $files --tokenizer $out/prose.model --size 3m-deep --lr 3e-3 --steps 1500 --weight-decay"
prepare_white() {
    make_prose
    $python $pretrain 1 --name white-teacher-0 --seed 0
    local kind
    for kind in topk sampled hidden; do make_cache $kind; done
}
make_more() {  # WORDS...: what the recipe of these words needs beside that
    case "$*" in
    *"$cache-two"*) prepare_white; $python $pretrain 1 --name white-teacher-1 --seed 1; make_cache two ;;
    *"$mixed"*)
        if [ -e "$mixed" ]; then return 0; fi
        prepare_white; write_documents
        cat <(head -533 "$prose/train.jsonl") "$out/data/white-written.jsonl" > "$mixed.tmp"
        mv "$mixed.tmp" "$mixed" ;;
    esac
}
write_documents() { $python blackbox/write.py --teacher "$teacher" --documents 1600 --out "$out/data/white-written.jsonl" "$@"; }
make_cache() {  # of the students' documents, once, for any number of students
    local kind=$1; shift
    case $kind in two) set -- --kind topk "$out/white-teacher-1.pt" "$@" ;; *) set -- --kind $kind "$@" ;; esac
    $python dataset/cache_teacher.py --teacher "$teacher" --data "$prose/train.jsonl" --documents 533 \
        --out "$cache-$kind" "$@"
}

# mode NAME SCRIPT FLAGS...: one recipe. With --times, 60 steps of it instead, and a row of their time.
times=results/whitebox-times.jsonl
# In the group "best" those of $best alone.
best="alone alone-1400 alone-4000 cached-hidden hidden init init-hidden written init-hidden-written"
mode() {
    local name=$1; shift
    if [ $group = best ]; then
        if [[ " $best " != *" $name "* ]]; then return 0; fi
        if [[ $name != alone* ]]; then set -- "$@" --temperature 1.5; fi  # as the trials say
    fi
    if [ "$turn" = 0 ]; then
        if missing "$group/$name" "$seed"; then make_more "$@"; fi
        run "$group/$name" "$seed" "$@"
        return
    fi
    if [[ $name == alone-* ]] || ! rows=$times missing "white/$name" "$turn"; then return 0; fi
    make_more "$@"
    local making=0
    if [[ "$*" == *--cache* ]]; then
        local word kind
        for word in "$@"; do if [[ $word == "$cache-"* ]]; then kind=${word#"$cache-"}; fi; done
        cached_in[$kind]=${cached_in[$kind]:-$(took make_cache "$kind" --fresh)} making=${cached_in[$kind]}
    elif [[ "$*" == *"$mixed"* ]]; then
        written_in=${written_in:-$(took write_documents --fresh)} making=$written_in
    fi
    timed "white/$name" $making "$@"
}

# timed RECIPE SECONDS SCRIPT FLAGS...: 60 steps, and a row of what one of them costs and what was made before
timed() {
    local recipe=$1 making=$2; shift 2
    $python "$@" --steps 60 --log-every 2 --eval-every 1000 --save-every 1000 --fresh --name white-time
    $python runs/step_time.py "$out/white-time.csv" --recipe "$recipe" --turn "$turn" --row $times --making "$making"
}

# took COMMAND...: its seconds, from its start to its end: what a cache costs, or the teacher's documents
took() { local began=$SECONDS; "$@" >&2; echo $((SECONDS - began)); }

small="$files --size 0.7m --documents 533 --lr 6e-3"
alone="train_pretrain.py $small --tokenizer $out/prose.model --weight-decay 4 --lr 1e-2"
soft="$small --weight-decay 0.6 --alpha 1 --temperature 2"
online="--teacher $teacher $soft"
logits="train_distill_logits.py $online"
features="train_distill_features.py $online"
init="--init-from-teacher 1,8,14"
cached="train_distill_logits.py $soft --cache"

# what both sides tried: the student without a teacher, its budget too, and with one
trials() {
    test=$val run trial/white/teacher/decay-.5 0 $pretrain 0.5
    if missing trial/white/teacher/decay-1 0; then  # it became the teacher
        prepare_white
        test=$val score trial/white/teacher/decay-1 0 "$teacher"
    fi
    trial alone/decay-.6       $alone --steps 1000 --weight-decay 0.6 --lr 6e-3
    trial alone/600            $alone --steps 600 --weight-decay 0.6 --lr 6e-3
    trial alone/decay-1        $alone --steps 1000 --weight-decay 1 --lr 6e-3
    trial alone/decay-2        $alone --steps 1000 --weight-decay 2 --lr 6e-3
    trial alone/decay-4        $alone --steps 1000 --lr 6e-3
    trial alone/decay-8        $alone --steps 1000 --weight-decay 8 --lr 6e-3
    trial alone/lr-1e-2        $alone --steps 1000
    trial alone/2000-decay-4   $alone --steps 2000 --lr 6e-3
    trial forward/decay-.3     $cached "$cache-hidden" --steps 1000 --weight-decay 0.3
    trial forward/decay-.6     $cached "$cache-hidden" --steps 1000
    trial forward/decay-1      $cached "$cache-hidden" --steps 1000 --weight-decay 1
    trial init/1,8,14          $logits $init --steps 1000 --weight-decay 0.3
    trial init/decay-.6        $logits $init --steps 1000
    trial init-hidden/batch-4  $features $init --steps 2000 --batch 4 --hidden-layers last
    trial init-hidden/weight-4 $features $init --steps 1000 --hidden-layers last --hidden-weight 4
    trial init-hidden/tau-1.5  $features $init --steps 1000 --hidden-layers last --temperature 1.5
    trial init-hidden/pairs    $features $init --steps 1000 --hidden-layers 1:1,2:8,3:14
}

# Every recipe. The divergences read the cache of hidden states: the loss is that of a teacher that runs
# beside the student (a test compares them), the time is less. alone-N: the student without a teacher, as
# many steps as fit into the time of a recipe.
recipes() {
    mode alone              $alone --steps 1000
    mode init               $logits $init --steps 1000
    mode cached-hidden      $cached "$cache-hidden" --steps 1000
    mode init-hidden        $features $init --steps 1000 --hidden-layers last
    mode written            $logits --steps 1000 --data "$mixed" --documents 0
    mode init-hidden-written $features $init --steps 1000 --hidden-layers last --data "$mixed" --documents 0
    mode jsd                $cached "$cache-hidden" --steps 1000 --divergence jsd
    mode hidden             $features --steps 1000 --hidden-layers last
    mode cached-topk        $cached "$cache-topk" --steps 1000
    mode cached-two         $cached "$cache-two" --steps 1000
    mode cached-sampled     $cached "$cache-sampled" --steps 1000
    mode skewed             $cached "$cache-hidden" --steps 1000 --divergence skew_forward_kl
    mode reverse            $cached "$cache-hidden" --steps 1000 --divergence reverse_kl
    mode total-variation    $cached "$cache-hidden" --steps 1000 --divergence total_variation
    mode forward            $logits --steps 1000
    mode relations          $features --steps 1000 --hidden-weight 0 --relation-weight 1
    mode alone-1400         $alone --steps 1400
    mode alone-4000         $alone --steps 4000
    mode init-on-policy     train_distill_onpolicy.py $online $init --steps 1000 --divergence forward_kl --on-policy-share 0.25
}
# --- on the stories: beside alone and logits of runs/results.sh, of which this has teacher, data and flags
few=$out/data/few.jsonl
prepare_few-white() { need "$few" "bash runs/results.sh"; }
on_stories() {
    group=few-white test=$out/data/stories/test.jsonl val=$out/data/stories/val.jsonl
    teacher=$out/few-teacher-0.pt eval_flags="--suites $out/data/suites"
    local student="--data $few --val $val --size 0.4m --lr 1e-2 --eval-every 50"
    small="--teacher $teacher $student --alpha 1 --temperature 2"
    if [ "$turn" != 0 ]; then story alone 0 train_pretrain.py "$student"; fi
    story jsd       780 train_distill_logits.py "$small --divergence jsd"
    story hidden    780 train_distill_features.py "$small --hidden-layers last"
    story on-policy 450 train_distill_onpolicy.py "$small --divergence forward_kl --on-policy-share 0.25"
}
# story NAME N SCRIPT FLAGS: at equal tokens, and N steps, which take the time of 1,600 alone
story() {
    if [ "$turn" = 0 ]; then
        run "few-white/$1" "$seed" $3 $4 --steps 1600
        run "few-white/$1-wall" "$seed" $3 $4 --steps "$2"
    elif rows=$times missing "few-white/$1" "$turn"; then
        timed "few-white/$1" 0 $3 $4
    fi
}

turn=0
if [ "${1:-}" = --times ]; then
    prepare_white
    declare -A cached_in
    for turn in 1 2; do cached_in=() written_in=""; recipes; done
    prepare_few-white
    for turn in 1 2; do on_stories; done
    exit
fi
for seed in ${SEEDS:-1 2}; do
    for name in jsd hidden on-policy; do if missing few-white/$name "$seed"; then prepare_few-white; fi; done
done
run white/teacher 0 $pretrain 1
trials
for seed in ${SEEDS:-1 2}; do recipes; done
group=best; prepare_best() { prepare_white; }
for seed in ${SEEDS:-5 6 7 8}; do recipes; done
for seed in ${SEEDS:-1 2}; do on_stories; done
if [ -z "${ONLY:-}" ]; then $python runs/render.py; fi
