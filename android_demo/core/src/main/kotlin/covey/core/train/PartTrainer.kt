package covey.core.train

import covey.core.model.at
import covey.core.model.put

/**
 * A trainer of the entries [where] of a whole adapter; the others stand still at [base]. Training, clipping and the
 * optimiser's state are then over the part that a task lets a device train.
 */
class PartTrainer(private val whole: LocalTrainer, base: FloatArray, private val where: IntArray) : LocalTrainer {
    private val full = base.copyOf()

    override fun lossAndGradient(adapter: FloatArray, batch: Batch): LossAndGradient {
        full.put(where, adapter)
        val result = whole.lossAndGradient(full, batch)
        return LossAndGradient(result.loss, result.gradient.at(where))
    }

    override fun evaluate(adapter: FloatArray, batch: Batch): Score {
        full.put(where, adapter)
        return whole.evaluate(full, batch)
    }

    override fun close() = Unit
}
