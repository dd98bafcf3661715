#!/usr/bin/env bash
# Every protocol of a running server, with curl:   bash examples/serving/curl.sh http://127.0.0.1:8000
set -euo pipefail
server=${1:-http://127.0.0.1:8000}
post() { curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' --data "$2" "$server$1"; echo; }

post /v1/classify '{"inputs": ["I loved it", {"text": "I want my money back"}], "top_k": 1}'   # rawloop's own
post /v1/explain '{"text": "I loved it"}'                                                      # the weight of each word
post /predict '{"inputs": "I loved it"}'                                                       # Text Embeddings Inference
post / '{"inputs": "I loved it", "parameters": {"top_k": 1}}'                                  # Hugging Face
post /classify '{"input": ["I loved it", "I want my money back"]}'                             # infinity

model=$(curl --silent --fail "$server/v1/model" | python3 -c 'import json, sys; print(json.load(sys.stdin)["name"])')
post "/v2/models/$model/infer" \
    '{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["I loved it"]}]}'  # Open Inference Protocol

curl --silent --show-error --fail "$server/health"; echo
