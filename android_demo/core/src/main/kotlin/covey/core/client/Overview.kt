package covey.core.client

import covey.core.wire.Form
import covey.core.wire.Kind
import covey.core.wire.Message
import covey.core.wire.Values

/** Where a device stands, in one word for a screen. */
enum class Phase {
    /** No server is known. */
    NOT_JOINED,

    /** The model's size is known and a person has to agree before it is downloaded. */
    ASKING,

    /** Agreed; the next slice starts when the phone charges on an unmetered network. */
    SCHEDULED,
    DOWNLOADING,
    EVALUATING,
    TRAINING,
    UPLOADING,

    /** The server has no work now. */
    WAITING,
    PAUSED,
    FINISHED,

    /** Something is wrong: [Overview.sentence] says what, and the person may try again or leave. */
    PROBLEM,
}

/**
 * Everything that a screen shows, as one value: what a slice does in the background, kept on disk so that it is there
 * when somebody looks. [losses] are the held-out losses of the versions so far, [updates] counts what was acknowledged.
 */
data class Overview(
    val phase: Phase = Phase.NOT_JOINED,
    val task: String = "",
    val model: String = "",
    val examples: Int = 0,
    val round: Int = 0,
    val rounds: Int = 0,
    val step: Int = 0,
    val steps: Int = 0,
    val updates: Int = 0,
    val losses: List<Double> = emptyList(),
    val downloadBytes: Long = 0,
    val memoryBytes: Long = 0,
    val share: Double = 0.0,
    val sentence: String = "",
) : Message {
    /** How the loss changed, as a share of the first one; null before there are two. */
    val change: Double? get() = if (losses.size > 1) losses.last() / losses.first() - 1 else null

    /** The next view: a pure function of this one and what happened. */
    fun after(event: ClientEvent): Overview = when (event) {
        is ClientEvent.Joined -> copy(phase = Phase.SCHEDULED, task = event.task, model = event.model, examples = event.examples, sentence = "")
        is ClientEvent.Round -> copy(phase = Phase.TRAINING, round = event.round, rounds = event.rounds, step = 0, steps = 0, sentence = "")
        is ClientEvent.Version -> copy(phase = Phase.EVALUATING, sentence = "")
        is ClientEvent.Evaluated -> copy(losses = (losses + event.loss).takeLast(MAX_LOSSES))
        is ClientEvent.Fused -> this
        is ClientEvent.Personal -> this
        is ClientEvent.Stepped -> copy(phase = Phase.TRAINING, round = event.round, step = event.step, steps = event.steps, sentence = "")
        is ClientEvent.Trained -> copy(phase = Phase.UPLOADING)
        is ClientEvent.Uploaded -> copy(phase = Phase.WAITING, updates = updates + 1, sentence = "")
        is ClientEvent.Refused -> copy(sentence = event.sentence)
        is ClientEvent.Waiting -> copy(phase = Phase.WAITING)
        is ClientEvent.Notice -> copy(sentence = event.sentence)
        is ClientEvent.Finished -> copy(phase = Phase.FINISHED, sentence = "")
    }

    /** While the model comes down. */
    fun downloading(done: Long, total: Long) =
        copy(phase = Phase.DOWNLOADING, share = if (total > 0) done.toDouble() / total else 1.0, sentence = "")

    /** What a person has to agree to. */
    fun asking(cost: Cost) = copy(
        phase = Phase.ASKING, model = cost.model, downloadBytes = cost.downloadBytes, memoryBytes = cost.memoryBytes, sentence = "",
    )

    /** Something is wrong; the person may try again or leave. */
    fun failed(sentence: String) = copy(phase = Phase.PROBLEM, sentence = sentence)

    override val form get() = Overview
    override fun fields() = listOf(
        phase.name, task, model, examples, round, rounds, step, steps, updates, losses, downloadBytes, memoryBytes, share, sentence,
    )

    companion object : Form<Overview>(
        "Overview", "phase" to Kind.Text, "task" to Kind.Text, "model" to Kind.Text, "examples" to Kind.Whole,
        "round" to Kind.Whole, "rounds" to Kind.Whole, "step" to Kind.Whole, "steps" to Kind.Whole,
        "updates" to Kind.Whole, "losses" to Kind.ListOf(Kind.Real), "download_bytes" to Kind.Whole,
        "memory_bytes" to Kind.Whole, "share" to Kind.Real, "sentence" to Kind.Text,
    ) {
        private const val MAX_LOSSES = 1000

        override fun make(v: Values) = Overview(
            Phase.values().firstOrNull { it.name == v["phase"] } ?: Phase.SCHEDULED, v["task"], v["model"], v.int("examples"),
            v.int("round"), v.int("rounds"), v.int("step"), v.int("steps"), v.int("updates"), v["losses"],
            v["download_bytes"], v["memory_bytes"], v["share"], v["sentence"],
        )
    }
}

/** Whether a phone has the memory that training needs: a tenth is left for everybody else. */
fun fitsMemory(cost: Cost, freeBytes: Long): Boolean = cost.memoryBytes + cost.memoryBytes / 10 <= freeBytes
