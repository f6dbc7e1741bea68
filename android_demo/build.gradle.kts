// Versions are in gradle/libs.versions.toml. The Android plugin brings Kotlin for :app with it.
plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.kotlin.jvm) apply false
}
