# Finished runs as rows, for the scripts beside this one: `source runs/rows.sh` gives python, out, and the functions
# below. They read: rows (the file), group, teacher, test, val, eval_flags, prose, port.
python=.venv/bin/python out=${MINIDISTILL_OUT:-out} eval_flags="" prepared=""
mkdir -p results

# need FILE COMMAND: what makes a file that is not there, and the end
need() { if [ ! -e "$1" ]; then echo "error: no $1; first: $2" >&2; exit 2; fi; }
need $python "bash speedrun.sh"

# missing RECIPE SEED: is this row wanted, and not there yet?
missing() {
    case "$1" in ${ONLY:-*}) ;; *) return 1 ;; esac
    ! grep -qsF "{\"recipe\": \"$1\", \"seed\": $2," "$rows"
}

# run RECIPE SEED SCRIPT FLAGS...: train one model, score it on $test, append its row, unless it is there.
# What a group's runs need, its prepare_GROUP makes once, before the first of them.
run() {
    local recipe=$1 seed=$2 name=${1//\//-}-$2; shift 2
    if ! missing "$recipe" "$seed"; then return 0; fi
    if [ "$prepared" != "$group" ]; then "prepare_$group"; prepared=$group; fi
    echo "== $recipe, seed $seed"
    $python "$@" --name "$name" --seed "$seed"
    score "$recipe" "$seed" "$out/$name.pt"
}

# score RECIPE SEED CHECKPOINT: append the row of a model that is there
score() {
    $python eval.py "$3" --teacher "$teacher" --data "$test" --out "$out/${1//\//-}-$2" --speed false \
        --row "$rows" --recipe "$1" $eval_flags
}

# trial NAME SCRIPT FLAGS...: a setting tried at a seed that no table uses, scored on validation data
trial() {
    local name=$1 test=$val eval_flags=""; shift
    run "trial/$group/$name" 9 "$@"
}

# What both scripts on prose begin with: its text in $prose, its tokenizer. The text depends on the Python version.
make_prose() {
    if [ ! -e "$prose/about.json" ]; then $python dataset/prose.py; fi
    if [ ! -e "$out/prose.model" ]; then
        $python tokenizer/train.py "$prose/train.jsonl" --out "$out/prose.model"
    fi
}

# The wall of the black box: a process that gives $teacher's text, on loopback, until stop_serving or
# the end of the script.
serve() {
    local said=$out/blackbox-serve.txt
    $python serve.py --checkpoint "$teacher" --port "$port" > "$said" 2> "$out/blackbox-serve.log" & server=$!
    trap 'kill $server 2> /dev/null' EXIT
    until grep -q "^ready:" "$said"; do
        if ! kill -0 $server 2> /dev/null; then tail -n 1 "$out/blackbox-serve.log" >&2; exit 1; fi
        sleep 0.5
    done
}
stop_serving() { kill $server; trap - EXIT; }
