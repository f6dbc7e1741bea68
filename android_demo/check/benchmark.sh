# benchmark: the codec on a JVM, compiled so that it cannot rot; benchmarks/android_codec.py runs it. Sourced by check.sh.

compile_benchmark() {
  say "compiling the benchmark"
  rm -rf "$BUILD/benchmark"
  # shellcheck disable=SC2046
  kotlinc "$BUILD/benchmark" "$BUILD/core" -jvm-target 17 $(find "$HERE/benchmark/src/main" -name '*.kt' | sort)
  echo "$BUILD/benchmark:$BUILD/core:$STDLIB" >"$BUILD/benchmark.classpath"
}
