#!/usr/bin/env bash
# `import onnxruntime` on Linux writes a device id and a queue of events into HOME and starts a thread;
# onnxruntime.disable_telemetry_events() comes too late for both.
#
# Guessed: the CPU wheel for Linux is a library without telemetry (its documentation speaks of Windows), and where there
# is some, disable_telemetry_events() before the first session turns it off.
# Seen (onnxruntime 1.32.0, CPython 3.11, Linux x86_64): the import alone, without a session, creates
# ~/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid and onnxruntime.db (SQLite, table "events"), and leaves the
# process with a second thread, so that whoever forks afterwards forks a process of several threads. Neither the
# function nor the variable set from Python after the import changes that. ORT_DISABLE_TELEMETRY=1 in the environment
# before the import does: no file, no thread. Releases 1.29.0 to 1.31.1 behave alike; 1.24.4 and 1.27.0 wrote nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unset ORT_DISABLE_TELEMETRY
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check onnxruntime==1.32.0 numpy==2.4.6 onnx==1.23.2
export OPENBLAS_NUM_THREADS=1 # NumPy's own threads would be counted, too
env/bin/python - <<'PY'
import onnx
from onnx import TensorProto, helper

value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "scores", value[:1], value[1:])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "model.onnx")
PY
threads='import os; print("threads", len(os.listdir("/proc/self/task")))'
session='onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])'

# try NAME PROGRAM [VARIABLE=VALUE]: what PROGRAM prints, and the files it leaves in a new HOME
try() {
    mkdir "home-$1"
    env "${@:3}" HOME="$work/home-$1" env/bin/python -c "$2" >"$1.txt"
    (cd "home-$1" && find . -type f | sort) >>"$1.txt"
    echo "$1: $(tr '\n' ' ' <"$1.txt")"
}
try numpy_alone "import numpy; $threads"
try import_alone "import onnxruntime; $threads"
try function_first "import onnxruntime; onnxruntime.disable_telemetry_events(); $session; $threads"
try variable_late "import os, onnxruntime; os.environ['ORT_DISABLE_TELEMETRY'] = '1'; $threads"
try variable_first "import onnxruntime; $session; $threads" ORT_DISABLE_TELEMETRY=1

files='./.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid
./.cache/Microsoft/DeveloperTools/.onnxruntime/onnxruntime.db'
[ "$(cat numpy_alone.txt)" = "threads 1" ]
for name in import_alone function_first variable_late; do
    [ "$(tail -n +2 "$name.txt")" = "$files" ] || { echo "other files: $name"; exit 1; }
done
[ "$(head -n 1 import_alone.txt)" = "threads 2" ] || { echo "another number of threads"; exit 1; }
[ "$(tail -n +2 variable_first.txt)" = "" ] || { echo "the variable no longer turns it off"; exit 1; }
echo "as seen"
