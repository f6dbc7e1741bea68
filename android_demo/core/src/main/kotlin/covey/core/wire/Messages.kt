package covey.core.wire

import covey.core.model.floatsOf
import covey.core.model.toLittleEndian

/** The version of the protocol that this client speaks. */
const val PROTOCOL = 1

/** A name that may stand in a URL, a file name and a log: 1 to 64 letters, digits, '.', '_', '-'; no leading '.'. */
fun checkName(what: String, name: String) {
    val ok = name.length in 1..64 && name[0] != '.' &&
        name.all { it in 'a'..'z' || it in 'A'..'Z' || it in '0'..'9' || it in "._-" }
    requireMessage(ok) {
        "$what must be 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.'; got '${name.take(80)}'"
    }
}

/** A SHA-256 in lower-case hex. */
fun checkDigest(what: String, digest: String) {
    val ok = digest.length == 64 && digest.all { it in '0'..'9' || it in 'a'..'f' }
    requireMessage(ok) { "$what must be 64 lower-case hex digits, got '${digest.take(80)}'" }
}

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

/** GET /v1/hello, the one answer for anybody: a nonce to sign with, and whether a [code][enroll] is needed. */
data class Hello(val protocol: Int, val enroll: String, val nonce: String) : Message {
    init {
        requireMessage(enroll == "code" || enroll == "open") { "enroll must be 'code' or 'open', got '${enroll.take(40)}'" }
        requireMessage(nonce.length in 1..64) { "nonce must have 1 to 64 characters" }
    }

    override val form get() = Hello
    override fun fields() = listOf(protocol, enroll, nonce)

    companion object : Form<Hello>("Hello", "protocol" to Kind.Whole, "enroll" to Kind.Text, "nonce" to Kind.Text) {
        override fun make(v: Values) = Hello(v.int("protocol"), v["enroll"], v["nonce"])
    }
}

/** POST /v1/enroll: the name that a device would like to have, and a one-time code, or none for a key that is known. */
data class Enroll(val client: String, val code: String) : Message {
    init {
        checkName("client", client)
        requireMessage(code.length <= 64) { "a code has at most 64 characters" }
    }

    override val form get() = Enroll
    override fun fields() = listOf(client, code)

    companion object : Form<Enroll>("Enroll", "client" to Kind.Text, "code" to Kind.Text) {
        override fun make(v: Values) = Enroll(v["client"], v["code"])
    }
}

/** The answer: the name that belongs to this key from now on. */
data class Enrolled(val client: String) : Message {
    init { checkName("client", client) }

    override val form get() = Enrolled
    override fun fields() = listOf(client)

    companion object : Form<Enrolled>("Enrolled", "client" to Kind.Text) {
        override fun make(v: Values) = Enrolled(v["client"])
    }
}

/** POST /v1/checkin: a device offers itself. [held] is the version that it has, -1 for none. */
data class CheckIn(val client: String, val layout: String, val held: Int, val examples: Int, val runtime: String) : Message {
    init {
        checkName("client", client)
        checkDigest("layout", layout)
        checkName("runtime", runtime)
        requireMessage(held >= -1) { "held must be -1 or a version, got $held" }
        requireMessage(examples >= 0) { "examples must be in 0..2^31-1, got $examples" }
    }

    override val form get() = CheckIn
    override fun fields() = listOf(client, layout, held, examples, runtime)

    companion object : Form<CheckIn>(
        "CheckIn", "client" to Kind.Text, "layout" to Kind.Text, "held" to Kind.Whole, "examples" to Kind.Whole,
        "runtime" to Kind.Text,
    ) {
        override fun make(v: Values) = CheckIn(v["client"], v["layout"], v.int("held"), v.int("examples"), v["runtime"])
    }
}

/** The answer to a check-in: [action] is `train`, `wait` or `done`. */
data class Assignment(
    val action: String,
    val round: Int,
    val attempt: Int,
    val version: Int,
    val deadlineS: Double,
    val retryAfterS: Double,
    val cohort: Int = 0,
) : Message {
    init {
        requireMessage(action in setOf("train", "wait", "done")) {
            "action must be train, wait or done, got '${action.take(40)}'"
        }
        requireMessage(cohort in 0..63) { "cohort must be 0 to 63, got $cohort" }
    }

    override val form get() = Assignment
    override fun fields() = listOf(action, round, attempt, version, deadlineS, retryAfterS, cohort)

    companion object : Form<Assignment>(
        "Assignment", "action" to Kind.Text, "round" to Kind.Whole, "attempt" to Kind.Whole, "version" to Kind.Whole,
        "deadline_s" to Kind.Real, "retry_after_s" to Kind.Real, "cohort" to Kind.Whole,
    ) {
        override fun make(v: Values) = Assignment(
            v["action"], v.int("round"), v.int("attempt"), v.int("version"), v["deadline_s"], v["retry_after_s"],
            v.int("cohort"),
        )
    }
}

/** One published change of the adapter: codec and parts. */
class Step(val version: Int, val codec: List<StageSpec>, val parts: Map<String, ByteArray>) : Message {
    override val form get() = Step
    override fun fields() = listOf(version, codec, parts)

    companion object : Form<Step>(
        "Step", "version" to Kind.Whole, "codec" to SPEC, "parts" to Kind.MapOf(Kind.Bytes),
    ) {
        override fun make(v: Values) = Step(v.int("version"), v["codec"], v["parts"])
    }
}

/** GET /v1/adapter/{version}: the steps from [base] (-1 = the zero vector) to [version], whose digest is [digest]. */
class Adapter(val version: Int, val base: Int, val layout: String, val digest: String, val steps: List<Step>) : Message {
    init {
        checkDigest("layout", layout)
        checkDigest("digest", digest)
        requireMessage(base in -1..version) { "base $base is not in -1..$version" }
    }

    override val form get() = Adapter
    override fun fields() = listOf(version, base, layout, digest, steps)

    companion object : Form<Adapter>(
        "Adapter", "version" to Kind.Whole, "base" to Kind.Whole, "layout" to Kind.Text, "digest" to Kind.Text,
        "steps" to Kind.ListOf(Kind.Record { Step }),
    ) {
        override fun make(v: Values) = Adapter(v.int("version"), v.int("base"), v["layout"], v["digest"], v["steps"])
    }
}

/** PUT /v1/updates/{round}/{client}: the coded change of one device in one round. */
class Update(
    val client: String,
    val layout: String,
    val round: Int,
    val attempt: Int,
    val version: Int,
    val codec: List<StageSpec>,
    val parts: Map<String, ByteArray>,
    val examples: Int,
    val steps: Int,
    val lossBefore: Double,
    val lossAfter: Double,
    val seconds: Double,
) : Message {
    init {
        checkName("client", client)
        checkDigest("layout", layout)
        requireMessage(round >= 0 && attempt >= 0 && version >= 0) { "round, attempt and version must not be negative" }
        requireMessage(examples > 0) { "examples must be in 1..2^31-1, got $examples" }
        requireMessage(codec.size in 1..16) { "codec has ${codec.size} stages, expected 1 to 16" }
    }

    override val form get() = Update
    override fun fields() = listOf(
        client, layout, round, attempt, version, codec, parts, examples, steps, lossBefore, lossAfter, seconds,
    )

    companion object : Form<Update>(
        "Update", "client" to Kind.Text, "layout" to Kind.Text, "round" to Kind.Whole, "attempt" to Kind.Whole,
        "version" to Kind.Whole, "codec" to SPEC, "parts" to Kind.MapOf(Kind.Bytes), "examples" to Kind.Whole,
        "steps" to Kind.Whole, "loss_before" to Kind.Real, "loss_after" to Kind.Real, "seconds" to Kind.Real,
    ) {
        override fun make(v: Values) = Update(
            v["client"], v["layout"], v.int("round"), v.int("attempt"), v.int("version"), v["codec"], v["parts"],
            v.int("examples"), v.int("steps"), v["loss_before"], v["loss_after"], v["seconds"],
        )
    }
}

/** The answer to an upload, sent only when the update is on disk. [status]: `accepted` or `duplicate`. */
data class Receipt(
    val status: String,
    val round: Int,
    val digest: String,
    val payloadBytes: Long,
    val version: Int,
    val staleness: Int,
) : Message {
    init {
        requireMessage(status == "accepted" || status == "duplicate") {
            "status must be accepted or duplicate, got '${status.take(40)}'"
        }
        checkDigest("digest", digest)
    }

    override val form get() = Receipt
    override fun fields() = listOf(status, round, digest, payloadBytes, version, staleness)

    companion object : Form<Receipt>(
        "Receipt", "status" to Kind.Text, "round" to Kind.Whole, "digest" to Kind.Text, "payload_bytes" to Kind.Whole,
        "version" to Kind.Whole, "staleness" to Kind.Whole,
    ) {
        override fun make(v: Values) = Receipt(
            v["status"], v.int("round"), v["digest"], v["payload_bytes"], v.int("version"), v.int("staleness"),
        )
    }
}

/** PUT /v1/evaluations/{version}/{client}: the held-out loss of one version on this device's own data. */
data class Evaluation(
    val client: String,
    val layout: String,
    val version: Int,
    val lossSum: Double,
    val tokens: Long,
    val correct: Long,
    val kind: String = "global",
) : Message {
    init {
        checkName("client", client)
        checkDigest("layout", layout)
        requireMessage(version >= 0) { "version must not be negative" }
        requireMessage(tokens in 1 until (1L shl 53)) { "tokens must be in 1..2^53-1, got $tokens" }
        requireMessage(correct in 0..tokens) { "correct must be in 0..$tokens, got $correct" }
        requireMessage(kind == "global" || kind == "personal") { "kind must be global or personal, got '${kind.take(40)}'" }
    }

    override val form get() = Evaluation
    override fun fields() = listOf(client, layout, version, lossSum, tokens, correct, kind)

    companion object : Form<Evaluation>(
        "Evaluation", "client" to Kind.Text, "layout" to Kind.Text, "version" to Kind.Whole, "loss_sum" to Kind.Real,
        "tokens" to Kind.Whole, "correct" to Kind.Whole, "kind" to Kind.Text,
    ) {
        override fun make(v: Values) =
            Evaluation(v["client"], v["layout"], v.int("version"), v["loss_sum"], v["tokens"], v["correct"], v["kind"])
    }
}

/** PUT and GET /v1/vaults/{address}: what a device encrypted for itself. This client keeps none; the bytes are known. */
class Vault(val sealed: ByteArray) : Message {
    override val form get() = Vault
    override fun fields() = listOf(sealed)

    companion object : Form<Vault>("Vault", "sealed" to Kind.Bytes) {
        override fun make(v: Values) = Vault(v["sealed"])
    }
}

/** The body of every 4xx and 5xx: a stable code for programs, one sentence for people. */
data class Refusal(val code: String, val message: String, val retryAfterS: Double) : Message {
    override val form get() = Refusal
    override fun fields() = listOf(code, message, retryAfterS)

    companion object : Form<Refusal>(
        "Refusal", "code" to Kind.Text, "message" to Kind.Text, "retry_after_s" to Kind.Real,
    ) {
        override fun make(v: Values) = Refusal(v["code"], v["message"], v["retry_after_s"])
    }
}

/**
 * A codec's memory between rounds: one number for each stage, and under error feedback the float32 bytes of what was
 * not sent yet (none = zeros). Not of the protocol: it stays on this device.
 */
class CodecMemory(val stages: List<Long>, val residual: ByteArray) : Message {
    /** A new vector: what was left over, and [vector]. */
    fun addedTo(vector: FloatArray): FloatArray {
        val left = floatsOf(residual)
        return FloatArray(vector.size) { vector[it] + left.getOrElse(it) { 0f } }
    }

    override val form get() = CodecMemory
    override fun fields() = listOf(stages, residual)

    companion object : Form<CodecMemory>(
        "CodecMemory", "stages" to Kind.ListOf(Kind.Whole), "residual" to Kind.Bytes,
    ) {
        override fun make(v: Values) = CodecMemory(v["stages"], v["residual"])

        /** After a vector of which [residual] was not sent. */
        fun of(stages: List<Long>, residual: FloatArray) = CodecMemory(stages, residual.toLittleEndian())
    }
}
