package covey.core.train

import covey.core.wire.LocalConfig
import kotlin.math.pow
import kotlin.math.sqrt

/** [step]: steps taken. [moments]: one vector (velocity) for SGD, two (mean, mean square) for AdamW. */
class OptimizerState(val step: Int, val moments: List<FloatArray>)

/**
 * A local optimiser on flat vectors. `update` changes [adapter][update] and the moments in place, since a phone has
 * no memory to waste, and returns the next state; every operation is one float32 operation in Python's order, so both
 * sides take the same steps.
 */
interface Optimizer {
    /** The state before the first step. */
    fun init(size: Int): OptimizerState

    /** One step; [adapter] and the moments of [state] become those after it. */
    fun update(adapter: FloatArray, gradient: FloatArray, state: OptimizerState): OptimizerState
}

/** SGD with momentum in PyTorch's form: the velocity starts at the first gradient; weight decay is coupled. */
class Sgd(learningRate: Double, momentum: Double, weightDecay: Double) : Optimizer {
    private val rate = learningRate.toFloat()
    private val mass = momentum.toFloat()
    private val decay = weightDecay.toFloat()

    override fun init(size: Int) = OptimizerState(0, listOf(FloatArray(size)))

    override fun update(adapter: FloatArray, gradient: FloatArray, state: OptimizerState): OptimizerState {
        val velocity = state.moments[0]
        for (i in adapter.indices) {
            val g = if (decay != 0f) gradient[i] + decay * adapter[i] else gradient[i]
            velocity[i] = mass * velocity[i] + g
            adapter[i] -= rate * velocity[i]
        }
        return OptimizerState(state.step + 1, state.moments)
    }
}

/** Adam with decoupled weight decay (Loshchilov and Hutter 2019). */
class AdamW(
    private val learningRate: Double, private val beta1: Double, private val beta2: Double, eps: Double, weightDecay: Double,
) : Optimizer {
    private val keep1 = beta1.toFloat()
    private val new1 = (1 - beta1).toFloat()
    private val keep2 = beta2.toFloat()
    private val new2 = (1 - beta2).toFloat()
    private val shrink = (1 - learningRate * weightDecay).toFloat()
    private val floor = eps.toFloat()

    override fun init(size: Int) = OptimizerState(0, listOf(FloatArray(size), FloatArray(size)))

    override fun update(adapter: FloatArray, gradient: FloatArray, state: OptimizerState): OptimizerState {
        val (mean, square) = state.moments
        val step = state.step + 1
        val rate = (learningRate / (1 - beta1.pow(step))).toFloat()
        val scale = (1 / sqrt(1 - beta2.pow(step))).toFloat()
        for (i in adapter.indices) {
            val g = gradient[i]
            mean[i] = keep1 * mean[i] + new1 * g
            square[i] = keep2 * square[i] + new2 * g * g
            adapter[i] = shrink * adapter[i] - rate * mean[i] / (sqrt(square[i]) * scale + floor)
        }
        return OptimizerState(step, state.moments)
    }
}

/** The optimiser that a task asks for. */
fun optimizerOf(config: LocalConfig): Optimizer = when (config.optimizer) {
    "sgd" -> Sgd(config.learningRate, config.momentum, config.weightDecay)
    else -> AdamW(config.learningRate, config.beta1, config.beta2, config.eps, config.weightDecay)
}

/** Scales the gradient in place so that its L2 norm is at most [limit]; 0 leaves it as it is. */
fun clip(gradient: FloatArray, limit: Double) {
    if (limit == 0.0) return
    val norm = sqrt(gradient.sumOf { it.toDouble() * it })
    if (norm <= limit) return
    val factor = (limit / norm).toFloat()
    for (i in gradient.indices) gradient[i] *= factor
}
