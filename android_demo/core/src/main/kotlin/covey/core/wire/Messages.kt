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

/** PUT and GET /v1/vaults/{address}: what a device encrypted for itself. */
class SealedVault(val sealed: ByteArray) : Message {
    override val form get() = SealedVault
    override fun fields() = listOf(sealed)

    companion object : Form<SealedVault>("Vault", "sealed" to Kind.Bytes) {
        override fun make(v: Values) = SealedVault(v["sealed"])
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
