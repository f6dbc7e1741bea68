package covey.core.client

import covey.core.BundleException
import covey.core.LayoutException
import covey.core.codec.codecFromSpec
import covey.core.model.Division
import covey.core.model.Layout
import covey.core.model.at
import covey.core.model.sha256
import covey.core.train.Dataset
import covey.core.train.Fusion
import covey.core.train.LocalTrainer
import covey.core.train.Score
import covey.core.train.concatenated
import covey.core.train.evaluationBatches
import covey.core.train.factorwise
import covey.core.train.searchFusion
import covey.core.train.splitRows
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

    /** Entries of this device's own tensors, or of its own whole adapter where two are fused. */
    val ownSize: Int get() = if (task.sharing.fusion.isNotEmpty()) bundle.manifest.layout.size else division.personal?.size ?: 0

    private val second = bundle.manifest.frozen

    /** What to train on, and what to search the weights of two adapters on: a tenth of the training examples, if it is needed. */
    val parts: Dataset =
        if (task.sharing.fusion.isEmpty()) Dataset(dataset.train, dataset.train) else splitRows(dataset.train, SEARCHED, "training examples")

    /** Version 0 of what is published. */
    fun start(): FloatArray = division.start(bundle.start(task.seed))

    /** Version 0 of a part of what is published. */
    fun startOf(layout: Layout): FloatArray = start().at(division.published.positions(layout))

    /**
     * This device's whole adapter: a version of what is published and its [own] personal tensors in their places. [round]
     * is the one that is trained, 0 for evaluation. The trainer is told of a second adapter.
     */
    fun whole(version: FloatArray, own: FloatArray, round: Int, cohort: Int): FloatArray {
        if (task.sharing == Sharing()) return version
        val anew = round > 0 && task.sharing.fresh.isNotEmpty()
        val fresh = if (anew) bundle.start(Division.freshSeed(task.seed, round)) else null
        val (adapter, second) = division.whole(bundle.start(task.seed), version, own, cohort, fresh)
        if (second != null) trainer.useSecond(second) else resetSecond()
        return adapter
    }

    /**
     * A version of what is published and this device's [own] adapter as one, by the weights that lose least on the searched
     * examples; the trainer is told of a second adapter where the two are concatenated.
     */
    fun fused(version: FloatArray, own: FloatArray): Pair<FloatArray, Fusion> {
        val shared = whole(version, FloatArray(0), 0, 0)
        val batches = evaluationBatches(parts.heldout, bundle.manifest.batchSize, SEARCH_BATCHES).toList()
        val found = searchFusion { w1, w2 ->
            val adapter = mixed(shared, own, w1, w2)
            batches.map { trainer.evaluate(adapter, it) }.reduce(Score::plus).loss
        }
        return mixed(shared, own, found.shared, found.personal) to found
    }

    private fun mixed(shared: FloatArray, own: FloatArray, w1: Double, w2: Double): FloatArray {
        if (task.sharing.fusion == "factorwise" || second == null) return factorwise(shared, own, w1, w2)
        val (adapter, beside) = concatenated(bundle.manifest.layout, second, shared, own, w1, w2)
        trainer.useSecond(beside)
        return adapter
    }

    /** What the fusion left in the trainer is not to be trained upon. */
    private fun resetSecond() {
        if (task.sharing.fusion == "concatenated" && second != null) trainer.useSecond(FloatArray(second.size))
    }

    /** The codec of a round's upload. */
    fun codec(round: Int) = codecFromSpec(task.uploadCodec, division.uploaded(round), task.local.errorFeedback)

    /** What a saved codec memory must be of to be used again. */
    fun codecName(round: Int): String {
        val spec = task.uploadCodec.joinToString("") { sha256(it.toBytes()) }
        return sha256("$spec ${task.local.errorFeedback} ${division.uploaded(round).digest}".toByteArray())
    }

    companion object {
        private const val SEARCHED = 0.1 // of the training examples are kept back where two adapters are fused
        private const val SEARCH_BATCHES = 4 // of an evaluation of a pair of weights

        /** What a state folder belongs to: the same name over another model or seed is another task. */
        fun taskName(task: Task): String = "${task.name}/${sha256("${task.bundle}${task.layout}${task.seed}".toByteArray()).take(16)}"
    }
}
