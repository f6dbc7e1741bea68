package covey.core.wire

/** One stage of a codec chain: a name from the closed table and its arguments (Boolean, Long, Double, String). */
data class StageSpec(val name: String, val args: Map<String, Any>) : Message {
    init { checkName("a stage name", name) }

    override val form get() = StageSpec
    override fun fields() = listOf(name, args)

    companion object : Form<StageSpec>("StageSpec", "name" to Kind.Text, "args" to Kind.MapOf(Kind.Scalar)) {
        override fun make(v: Values) = StageSpec(v["name"], v["args"])
    }
}

internal val SPEC = Kind.ListOf(Kind.Record { StageSpec })

/** What a device does between download and upload; see docs/protocol.md. */
data class LocalConfig(
    val optimizer: String,
    val learningRate: Double,
    val steps: Int,
    val momentum: Double,
    val beta1: Double,
    val beta2: Double,
    val eps: Double,
    val weightDecay: Double,
    val clipNorm: Double,
    val errorFeedback: Boolean,
) : Message {
    init {
        requireMessage(optimizer == "sgd" || optimizer == "adamw") {
            "optimizer must be 'sgd' or 'adamw', got '${optimizer.take(40)}'"
        }
        requireMessage(learningRate > 0) { "learning_rate must be above 0, got $learningRate" }
        requireMessage(steps in 1..1_000_000) { "steps must be 1 to 1,000,000, got $steps" }
        for ((name, x) in listOf("momentum" to momentum, "beta1" to beta1, "beta2" to beta2)) {
            requireMessage(x >= 0 && x < 1) { "$name must be in [0, 1), got $x" }
        }
        for ((name, x) in listOf("eps" to eps, "weight_decay" to weightDecay, "clip_norm" to clipNorm)) {
            requireMessage(x >= 0) { "$name must not be negative, got $x" }
        }
    }

    override val form get() = LocalConfig
    override fun fields() =
        listOf(optimizer, learningRate, steps, momentum, beta1, beta2, eps, weightDecay, clipNorm, errorFeedback)

    companion object : Form<LocalConfig>(
        "LocalConfig", "optimizer" to Kind.Text, "learning_rate" to Kind.Real, "steps" to Kind.Whole,
        "momentum" to Kind.Real, "beta1" to Kind.Real, "beta2" to Kind.Real, "eps" to Kind.Real,
        "weight_decay" to Kind.Real, "clip_norm" to Kind.Real, "error_feedback" to Kind.Flag,
    ) {
        override fun make(v: Values) = LocalConfig(
            v["optimizer"], v["learning_rate"], v.int("steps"), v["momentum"], v["beta1"], v["beta2"], v["eps"],
            v["weight_decay"], v["clip_norm"], v["error_feedback"],
        )
    }
}

/**
 * What of the adapter travels; by default all of it does. The texts are patterns of tensor names, or `kind:K`.
 */
data class Sharing(
    val personal: List<String> = emptyList(),
    val fixed: List<String> = emptyList(),
    val fresh: List<String> = emptyList(),
    val phases: List<List<String>> = emptyList(),
    val ranks: List<Long> = emptyList(),
    val second: Boolean = false,
    val cohort: List<String> = emptyList(),
    val cohorts: Int = 0,
    val fusion: String = "",
    val syncEvery: Int = 0,
) : Message {
    init {
        requireMessage(fusion in setOf("", "factorwise", "concatenated")) {
            "fusion must be factorwise, concatenated or empty, got '${fusion.take(40)}'"
        }
        requireMessage(cohorts in 0..64) { "cohorts must be 0 to 64, got $cohorts" }
        requireMessage(cohort.isNotEmpty() == (cohorts > 0)) { "cohort and cohorts come together" }
        requireMessage(ranks.all { it in 1 until (1L shl 20) }) { "ranks must be above 0, got ${ranks.take(8)}" }
        requireMessage(syncEvery >= 0) { "sync_every must not be negative, got $syncEvery" }
    }

    override val form get() = Sharing
    override fun fields() = listOf(personal, fixed, fresh, phases, ranks, second, cohort, cohorts, fusion, syncEvery)

    companion object : Form<Sharing>(
        "Sharing", "personal" to TEXTS, "fixed" to TEXTS, "fresh" to TEXTS, "phases" to Kind.ListOf(TEXTS),
        "ranks" to Kind.ListOf(Kind.Whole), "second" to Kind.Flag, "cohort" to TEXTS, "cohorts" to Kind.Whole,
        "fusion" to Kind.Text, "sync_every" to Kind.Whole,
    ) {
        override fun make(v: Values) = Sharing(
            v["personal"], v["fixed"], v["fresh"], v["phases"], v["ranks"], v["second"], v["cohort"], v.int("cohorts"),
            v["fusion"], v.int("sync_every"),
        )
    }
}

private val TEXTS = Kind.ListOf(Kind.Text)

/** GET /v1/task: what there is to join. */
data class Task(
    val protocol: Int,
    val name: String,
    val model: String,
    val bundle: String,
    val layout: String,
    val seed: Long,
    val rounds: Int,
    val round: Int,
    val version: Int,
    val state: String,
    val uploadCodec: List<StageSpec>,
    val local: LocalConfig,
    val maxUploadBytes: Long,
    val sharing: Sharing = Sharing(),
) : Message {
    init {
        checkName("the task's name", name)
        checkDigest("bundle", bundle)
        checkDigest("layout", layout)
        requireMessage(state == "running" || state == "done") { "state must be 'running' or 'done', got '${state.take(40)}'" }
        requireMessage(seed >= 0) { "seed must be in 0..2^63-1, got $seed" }
    }

    override val form get() = Task
    override fun fields() = listOf(
        protocol, name, model, bundle, layout, seed, rounds, round, version, state, uploadCodec, local, maxUploadBytes,
        sharing,
    )

    companion object : Form<Task>(
        "Task", "protocol" to Kind.Whole, "name" to Kind.Text, "model" to Kind.Text, "bundle" to Kind.Text,
        "layout" to Kind.Text, "seed" to Kind.Whole, "rounds" to Kind.Whole, "round" to Kind.Whole,
        "version" to Kind.Whole, "state" to Kind.Text, "upload_codec" to SPEC,
        "local" to Kind.Record { LocalConfig }, "max_upload_bytes" to Kind.Whole,
        "sharing" to Kind.Record { Sharing },
    ) {
        override fun make(v: Values) = Task(
            v.int("protocol"), v["name"], v["model"], v["bundle"], v["layout"], v["seed"], v.int("rounds"),
            v.int("round"), v.int("version"), v["state"], v["upload_codec"], v["local"], v["max_upload_bytes"],
            v["sharing"],
        )
    }
}
