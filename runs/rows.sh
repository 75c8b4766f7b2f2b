# Finished runs as rows, for the scripts beside this one: `source runs/rows.sh` gives missing and run.
# They read: rows (the file), group, python, out, teacher, test, eval_flags.

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
