package covey.core.train

/** Weights of a shared and a personal adapter, and the loss that their sum has. */
data class Fusion(val shared: Double, val personal: Double, val loss: Double)

/** `shared * a + personal * b`, entry by entry. */
fun fused(shared: FloatArray, personal: FloatArray, a: Double, b: Double): FloatArray {
    val x = a.toFloat()
    val y = b.toFloat()
    return FloatArray(shared.size) { x * shared[it] + y * personal[it] }
}

/**
 * Searches the two weights without gradients (FDLoRA's AdaFusion): from (1, 0), coordinate moves by a step that halves
 * when none helps, [evaluations] times at most. [loss] is the held-out loss of an adapter.
 */
fun searchFusion(shared: FloatArray, personal: FloatArray, evaluations: Int, loss: (FloatArray) -> Double): Fusion {
    val at = { a: Double, b: Double -> Fusion(a, b, loss(fused(shared, personal, a, b))) }
    var best = at(1.0, 0.0)
    var left = evaluations - 1
    var step = 0.5
    while (left > 0 && step > 0.02) {
        val moves = listOf(0.0 to step, 0.0 to -step, step to 0.0, -step to 0.0).take(left)
        left -= moves.size
        val found = moves.map { (da, db) -> at(best.shared + da, best.personal + db) }.minBy { it.loss }
        if (found.loss < best.loss) best = found else step /= 2
    }
    return best
}
