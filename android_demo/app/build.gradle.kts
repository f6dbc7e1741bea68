// Framework classes only: every line of :app is compiled by check.sh as well, where no androidx can be had.
plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "covey.app"
    compileSdk = 36

    defaultConfig {
        applicationId = "covey.app"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
        // the processors that ExecuTorch's library is built for
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    androidResources {
        localeFilters += listOf("en", "de")
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            isShrinkResources = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }

    lint {
        warningsAsErrors = true
        // said in the manifest's comments: no backup at all, and no icon of our own for monochrome launchers
        disable += listOf("MonochromeLauncherIcon", "GradleDependency", "NewerVersionAvailable", "AndroidGradlePluginVersion")
    }
}

dependencies {
    implementation(project(":core"))
    implementation(libs.executorch.android)
}
