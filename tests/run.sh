#!/usr/bin/env bash
# What CI runs: notebooks clean, library in sync, every notebook, then pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=passive MPLBACKEND=agg PATH="$PWD/$BIN:$PATH"

echo "== notebooks clean, library and README in sync"
python tests/sync.py

echo "== notebooks"
failed=0 passed=0
for nb in $(ls nbs/*.ipynb | sort); do
  start=$SECONDS
  if nbdev-test "$nb" > /tmp/nbdev-test.$$ 2>&1; then passed=$((passed+1)); echo "  ok    $nb $((SECONDS-start)) s"
  else failed=$((failed+1)); echo "  FAIL  $nb $((SECONDS-start)) s"; cat /tmp/nbdev-test.$$; fi
done
rm -f /tmp/nbdev-test.$$
echo "notebooks: $passed passed, $failed failed"

echo "== pytest"
python -m pytest -q tests
[ "$failed" -eq 0 ]
