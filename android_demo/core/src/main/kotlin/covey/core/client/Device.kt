package covey.core.client

import covey.core.BundleException
import covey.core.LayoutException
import covey.core.codec.codecFromSpec
import covey.core.model.Division
import covey.core.model.sha256
import covey.core.train.Dataset
import covey.core.train.LocalTrainer
import covey.core.wire.Sharing
import covey.core.wire.Task

/** What does not change while a device takes part in a task: its data, its runtime, and its share of the adapter. */
class Device(
    val task: Task,
    val bundle: Bundle,
    val dataset: Dataset,
    val trainer: LocalTrainer,
    val runtime: String,
    val wishes: Wishes = Wishes(),
    val evalBatches: Int = 16,
) {
    /** What of the adapter this device holds, trains, sends and keeps. */
    val division: Division = try {
        Division(bundle.manifest.layout, bundle.manifest.frozen, task.sharing)
    } catch (error: LayoutException) {
        throw BundleException("the task does not fit the bundle: ${error.sentence}")
    }

    /** Version 0 of what is published. */
    fun start(): FloatArray = division.start(bundle.start(task.seed))

    /**
     * This device's whole adapter: a version of what is published and its [own] personal tensors in their places. [round]
     * is the one that is trained, 0 for evaluation. The trainer is told of a second adapter.
     */
    fun whole(version: FloatArray, own: FloatArray, round: Int, cohort: Int): FloatArray {
        if (task.sharing == Sharing()) return version
        val anew = round > 0 && task.sharing.fresh.isNotEmpty()
        val fresh = if (anew) bundle.start(Division.freshSeed(task.seed, round)) else null
        val (adapter, second) = division.whole(bundle.start(task.seed), version, own, cohort, fresh)
        second?.let(trainer::useSecond)
        return adapter
    }

    /** The codec of a round's upload. */
    fun codec(round: Int) = codecFromSpec(task.uploadCodec, division.uploaded(round), task.local.errorFeedback)

    /** What a saved codec memory must be of to be used again. */
    fun codecName(round: Int): String {
        val spec = task.uploadCodec.joinToString("") { sha256(it.toBytes()) }
        return sha256("$spec ${task.local.errorFeedback} ${division.uploaded(round).digest}".toByteArray())
    }

    companion object {
        /** What a state folder belongs to: the same name over another model or seed is another task. */
        fun taskName(task: Task): String = "${task.name}/${sha256("${task.bundle}${task.layout}${task.seed}".toByteArray()).take(16)}"
    }
}
