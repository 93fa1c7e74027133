#!/usr/bin/env bash
# The extension under AddressSanitizer and UndefinedBehaviorSanitizer, in a build folder and a copy of the package of
# its own: hands laid on the state at random, each of them by itself, and the parity with the reference.
#   tools/asan.sh PYTHON [arguments for pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
mkdir -p build
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
SFPLUS_CUDA=off cmake -S . -B build/asan -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_CXX_FLAGS="$flags" \
  -DCMAKE_MODULE_LINKER_FLAGS="-fsanitize=address,undefined" >build/asan.log
cmake --build build/asan --parallel 2 >>build/asan.log
mkdir -p build/asan/package
rm -rf build/asan/package/sfplus_kernels
cp -r sfplus_kernels build/asan/package/
rm -f build/asan/package/sfplus_kernels/_C*.so
cp build/asan/_C*.so build/asan/package/sfplus_kernels/
# Python is not built with it: the sanitizer's library has to be there first. libstdc++ too, or it finds no
# function to throw exceptions with.
compiler=${CXX:-c++}
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 PYTHONSAFEPATH=1 PYTHONPATH=build/asan/package SFPLUS_MACHINE=cpu
if [ $# -eq 0 ]; then
  set -- tests/truth tests/numbers/test_parity.py -m "not slow and not by_hand" -k "cpu or fifty or words"
fi
"$python" -m pytest -p no:benchmark -q "$@"
