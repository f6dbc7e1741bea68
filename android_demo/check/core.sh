# :core: compiled against the classes of Android 6 (API 23), so that nothing slips in that a phone lacks, and tested on
# this machine's JVM with JUnit 5. Sourced by check.sh.

compile_core() {
  say "compiling :core against $(basename "$(dirname "$ANDROID_JAR")")"
  rm -rf "$BUILD/core"
  # shellcheck disable=SC2046
  kotlinc "$BUILD/core" "$ANDROID_JAR" -no-jdk -jvm-target 1.8 -Xlambdas=class -Xsam-conversions=class \
    $(find "$HERE/core/src/main" -name '*.kt' | sort)
}

test_core() {
  local jars=$TOOLS/debian/usr/share/java
  say "compiling the tests of :core"
  rm -rf "$BUILD/core-tests"
  # shellcheck disable=SC2046
  kotlinc "$BUILD/core-tests" \
    "$BUILD/core:$jars/junit-jupiter-api.jar:$jars/junit-platform-commons.jar:$jars/opentest4j.jar:$jars/apiguardian-api.jar" \
    -jvm-target 17 -Xfriend-paths="$BUILD/core" $(find "$HERE/core/src/test" -name '*.kt' | sort)
  say "testing :core"
  (cd "$HERE" && junit "$BUILD/core-tests:$BUILD/core:$STDLIB" --scan-class-path --details="${COVEY_TEST_DETAILS:-summary}") \
    | grep -v '^$' || fail "tests of :core failed"
}

# test_end_to_end: the JVM client beside Python ones, with the real server and the real ExecuTorch runtime.
test_end_to_end() {
  "$PYTHON" -c 'import pytest, executorch, covey_edge, covey_server' 2>/dev/null \
    || fail "$PYTHON has no Covey with its tests: run make install first, or name another interpreter with PYTHON"
  say "the JVM client with the real server, beside Python clients (some minutes)"
  (cd "$HERE/.." && COVEY_CLASSPATH="$BUILD/core-tests:$BUILD/core:$STDLIB" "$PYTHON" -m pytest -q -p no:cacheprovider -rs tests/android) \
    || fail "the end-to-end test of the JVM client failed"
}
