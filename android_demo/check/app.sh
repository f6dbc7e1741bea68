# :app: resources linked against the framework's, Kotlin compiled against Android's classes and the signatures of
# check/stubs, both made into a signed APK whose signature is verified. Sourced by check.sh.

APP=$HERE/app/src
MIN_SDK=26
TARGET_SDK=36

# The manifest as the Gradle plugin would complete it.
manifest() {
  sed 's|<manifest |<manifest package="covey.app" |' "$APP/main/AndroidManifest.xml" >"$BUILD/app/AndroidManifest.xml"
}

# link_resources: compile and link the main and the debug resources; every reference and attribute is checked.
link_resources() {
  say "looking at the resources of :app, and linking them"
  "$PYTHON" "$HERE/check/lint.py" || fail "the resources have faults"
  rm -rf "$BUILD/app" && mkdir -p "$BUILD/app/java"
  manifest
  native aapt2 compile --dir "$APP/main/res" -o "$BUILD/app/main.zip"
  native aapt2 compile --dir "$APP/debug/res" -o "$BUILD/app/debug.zip"
  native aapt2 link -I "$FRAMEWORK_RES" --manifest "$BUILD/app/AndroidManifest.xml" --java "$BUILD/app/java" \
    --min-sdk-version $MIN_SDK --target-sdk-version $TARGET_SDK --version-code 1 --version-name 0.1.0 --debug-mode \
    -o "$BUILD/app/resources.apk" "$BUILD/app/main.zip" -R "$BUILD/app/debug.zip" --auto-add-overlay
}

compile_app() {
  say "compiling :app against Android's classes and check/stubs"
  # shellcheck disable=SC2046
  javac -nowarn -Xlint:-options --release 8 -cp "$ANDROID_JAR" -d "$BUILD/app/stubs" $(find "$HERE/check/stubs" -name '*.java')
  # shellcheck disable=SC2046
  javac -nowarn -Xlint:-options --release 8 -d "$BUILD/app/classes" $(find "$BUILD/app/java" -name '*.java')
  # shellcheck disable=SC2046
  kotlinc "$BUILD/app/classes" "$BUILD/app/stubs:$ANDROID_JAR:$BUILD/core:$BUILD/app/classes" -no-jdk -jvm-target 1.8 \
    -Xlambdas=class -Xsam-conversions=class $(find "$APP/main/kotlin" -name '*.kt' | sort)
}

# dex FILE: our classes and Kotlin's library as one dex file. Debian has dx, not d8; dx wants plain Java 8 classes only.
make_dex() {
  say "dexing"
  rm -rf "$BUILD/app/dex" && mkdir -p "$BUILD/app/dex/classes"
  (cd "$BUILD/app/dex/classes" && unzip -q -o "$STDLIB" -x 'META-INF/*' && cp -r "$BUILD/core/." "$BUILD/app/classes/." .)
  find "$BUILD/app/dex/classes" -name module-info.class -delete
  rm -rf "$BUILD/app/dex/classes/META-INF"
  java_tool com.android.dx.command.Main --dex --min-sdk-version=$MIN_SDK --output="$BUILD/app/dex/classes.dex" \
    "$BUILD/app/dex/classes"
}

sign_apk() {
  say "packing and signing the APK"
  cp "$BUILD/app/resources.apk" "$BUILD/app/unaligned.apk"
  (cd "$BUILD/app/dex" && zip -q -X "$BUILD/app/unaligned.apk" classes.dex)
  native zipalign -f 4 "$BUILD/app/unaligned.apk" "$BUILD/covey-debug.apk"
  [ -e "$TOOLS/debug.keystore" ] || keytool -genkeypair -keystore "$TOOLS/debug.keystore" -storepass android -keypass android \
    -alias debug -keyalg RSA -keysize 2048 -validity 10000 -dname "CN=Covey debug" 2>/dev/null
  java_tool com.android.apksigner.ApkSignerTool sign --ks "$TOOLS/debug.keystore" --ks-pass pass:android \
    --min-sdk-version $MIN_SDK "$BUILD/covey-debug.apk"
  java_tool com.android.apksigner.ApkSignerTool verify --min-sdk-version $MIN_SDK --verbose "$BUILD/covey-debug.apk" \
    | grep -E 'Verif(ies|ied using v[23])' || fail "the APK's signature does not verify"
}

# describe_apk: what a phone would see, and the sizes that docs/android.md states.
describe_apk() {
  native aapt2 dump badging "$BUILD/covey-debug.apk" | grep -E '^(package|sdkVersion|targetSdkVersion|application-label|launchable)'
  printf 'APK %s bytes without the ExecuTorch library; :core %s lines of Kotlin, %s bytes of classes\n' \
    "$(stat -c %s "$BUILD/covey-debug.apk")" "$(find "$HERE/core/src/main" -name '*.kt' -exec cat {} + | wc -l)" \
    "$(find "$BUILD/core" -name '*.class' -printf '%s\n' | awk '{ s += $1 } END { print s }')"
}
