#!/usr/bin/env bash
# Everything that only an NVIDIA card can show, in less than ten minutes, with one report:
#
#     bash benchmarks/cuda_check.sh                              # all parts, to the folder cuda-report (or $OUT)
#     bash benchmarks/cuda_check.sh --only kernels,bench FOLDER
#     bash benchmarks/cuda_check.sh --data input.txt             # the recipe's text (default: Tiny Shakespeare)
#     bash benchmarks/cuda_check.sh --only bench --limit bench=560    # with more time
#     bash benchmarks/cuda_check.sh --dry-run                    # say what would run
#
# parts     tests     all tests marked `cuda`, with kernels off and with MINIGRAD_KERNELS=cuda
#           kernels   every kernel on the card against its reference (tests/cuda/kernels)
#           bench     benchmarks/cuda.py: training steps against PyTorch, and each kernel's speed
#           recipe    examples/train_shakespeare.py --preset baby, from beginning to end
#           profile   where the time of a training step goes
#
# The report is report.md, with all figures in report.json and all output in log.txt. A part that fails, or that takes
# longer than its limit, does not stop the others. Nothing has to be installed but what `packages` below asks for;
# wheels in a folder .whl are installed to a temporary folder first. PYTHON names the interpreter (default: python3).
set -u
here=$PWD
cd "$(dirname "$0")/.." || exit 1

all="tests kernels bench recipe profile"
declare -A limits=([tests_off]=60 [tests_on]=45 [kernels]=60 [bench]=250 [recipe]=90 [profile]=35)  # seconds: 540
only=$all dry_run= data= out=${OUT:-cuda-report} python=${PYTHON:-python3}

usage() {
    sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//;p}' benchmarks/cuda_check.sh
}

fail() {
    echo "error: $1" >&2
    exit 1
}

from_here() {  # a path as the caller meant it
    case $1 in /* | "") echo "$1" ;; *) echo "$here/$1" ;; esac
}

while [ $# -gt 0 ]; do
    case $1 in
    --only) only=${2:-} && shift ;;
    --data) data=${2:-} && shift ;;
    --limit)  # PART=SECONDS
        [[ ${2:-} =~ ^([a-z_]+)=([0-9]+)$ ]] && [ -n "${limits[${BASH_REMATCH[1]}]:-}" ] ||
            fail "--limit ${2:-}: wanted PART=SECONDS, where PART is one of ${!limits[*]}"
        limits[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]} && shift ;;
    --dry-run) dry_run=yes ;;
    --help | -h) usage && exit ;;
    -*) fail "unknown option $1; there are --only, --data, --limit, --dry-run and --help" ;;
    *) out=$1 ;;
    esac
    shift
done
only=${only//,/ } out=$(from_here "$out") data=$(from_here "$data")
for part in $only; do
    [[ " $all " == *" $part "* ]] || fail "unknown part '$part'; there are ${all// /, }"
done
[ -z "$data" ] || [ -e "$data" ] || fail "--data $data: there is no such file"

work=$(mktemp -d) parts=$out/parts child=
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if compgen -G ".whl/*.whl" >/dev/null; then
    if [ -n "$dry_run" ]; then
        echo "would install .whl/*.whl to a temporary folder"
    elif "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$work/site" .whl/*.whl; then
        PYTHONPATH=$PYTHONPATH:$work/site
    fi
fi

has() {
    "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null
}

missing=()
while read -r package purpose; do
    has "$package" || missing+=("$package ($purpose)")
done <<'packages'
numpy everything
cupy everything on the card
ml_dtypes bfloat16
tqdm training
regex tokenizers
safetensors checkpoints
tiktoken tokenizers
threadpoolctl the number of threads
pytest the tests
hypothesis the tests
xdist the tests, several at a time
pytest_timeout the tests, with a limit for each
torch what to compare with, and the profile of all kernels
packages
if [ ${#missing[@]} -gt 0 ]; then
    lacks="missing Python packages:"
    for name in "${missing[@]}"; do lacks+=" $name;"; done
else
    lacks="no Python package is missing"
fi
if [ -z "$dry_run" ]; then
    problem=$("$python" -c 'import minigrad; minigrad.Tensor(0.0, device="cuda")' 2>&1) ||
        lacks+="; the card cannot be used: ${problem##*$'\n'}"
fi
echo "$lacks"

if [ -z "$dry_run" ]; then
    mkdir -p "$out" && rm -rf "$parts" && mkdir "$parts" || exit 1
    : >"$out/log.txt" && echo "$lacks" >"$parts/missing.txt"
fi

report() {
    "$python" benchmarks/cuda_report.py "$parts" "$out" || echo "the report could not be written" >&2
}

stop() {  # as a machine does whose time is up: what the part has printed and measured so far stays in $out/parts
    trap '' INT TERM
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
    report
    exit 143
}
trap stop INT TERM

# run NAME COMMAND…: with its limit; its output goes to the log, and what became of it to the report
run() {
    local name=$1 limit=${limits[$1]} status=0 begun=$SECONDS
    shift
    if [ -n "$dry_run" ]; then
        echo "$name, at most $limit s: $*"
        return
    fi
    echo "$name, at most $limit s …"
    set -m  # or what runs in the background would not hear SIGINT
    timeout --signal=INT --kill-after=5 "$limit" "$@" >"$parts/$name.log" 2>&1 </dev/null &
    child=$!
    set +m
    wait "$child" || status=$?
    child=
    { printf '\n===== %s: %s\n' "$name" "$*" && cat "$parts/$name.log"; } >>"$out/log.txt"
    printf '{"seconds": %d, "limit": %d, "status": %d}\n' $((SECONDS - begun)) "$limit" "$status" \
        >"$parts/$name.json"
    echo "$name ended with status $status after $((SECONDS - begun)) s"
    report
}

# tests NAME SETTING FILE…: those marked `cuda`. Plug-ins that warn about others would make every test an error.
tests() {
    local name=$1 kernels=$2 more=()
    shift 2
    has xdist && more+=(-n "$(($(nproc) < 6 ? $(nproc) : 6))")
    has pytest_timeout && more+=(--timeout 60 --timeout-method=thread)
    run "$name" env MINIGRAD_KERNELS="$kernels" "$python" -m pytest -q -m cuda -p no:benchmark -p no:cacheprovider \
        --continue-on-collection-errors --junitxml "$parts/$name.xml" ${more[@]+"${more[@]}"} "$@"
}

on_card=tests/cuda/kernels
mapfile -t others < <(grep -l "mark\.cuda" tests/*/test_*.py)  # to collect all takes a third of the time
for part in $only; do
    case $part in
    tests)
        tests tests_off reference "${others[@]}"
        tests tests_on cuda "${others[@]}"
        ;;
    kernels) tests kernels cuda "$on_card" ;;
    bench)
        against=torch
        has torch || against=none
        run bench "$python" benchmarks/cuda.py --against "$against" --json "$parts/bench.figures.json"
        ;;
    recipe)
        more=()
        [ -z "$data" ] || more+=(--data "$data")
        "$python" examples/train_shakespeare.py --help 2>/dev/null | grep -q -e '--dtype' && more+=(--dtype bfloat16)
        run recipe env MINIGRAD_KERNELS=cuda "$python" examples/train_shakespeare.py --device cuda --preset baby \
            --out "$work/recipe" ${more[@]+"${more[@]}"}
        ;;
    profile)
        run profile "$python" benchmarks/cuda.py --against none --tables profile --rows baby,124m \
            --json "$parts/profile.figures.json"
        ;;
    esac
done
[ -n "$dry_run" ] || { report && echo "the report is in $out/report.md"; }
