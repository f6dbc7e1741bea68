package covey.core.train

import covey.core.BundleException
import java.io.Closeable

/**
 * What a graph takes beside the adapter: [inputs] token ids, [rows] x [columns] row after row, and [labels], as many for a
 * language model and one a row for a classifier. A label of [IGNORED] is not counted.
 */
class Batch(val rows: Int, val columns: Int, val inputs: LongArray, val labels: LongArray)

/** The label of a position that does not count, as in Hugging Face's losses. */
const val IGNORED = -100L

/** Mean loss over the counted labels in nats, and its gradient, one entry for each of the adapter's. */
class LossAndGradient(val loss: Double, val gradient: FloatArray)

/** Held-out sums: [lossSum] in nats over [tokens] counted positions, [correct] predicted right. */
data class Score(val lossSum: Double, val tokens: Long, val correct: Long) {
    operator fun plus(other: Score) = Score(lossSum + other.lossSum, tokens + other.tokens, correct + other.correct)

    /** Mean loss. */
    val loss: Double get() = lossSum / tokens
}

/**
 * The one seam to a runtime: the frozen base model, into which the adapter goes with every call and in which nothing
 * stays behind. On a phone `ExecuTorchTrainer` is behind it. An implementation may reuse the gradient's array.
 */
interface LocalTrainer : Closeable {
    /** Use these values of the second adapter, which is added and not trained, from now on; zeros by default. */
    fun useSecond(values: FloatArray): Unit =
        throw BundleException("this app cannot run a task with a second adapter: use one without, or update the app")

    /** One run of the joint graph. */
    fun lossAndGradient(adapter: FloatArray, batch: Batch): LossAndGradient

    /** One run of the evaluation graph. */
    fun evaluate(adapter: FloatArray, batch: Batch): Score
}
