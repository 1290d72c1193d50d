#!/usr/bin/env bash
# The extensions under AddressSanitizer and UndefinedBehaviorSanitizer, run by the tests that reach them.
#
#     PYTHON=.venv-dev/bin/python tests/endurance/sanitize.sh [pytest's arguments]
#
# Builds a copy of the tree with gcc's sanitizers (needs what the sdist needs: setuptools, Cython, NumPy) and runs the tests
# there, then those rows of bad_input.py that reach the extensions: any report ends the process it is in, and the test. Leaks are looked for by the tests of memory, not here, for the
# interpreter frees little at its end. Left out are the tests that cap the address space, which ASan itself reserves.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(command -v "${PYTHON:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -r "$root"/{ext,runtime,tests,examples,setup.py,pyproject.toml,README.md,LICENSE,MANIFEST.in} "$work"
[ ! -d "$root/docs" ] || cp -r "$root/docs" "$work"
cd "$work"
rm -f ext/packing.c ext/reading.c runtime/organ_infer/*.so
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
CC=gcc CFLAGS="$flags" LDFLAGS="$flags" "$python" setup.py -q build_ext --inplace
for name in _packing _reading; do
  nm -D runtime/organ_infer/$name*.so > symbols  # no pipe: grep -q ends before nm does, which pipefail takes for a failure
  grep -q __asan_report symbols || { echo "$name was built without ASan"; exit 1; }
  grep -q __ubsan_handle symbols || { echo "$name was built without UBSan"; exit 1; }
done

# libstdc++ as well, or onnxruntime's exceptions find no interceptor.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)"
export LD_PRELOAD
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONPATH=$work/runtime PYTHONMALLOC=malloc

# Each level is a kernel of its own; the tests of packing go through all of them by themselves.
"$python" - <<'END'
import organ_infer._packing as packing, organ_infer._reading as reading
print("sanitized:", packing.__file__.rpartition("/")[2], reading.__file__.rpartition("/")[2], packing.levels())
END
[ $# -gt 0 ] || set -- tests/test_packing.py tests/test_sampling.py tests/test_reading.py tests/test_images.py tests/test_damage.py \
  tests/test_frames.py tests/test_plausibility.py tests/test_classifier.py tests/test_limits.py
"$python" -m pytest -q -p no:cacheprovider --deselect tests/test_limits.py::test_bombs_are_refused_in_bounded_memory "$@"
"$python" tests/endurance/bad_input.py --edits 400 --only "C decoder" "arrays and objects" "random arguments"
