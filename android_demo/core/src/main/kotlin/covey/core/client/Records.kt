package covey.core.client

import covey.core.model.floatsOf
import covey.core.model.toLittleEndian
import covey.core.train.OptimizerState
import covey.core.train.Progress
import covey.core.wire.CodecMemory
import covey.core.wire.Form
import covey.core.wire.Kind
import covey.core.wire.Message
import covey.core.wire.Values

/** An update that the server has not acknowledged, its exact bytes. [after]: the memory of [codec] once it has. */
class Pending(val round: Int, val attempt: Int, val version: Int, val body: ByteArray, val codec: String, val after: CodecMemory) : Message {
    override val form get() = Pending
    override fun fields() = listOf(round, attempt, version, body, codec, after)

    companion object : Form<Pending>(
        "Pending", "round" to Kind.Whole, "attempt" to Kind.Whole, "version" to Kind.Whole, "body" to Kind.Bytes,
        "codec" to Kind.Text, "after" to Kind.Record { CodecMemory },
    ) {
        override fun make(v: Values) =
            Pending(v.int("round"), v.int("attempt"), v.int("version"), v["body"], v["codec"], v["after"])
    }
}

/** A held-out evaluation of one version. */
data class Scored(val version: Int, val lossSum: Double, val tokens: Long, val correct: Long) : Message {
    /** Mean loss in nats. */
    val loss: Double get() = lossSum / tokens

    override val form get() = Scored
    override fun fields() = listOf(version, lossSum, tokens, correct)

    companion object : Form<Scored>(
        "Scored", "version" to Kind.Whole, "loss_sum" to Kind.Real, "tokens" to Kind.Whole, "correct" to Kind.Whole,
    ) {
        override fun make(v: Values) = Scored(v.int("version"), v["loss_sum"], v["tokens"], v["correct"])
    }
}

/**
 * What a device remembers. [task]: which task it belongs to; [codecs]: memories of codecs by name; [adapter]: the float32
 * bytes of version [held] as devices of [cohort] have it, none for -1; [own]: those of the personal tensors, none as long as they are at their start, and
 * [ownHistory] the evaluations with them; [rounds] counts acknowledged updates.
 */
data class ClientRecord(
    val client: String,
    val task: String = "",
    val held: Int = NOTHING,
    val adapter: ByteArray = ByteArray(0),
    val own: ByteArray = ByteArray(0),
    val cohort: Int = 0,
    val codecs: Map<String, CodecMemory> = emptyMap(),
    val pending: List<Pending> = emptyList(),
    val history: List<Scored> = emptyList(),
    val ownHistory: List<Scored> = emptyList(),
    val rounds: Int = 0,
    val trainSeconds: Double = 0.0,
    val sent: Map<String, Long> = emptyMap(),
    val received: Map<String, Long> = emptyMap(),
) : Message {
    /** The version held. */
    fun version() = Held(held, floatsOf(adapter))

    override val form get() = ClientRecord
    override fun fields() = listOf(
        client, task, held, adapter, own, cohort, codecs, pending, history, ownHistory, rounds, trainSeconds, sent, received,
    )

    companion object : Form<ClientRecord>(
        "ClientRecord", "client" to Kind.Text, "task" to Kind.Text, "held" to Kind.Whole, "adapter" to Kind.Bytes,
        "own" to Kind.Bytes, "cohort" to Kind.Whole, "codecs" to Kind.MapOf(Kind.Record { CodecMemory }),
        "pending" to Kind.ListOf(Kind.Record { Pending }), "history" to Kind.ListOf(Kind.Record { Scored }),
        "own_history" to Kind.ListOf(Kind.Record { Scored }),
        "rounds" to Kind.Whole, "train_seconds" to Kind.Real, "sent" to Kind.MapOf(Kind.Whole),
        "received" to Kind.MapOf(Kind.Whole),
    ) {
        override fun make(v: Values) = ClientRecord(
            v["client"], v["task"], v.int("held"), v["adapter"], v["own"], v.int("cohort"), v["codecs"], v["pending"],
            v["history"], v["own_history"], v.int("rounds"), v["train_seconds"], v["sent"], v["received"],
        )
    }
}

/** A round in progress; it counts only for the assignment that it names. */
class TrainingRecord(
    val task: String, val round: Int, val attempt: Int, val version: Int, val step: Int, val adapter: ByteArray,
    val moments: List<ByteArray>, val first: List<Double>, val last: List<Double>, val seconds: Double,
) : Message {
    /** Where the round stood. */
    fun progress() = Progress(floatsOf(adapter), OptimizerState(step, moments.map(::floatsOf)), first, last, seconds)

    override val form get() = TrainingRecord
    override fun fields() = listOf(task, round, attempt, version, step, adapter, moments, first, last, seconds)

    companion object : Form<TrainingRecord>(
        "TrainingRecord", "task" to Kind.Text, "round" to Kind.Whole, "attempt" to Kind.Whole, "version" to Kind.Whole,
        "step" to Kind.Whole, "adapter" to Kind.Bytes, "moments" to Kind.ListOf(Kind.Bytes),
        "first" to Kind.ListOf(Kind.Real), "last" to Kind.ListOf(Kind.Real), "seconds" to Kind.Real,
    ) {
        override fun make(v: Values) = TrainingRecord(
            v["task"], v.int("round"), v.int("attempt"), v.int("version"), v.int("step"), v["adapter"], v["moments"],
            v["first"], v["last"], v["seconds"],
        )

        /** The record of a round in progress. */
        fun of(task: String, round: Int, attempt: Int, version: Int, p: Progress) = TrainingRecord(
            task, round, attempt, version, p.step, p.adapter.toLittleEndian(), p.optimizer.moments.map { it.toLittleEndian() },
            p.first, p.last, p.seconds,
        )
    }
}
