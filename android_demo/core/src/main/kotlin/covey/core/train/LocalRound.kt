package covey.core.train

import covey.core.Reason
import covey.core.TrainingException
import covey.core.because
import covey.core.model.Prng
import covey.core.wire.LocalConfig

/**
 * Where a round stands; saved after any step and given back, it leads to the same bits as if nothing had happened in
 * between. [first] and [last] hold up to five losses each, in nats.
 */
class Progress(
    val adapter: FloatArray,
    val optimizer: OptimizerState,
    val first: List<Double> = emptyList(),
    val last: List<Double> = emptyList(),
    val seconds: Double = 0.0,
) {
    /** Steps done. */
    val step: Int get() = optimizer.step

    /** Mean training loss of the first steps. */
    val lossBefore: Double get() = first.average()

    /** Mean training loss of the last steps. */
    val lossAfter: Double get() = last.average()
}

/** The training of one device in one round, step by step. */
class LocalRound(
    private val trainer: LocalTrainer,
    private val examples: Examples,
    private val batchSize: Int,
    private val config: LocalConfig,
    private val seed: Long,
) {
    private val optimizer = optimizerOf(config)
    private val window = maxOf(1, minOf(WINDOW, config.steps / 2))

    /** The state before the first step; [adapter] is copied. */
    fun begin(adapter: FloatArray) = Progress(adapter.copyOf(), optimizer.init(adapter.size))

    /** Whether all steps are done. */
    fun done(progress: Progress): Boolean = progress.step >= config.steps

    /**
     * One step; the vectors of [progress] are changed in place. Throws [TrainingException] when loss or gradient stop
     * being numbers; nothing of the round may be uploaded then.
     */
    fun step(progress: Progress): Progress {
        val started = System.nanoTime()
        val batch = trainingBatch(examples, batchSize, seed, progress.step)
        val result = trainer.lossAndGradient(progress.adapter, batch)
        if (!result.loss.isFinite() || result.gradient.any { !it.isFinite() }) {
            throw TrainingException(
                "the training loss became ${result.loss} at step ${progress.step + 1} of ${config.steps}; nothing of this " +
                    "round is uploaded: the task needs a smaller learning_rate or a clip_norm",
            ).because(Reason.LOSS, progress.step + 1)
        }
        clip(result.gradient, config.clipNorm)
        val state = optimizer.update(progress.adapter, result.gradient, progress.optimizer)
        return Progress(
            progress.adapter, state, (progress.first + result.loss).take(window), (progress.last + result.loss).takeLast(window),
            progress.seconds + (System.nanoTime() - started) * 1e-9,
        )
    }

    companion object {
        private const val WINDOW = 5 // steps at each end whose losses are averaged: one batch's loss says little

        /** The stream that orders one device's examples in one round. */
        fun seed(taskSeed: Long, round: Int, client: String): Long = Prng.derive(taskSeed, "batches", round, client)
    }
}
