package covey.core.train

import covey.core.LayoutException
import covey.core.model.Layout
import covey.core.model.Tensor
import kotlin.math.abs

/** The weights of the shared and the personal adapter, the loss there in nats, and how often it was evaluated. */
data class Fusion(val shared: Double, val personal: Double, val loss: Double, val evaluations: Int)

/**
 * One adapter made of two, a device's own and the one that all share, by weights found on held-out examples (FDLoRA, Qi et
 * al. 2024; LoraHub, Huang et al. 2023), in Python's order: the two alone, a grid of 5 x 5, then rings around the best so
 * far, each of half the spacing, within [budget] evaluations. What is found never has a higher loss than either alone;
 * [penalty], on the mean of |w1| and |w2|, decides between near equals only.
 */
fun searchFusion(budget: Int = 40, penalty: Double = 0.05, loss: (Double, Double) -> Double): Fusion {
    val seen = LinkedHashMap<Weights, Double>()
    for (point in points { best(seen, penalty) }) {
        if (seen.size >= maxOf(2, budget)) break
        if (point !in seen) seen[point] = loss(point.first, point.second)
    }
    val bound = minOf(seen.getValue(1.0 to 0.0), seen.getValue(0.0 to 1.0))
    val found = best(seen.filterValues { it <= bound }, penalty)
    return Fusion(found.first, found.second, seen.getValue(found), seen.size)
}

private typealias Weights = Pair<Double, Double>

private const val BOX = 1.5 // weights lie in -BOX..BOX, LoraHub's box

private fun points(best: () -> Weights): Sequence<Weights> = sequence {
    yield(1.0 to 0.0)
    yield(0.0 to 1.0)
    val ticks = List(5) { -BOX + it * BOX / 2 }
    yieldAll(ticks.flatMap { x -> ticks.map { x to it } }.sortedBy { (x, y) -> abs(x + y - 1) })
    var spacing = BOX / 4
    while (spacing > 1e-3) {
        val (x, y) = best()
        yieldAll(RING.map { (dx, dy) -> x + dx * spacing to y + dy * spacing }.filter { (a, b) -> maxOf(abs(a), abs(b)) <= BOX })
        spacing /= 2
    }
}

private val RING = listOf(-1.0 to 0.0, 1.0 to 0.0, 0.0 to -1.0, 0.0 to 1.0, -1.0 to 1.0, 1.0 to -1.0, 1.0 to 1.0, -1.0 to -1.0)

private fun best(seen: Map<Weights, Double>, penalty: Double): Weights = seen.keys.minWith(
    compareBy<Weights> { seen.getValue(it) + penalty * (abs(it.first) + abs(it.second)) / 2 }.thenBy { it.first }.thenBy { it.second },
)

/** `w1 * shared + w2 * personal`, entry by entry: the factors are mixed, so their products have cross terms. */
fun factorwise(shared: FloatArray, personal: FloatArray, w1: Double, w2: Double): FloatArray {
    val x = w1.toFloat()
    val y = w2.toFloat()
    return FloatArray(shared.size) { x * shared[it] + y * personal[it] }
}

/**
 * The adapter and the second adapter whose sum of products is w1 * shared's + w2 * personal's, exactly. [second] has at
 * least the rank of [layout] in every module. Entries that are no factors are mixed entry by entry.
 */
fun concatenated(layout: Layout, second: Layout, shared: FloatArray, personal: FloatArray, w1: Double, w2: Double): Pair<FloatArray, FloatArray> {
    val adapter = factorwise(shared, personal, w1, w2)
    val beside = FloatArray(second.size)
    val seconds = factors(second).associateBy { it.module }
    for (pair in factors(layout)) {
        val other = seconds[pair.module]
        if (other == null || other.rank < pair.rank) throw LayoutException("the second adapter cannot hold '${pair.module}' at rank ${pair.rank}")
        for (i in pair.a until pair.a + pair.aSize) adapter[i] = shared[i]
        for (i in pair.b until pair.b + pair.bSize) adapter[i] = (w1 * shared[i]).toFloat()
        personal.copyInto(beside, other.a, pair.a, pair.a + pair.aSize)
        val scale = w2 * pair.scale / other.scale
        for (row in 0 until pair.bSize / pair.rank) {
            for (k in 0 until pair.rank) beside[other.b + row * other.rank + k] = (scale * personal[pair.b + row * pair.rank + k]).toFloat()
        }
    }
    return adapter to beside
}

/** One module's factors: where A, [rank] rows, and B, [rank] columns, lie in a vector. */
private class Factors(val module: String, val rank: Int, val scale: Double, val a: Int, val aSize: Int, val b: Int, val bSize: Int)

private fun factors(layout: Layout): List<Factors> = layout.tensors.zip(layout.offsets.asList())
    .filter { (tensor, _) -> tensor.kind.startsWith("lora_") }.groupBy { (tensor, _) -> tensor.module }
    .map { (module, halves) ->
        val (a, b) = listOf("lora_A", "lora_B").map { kind -> halves.singleOrNull { it.first.kind == kind } ?: lonely(module) }
        Factors(module, rankOf(a.first, b.first), a.first.scale, a.second, a.first.size, b.second, b.first.size)
    }

private fun rankOf(a: Tensor, b: Tensor): Int {
    val sound = a.shape[0] == a.rank && b.shape.getOrNull(1) == a.rank && b.size == b.shape[0] * a.rank && a.rank == b.rank
    if (!sound) throw LayoutException("the factors of '${a.module}' have shapes ${a.shape} and ${b.shape} at rank ${a.rank}")
    return a.rank
}

private fun lonely(module: String): Nothing = throw LayoutException("the module '$module' lacks a factor; both are needed here")
