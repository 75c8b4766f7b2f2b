# Finished runs as rows, for the scripts beside this one: `source runs/rows.sh` gives missing, run, make_prose
# and serve. They read: rows (the file), group, python, out, teacher, test, eval_flags, prose, port.

# missing RECIPE SEED: is this row wanted, and not there yet?
missing() {
    case "$1" in ${ONLY:-*}) ;; *) return 1 ;; esac
    ! grep -qsF "{\"recipe\": \"$1\", \"seed\": $2," "$rows"
}

# run RECIPE SEED SCRIPT FLAGS...: train one model, score it on $test, append its row, unless it is there.
# What a group's runs need, its prepare_GROUP makes once, before the first of them.
prepared=""
run() {
    local recipe=$1 seed=$2 name=${1//\//-}-$2; shift 2
    if ! missing "$recipe" "$seed"; then return 0; fi
    if [ "$prepared" != "$group" ]; then "prepare_$group"; prepared=$group; fi
    echo "== $recipe, seed $seed"
    $python "$@" --name "$name" --seed "$seed"
    $python eval.py "$out/$name.pt" --teacher "$teacher" --data "$test" --out "$out/$name" \
        --speed false --row "$rows" --recipe "$recipe" $eval_flags
}

# What both scripts on prose begin with: its text in $prose, its tokenizer. The text depends on the Python version.
make_prose() {
    if [ ! -e "$prose/about.json" ]; then $python dataset/prose.py; fi
    if [ ! -e "$out/prose.model" ]; then
        $python tokenizer/train.py "$prose/train.jsonl" --out "$out/prose.model"
    fi
}

# The wall of the black box: a process that gives $teacher's text, on loopback, until its caller kills
# $server; this script's end kills it, too.
serve() {
    local said=$out/blackbox-serve.txt
    $python serve.py --checkpoint "$teacher" --port "$port" > "$said" 2> "$out/blackbox-serve.log" & server=$!
    trap 'kill $server 2> /dev/null' EXIT
    until grep -q "^ready:" "$said"; do
        if ! kill -0 $server 2> /dev/null; then tail -n 1 "$out/blackbox-serve.log" >&2; exit 1; fi
        sleep 0.5
    done
}
