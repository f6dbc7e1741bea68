// The codec on a JVM; benchmarks/android_codec.py runs it beside Python's.
plugins {
    alias(libs.plugins.kotlin.jvm)
    application
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    implementation(project(":core"))
}

application {
    mainClass = "covey.benchmark.MainKt"
}
