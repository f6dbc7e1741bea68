#!/usr/bin/env bash
# Compiles and tests :core, compiles :app, builds and signs an APK, on a machine without Android Studio, Gradle or an Android SDK: see docs/android.md.
#
#     android_demo/check.sh            everything
#     android_demo/check.sh core       only :core and its tests
#
# Needs Debian 12 (or what is like it), a JDK 17, Python 3.11 and the network for the first run. What it fetches stays in
# android_demo/.cache, or in COVEY_ANDROID_CACHE; what it builds in android_demo/build. PYTHON names the interpreter with
# Covey installed that the end-to-end tests use (default: the repository's .venv).
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
BUILD=$HERE/build
WHAT=${1:-all}
PYTHON=${PYTHON:-$HERE/../.venv/bin/python}
command -v "$PYTHON" >/dev/null || PYTHON=python3
. "$HERE/check/toolchain.sh"
. "$HERE/check/core.sh"
. "$HERE/check/app.sh"
. "$HERE/check/benchmark.sh"
fetch_tools
compile_core
test_core
[ "$WHAT" = core ] && exit 0
test_end_to_end
compile_benchmark
link_resources
compile_app
make_dex
sign_apk
describe_apk
say "all checks passed"
